"""The batches of a run. The loader has no state: this rank's part of global batch n is a function of n."""

import dataclasses
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fast_electra import randomness
from fast_electra.batch import Layout, TokenBatch, masked_counts


class SequenceSource(Protocol):
    """Sequences by number, below its length: those of a corpus, or the examples of a task.

    Attributes:
        length: L, the positions of the longest sequence, [CLS] and [SEP] included.
    """

    length: int

    def __len__(self) -> int: ...

    def lengths(self, sequence: Tensor) -> Tensor:
        """Return the number of tokens of each sequence, int64, [CLS] and [SEP] included."""

    def tokens(self, sequence: Tensor) -> Tensor:
        """Return the tokens of sequences, one sequence after another: int64 [T]."""

    def order(self, seed: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return sequence and epoch of samples [start, stop) of the endless training stream, int64 each."""


@dataclass(frozen=True)
class Share:
    """This rank's share of a global batch. Sequence j belongs to accumulation step j // (ranks * micro_batch)."""

    micro_batch: int  # sequences of one rank in one accumulation step
    accumulation: int
    ranks: int = 1
    rank: int = 0

    @property
    def global_batch(self) -> int:
        """Number of sequences of an update, over all ranks and accumulation steps."""
        return self.micro_batch * self.accumulation * self.ranks


@dataclass(frozen=True)
class Loader:
    """Batches in the order of (seed, epoch). The global batches do not depend on the number of ranks."""

    sequences: SequenceSource  # to train on
    share: Share
    seed: int  # determines the order, and all noise
    mask_fraction: float  # determines how many positions of the global batch are masked

    def batch(self, n: int) -> list[TokenBatch]:
        """Return this rank's part of global batch n = 0, 1, ...: one TokenBatch for each accumulation step."""
        share = self.share
        first = n * share.global_batch
        samples = torch.arange(first, first + share.global_batch)
        sequences, epochs = self.sequences.order(self.seed, first, first + share.global_batch)
        lengths = self.sequences.lengths(sequences)
        tokens, masked = int(lengths.sum()), int(masked_counts(lengths, self.mask_fraction).sum())
        parts = []
        for step in range(share.accumulation):
            start = (step * share.ranks + share.rank) * share.micro_batch
            rows = slice(start, start + share.micro_batch)
            part = read_batch(self.sequences, self.seed, samples[rows], sequences[rows], epochs[rows])
            parts.append(dataclasses.replace(part, global_tokens=tokens, global_masked=masked))
        return parts


def read_batch(
    sequences: SequenceSource,
    seed: int,
    samples_B: Tensor,
    sequences_B: Tensor,
    epochs_B: Tensor,
    source: str = "train",
) -> TokenBatch:
    """Read sequences by their numbers in the corpus; (seed, epoch, sequence) names each in all noise.

    See `TokenBatch` for samples and source. All tensors are int64 on the CPU.
    """
    keys_B = randomness.key(seed, epochs_B, sequences_B)
    layout = Layout.of(sequences.lengths(sequences_B), keys_B)
    return TokenBatch(sequences.tokens(sequences_B), layout, samples_B, source, sequences_B=sequences_B)
