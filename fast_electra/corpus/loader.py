"""Global batch n to this rank's part of it. There is no state but n: resuming at update n is asking for batch n."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fast_electra.batch import TokenBatch
from fast_electra.corpus.sequences import Sequences


@dataclass(frozen=True)
class Split:
    """How a global batch is divided: sequence j belongs to accumulation step j // (ranks * micro), then to a rank."""

    micro_batch: int  # sequences of one rank in one accumulation step
    accumulation: int
    ranks: int = 1
    rank: int = 0

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.accumulation * self.ranks


class Loader:
    """Batches of `sequences` in the order of (seed, epoch); any number of ranks sees the same global batches."""

    def __init__(self, sequences: Sequences, split: Split, seed: int, mask_fraction: float) -> None:
        self.sequences, self.split, self.seed, self.mask_fraction = sequences, split, seed, mask_fraction

    def batch(self, n: int) -> list[TokenBatch]:
        """This rank's part of global batch n = 0, 1, ...: one TokenBatch for each accumulation step."""
        split = self.split
        start = n * split.global_batch
        samples = torch.arange(start, start + split.global_batch)
        sequences, epochs = self.sequences.order(self.seed, start, start + split.global_batch)
        lengths = self.sequences.lengths(sequences)
        tokens, masked = int(lengths.sum()), int(masked_counts(lengths, self.mask_fraction).sum())
        parts = []
        for step in range(split.accumulation):
            start = (step * split.ranks + split.rank) * split.micro_batch
            rows = slice(start, start + split.micro_batch)
            parts.append(token_batch(self.sequences, samples[rows], sequences[rows], epochs[rows], tokens, masked))
        return parts


def masked_counts(lengths_B: Tensor, fraction: float) -> Tensor:
    """How many positions of each sequence are masked: the nearest integer to the fraction of its non-special ones.

    At least one; the count is exact, not binomial, so that a batch's number of masked positions follows from lengths.
    """
    return ((lengths_B - 2) * fraction + 0.5).floor().long().clamp(min=1)


def token_batch(
    sequences: Sequences,
    samples: Tensor,
    which: Tensor,
    epochs: Tensor,
    global_tokens: int,
    global_masked: int,
    source: str = "train",
) -> TokenBatch:
    """Reads the named sequences."""
    lengths_B = sequences.lengths(which)
    tokens_BL = sequences.tokens(which)
    real_BL = torch.arange(tokens_BL.shape[1]) < lengths_B[:, None]
    return TokenBatch(tokens_BL, lengths_B, which, epochs, real_BL, global_tokens, global_masked, samples, source)
