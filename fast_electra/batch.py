"""The values that flow from the loader to the loss. Read this file first.

Shape letters, used as suffixes of tensors' names (a file may add letters of its own):

    B  sequences of a micro-batch      M  masked positions of a micro-batch, all sequences together
    T  tokens of a micro-batch         V  vocabulary entries
    D  hidden size                     H  attention heads
    N  layers                          E  embedding size

Tokens are int64. The sequences of a micro-batch lie one after another, without padding. So a number below T names a
token, and `Layout` says to which sequence it belongs.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

ON_DEVICE = ("keys_B", "starts_B", "sizes_B", "sequence_T", "position_T")  # tensors of a `Layout`


@dataclass(frozen=True, eq=False)
class Layout:
    """Where each sequence lies among the T tokens of a micro-batch, and what names it in all noise.

    `lengths_B` stays on the CPU, so that counting never waits for a device. All other tensors are on the device.
    """

    lengths_B: Tensor  # int64, CPU: number of tokens; [CLS] and [SEP] count
    longest: int  # length of the longest sequence, or more
    keys_B: Tensor  # int64: noise key of each sequence, a function of (seed, epoch, sequence)
    starts_B: Tensor  # int32: number of each sequence's first token, as kernels read it
    sizes_B: Tensor  # int32: `lengths_B`, as kernels read it
    sequence_T: Tensor  # int64: sequence of each token, below B
    position_T: Tensor  # int64: position of each token in its sequence, from 0

    @classmethod
    def of(cls, lengths_B: Tensor, keys_B: Tensor | None = None) -> Self:
        """Lay sequences of these lengths one after another, on the CPU. Without keys they are named 0, 1, ..."""
        starts_B = lengths_B.cumsum(0) - lengths_B
        sequence_T = torch.repeat_interleave(lengths_B)
        return cls(
            lengths_B=lengths_B,
            longest=int(lengths_B.max()),
            keys_B=torch.arange(len(lengths_B)) if keys_B is None else keys_B,
            starts_B=starts_B.int(),
            sizes_B=lengths_B.int(),
            sequence_T=sequence_T,
            position_T=torch.arange(len(sequence_T)) - starts_B[sequence_T],
        )

    @property
    def maskable_T(self) -> Tensor:
        """Tokens that may be masked, bool: neither [CLS], which is first, nor [SEP], which is last."""
        return (self.position_T > 0) & (self.position_T < (self.sizes_B - 1)[self.sequence_T])

    def order(self, noise_T: Tensor, eligible_T: Tensor) -> Tensor:
        """Return the numbers of all tokens, int64 [T], sequence by sequence.

        In each, the eligible ones come first, by growing noise.
        """
        order_T = noise_T.masked_fill(~eligible_T, torch.iinfo(torch.int64).max).argsort(stable=True)
        return order_T[self.sequence_T[order_T].argsort(stable=True)]  # which keeps the order of the first

    def to(self, device: torch.device) -> Self:
        """Return the layout with all tensors but `lengths_B` on `device`."""
        changes: dict[str, Any] = {name: moved(getattr(self, name), device) for name in ON_DEVICE}
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class TokenBatch:
    """Original sequences from the loader: [CLS] tokens [SEP].

    `global_tokens` and `global_masked` are the denominators of the losses: sums over the global batch of this update,
    over all ranks and accumulation steps. They are 1 in evaluation batches.
    """

    tokens_T: Tensor
    layout: Layout
    samples_B: Tensor  # int64, CPU: number of each sequence in the stream `source`
    source: str = "train"  # the endless training stream, or an evaluation set: "heldout", "reference"
    global_tokens: int = 1
    global_masked: int = 1
    sequences_B: Tensor | None = None  # int64, CPU: number of each sequence in its split; a task's labels go by it

    def to(self, device: torch.device) -> Self:
        """Return the batch with its tokens and layout on `device`."""
        return dataclasses.replace(self, tokens_T=moved(self.tokens_T, device), layout=self.layout.to(device))


@dataclass(frozen=True)
class MaskedBatch:
    """Sequences with [MASK] at the chosen positions (section 2): the input of the auxiliary model."""

    original: TokenBatch
    tokens_T: Tensor  # [MASK] at the masked positions
    positions_M: Tensor  # int64, number of each masked token, below T
    keys_M: Tensor  # int64, noise key of each masked position

    @property
    def layout(self) -> Layout:
        """Where the sequences lie: masking moves nothing."""
        return self.original.layout

    @property
    def original_M(self) -> Tensor:
        """Original token x at each masked position, int64."""
        return self.original.tokens_T.index_select(0, self.positions_M)


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
    tokens_T: Tensor
    draws: Draws  # also those that equal the original token (lucky guesses)
    replaced_T: Tensor  # bool: x_hat != x, the label; False wherever nothing was masked


def masked_counts(lengths_B: Tensor, fraction: float) -> Tensor:
    """Return how many positions of each sequence are masked: the nearest integer to `fraction` of the maskable ones.

    Lengths include [CLS] and [SEP]. The count is at least 1. It is exact and not binomial, so that the number of masked
    positions of a batch follows from its lengths.
    """
    return ((lengths_B - 2) * fraction + 0.5).floor().long().clamp(min=1)


def ceil_div(amount: int, size: int) -> int:
    """Return the number of parts of `size` that hold `amount`: the quotient, rounded up."""
    return -(-amount // size)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on `device`, without waiting for it."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()  # a copy from other memory waits until the GPU has done all its work
    return tensor.to(device, non_blocking=True)
