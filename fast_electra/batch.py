"""The values that flow from the loader to the loss. Read this file first.

Shape letters, used as suffixes of tensors' names (a file may add letters of its own):

    B  sequences of a micro-batch      M  masked positions of a micro-batch, all sequences together
    L  positions of a sequence         V  vocabulary entries
    D  hidden size                     H  attention heads
    N  layers                          E  embedding size

Tokens are int64. The flat index b * L + l names a position of a micro-batch.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """Original sequences from the loader: [CLS] tokens [SEP], padded at the right.

    `lengths_B` stays on the CPU, so that counting never waits for a device. `global_tokens` and `global_masked` are the
    denominators of the losses: sums over the global batch of this update, over all ranks and accumulation steps. They
    are 1 in evaluation batches.
    """

    tokens_BL: Tensor
    lengths_B: Tensor  # int64, CPU: number of positions that are not padding; [CLS] and [SEP] count
    sequences_B: Tensor  # int64, CPU: number of each sequence in the corpus; (epoch, sequence) is the key of its noise
    epochs_B: Tensor  # int64, CPU
    real_BL: Tensor  # bool: False at padding
    samples_B: Tensor  # int64, CPU: number of each sequence in the stream `source`
    source: str = "train"  # the endless training stream, or an evaluation set: "heldout", "reference"
    global_tokens: int = 1
    global_masked: int = 1

    @property
    def attended_BL(self) -> Tensor | None:
        """`real_BL`, or None if there is no padding: attention is faster without a mask."""
        return None if bool((self.lengths_B == self.tokens_BL.shape[1]).all()) else self.real_BL

    @property
    def maskable_BL(self) -> Tensor:
        """Positions that may be masked, bool: neither [CLS], which is first, nor [SEP], which is last, nor padding."""
        position_L = torch.arange(self.tokens_BL.shape[1], device=self.tokens_BL.device)
        last_B1 = (self.lengths_B - 1).to(position_L.device, non_blocking=True)[:, None]
        return (position_L > 0) & (position_L < last_B1)

    def to(self, device: torch.device) -> "TokenBatch":
        """Return the batch with its large tensors on `device`; lengths, sequences and epochs stay on the CPU."""

        def moved(tensor: Tensor) -> Tensor:
            if device.type == "cuda" and not tensor.is_cuda:
                tensor = tensor.pin_memory()  # a copy from other memory waits until the GPU has done all its work
            return tensor.to(device, non_blocking=True)

        return dataclasses.replace(self, tokens_BL=moved(self.tokens_BL), real_BL=moved(self.real_BL))


@dataclass(frozen=True)
class MaskedBatch:
    """Sequences with [MASK] at the chosen positions (section 2): the input of the auxiliary model."""

    original: TokenBatch
    tokens_BL: Tensor  # [MASK] at the masked positions
    positions_M: Tensor  # int64, flat indices of the masked positions
    keys_M: Tensor  # int64, noise key of each masked position
    keys_B: Tensor  # int64, noise key of each sequence

    @property
    def original_M(self) -> Tensor:
        """Original token x at each masked position, int64."""
        return self.original.tokens_BL.flatten().index_select(0, self.positions_M)


class Draws(NamedTuple):
    """One drawn token x_hat for each masked position, and two figures of the distribution that it was drawn from.

    The figures are None if they are not known: an offline store holds tokens only.
    """

    tokens_M: Tensor  # int64
    entropy_M: Tensor | None = None  # float32, nats
    original_probability_M: Tensor | None = None  # float32: the probability of the original token


@dataclass(frozen=True)
class CorruptedBatch:
    """Sequences with replacements at the masked positions: the input of the main model (discriminator)."""

    masked: MaskedBatch
    tokens_BL: Tensor
    draws: Draws  # also those that equal the original token (lucky guesses)
    replaced_BL: Tensor  # bool: x_hat != x, the label; False wherever nothing was masked


def masked_counts(lengths_B: Tensor, fraction: float) -> Tensor:
    """Return how many positions of each sequence are masked: the nearest integer to `fraction` of the maskable ones.

    Lengths include [CLS] and [SEP]. The count is at least 1. It is exact and not binomial, so that the number of masked
    positions of a batch follows from its lengths.
    """
    return ((lengths_B - 2) * fraction + 0.5).floor().long().clamp(min=1)


def ceil_div(amount: int, size: int) -> int:
    """Return the number of parts of `size` that hold `amount`: the quotient, rounded up."""
    return -(-amount // size)
