"""What flows through the system, from the loader to the loss. Read this file first.

Shape letters, used as suffixes everywhere:

    B  sequences of a micro-batch      M  masked positions of a micro-batch, all sequences together
    L  positions of a sequence         V  vocabulary entries
    D  hidden size                     H  attention heads
    N  layers                          E  embedding size

Tokens are int64. A position of a micro-batch is named by its flat index b * L + l.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """Original sequences, as the loader gives them: [CLS] tokens [SEP], padded at the right.

    `lengths_B` stays on the CPU, so that counts never wait for a device. `global_tokens` and `global_masked` are sums
    over the whole global batch of this update, all ranks and accumulation steps: the denominators of the losses.
    """

    tokens_BL: Tensor
    lengths_B: Tensor  # int64, CPU: positions that are not padding, [CLS] and [SEP] included
    sequences_B: Tensor  # int64, CPU: which sequence of the corpus each one is; with the epoch, the name of its noise
    epochs_B: Tensor  # int64, CPU
    real_BL: Tensor  # bool: False at padding
    global_tokens: int
    global_masked: int
    samples_B: Tensor  # int64, CPU: the place of each sequence in the stream that `source` names
    source: str = "train"  # the endless training stream; or an evaluation set: "heldout", "reference"

    @property
    def attended_BL(self) -> Tensor | None:
        """`real_BL`, or None where nothing is padding: attention is faster without a mask."""
        return None if bool((self.lengths_B == self.tokens_BL.shape[1]).all()) else self.real_BL

    def to(self, device: torch.device) -> "TokenBatch":
        """The batch with its large tensors on `device`; what counts and keys are made from stays on the CPU."""
        return dataclasses.replace(
            self,
            tokens_BL=self.tokens_BL.to(device, non_blocking=True),
            real_BL=self.real_BL.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class MaskedBatch:
    """Sequences with [MASK] at the chosen positions (section 2): what the auxiliary model reads."""

    original: TokenBatch
    tokens_BL: Tensor  # [MASK] at the masked positions
    positions_M: Tensor  # int64, flat indices of the masked positions
    keys_M: Tensor  # int64, the noise key of each masked position
    keys_B: Tensor  # int64, the noise key of each sequence


class Draws(NamedTuple):
    """One drawn token x_hat for each masked position, and what is known of the distribution it was drawn from.

    The two figures are None where they are not known: an offline store holds tokens only.
    """

    tokens_M: Tensor  # int64
    entropy_M: Tensor | None = None  # float32, nats
    original_M: Tensor | None = None  # float32: the probability of the original token


@dataclass(frozen=True)
class CorruptedBatch:
    """Sequences with replacements at the masked positions: what the main model (discriminator) reads."""

    masked: MaskedBatch
    tokens_BL: Tensor
    draws: Draws  # lucky guesses included
    replaced_BL: Tensor  # bool: x_hat != x, the label; False wherever nothing was masked
