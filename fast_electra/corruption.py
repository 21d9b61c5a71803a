"""The spine: from original sequences to corrupted ones. Online training and offline preprocessing run these lines.

masked    = mask(batch, masking)                       # section 2
draws     = distribution.sample(masked, strength)      # Eq. 1, D.1, E.2, E.3
corrupted = replace(masked, draws)                     # label = (x_hat != x)
"""

from typing import NamedTuple

import torch
from pydantic import Field

from fast_electra import randomness
from fast_electra.batch import CorruptedBatch, Draws, MaskedBatch, TokenBatch, masked_counts, moved
from fast_electra.replacement.distribution import Distribution
from fast_electra.settings import Settings


class CorruptionSettings(Settings):
    """Which share of the positions is masked. The paper masks 15%, and never special tokens (appendix B)."""

    mask_fraction: float = Field(default=0.15, gt=0.0, lt=1.0)


class Masking(NamedTuple):
    """How many positions are masked, and what is written there."""

    fraction: float
    mask_id: int


def mask(batch: TokenBatch, masking: Masking, stream: int = randomness.MASK) -> MaskedBatch:
    """Put [MASK] at an exact fraction of each sequence's maskable positions (section 2).

    The positions with the smallest noise are masked. The noise of a position is a function of (seed, epoch, sequence,
    position). Each masked position also gets the key from which its replacement is drawn. `stream` is the
    stream of noise: the auxiliary model is trained with another one than it is used with.
    """
    layout = batch.layout
    key_T = layout.keys_B[layout.sequence_T]
    noise_T = randomness.key(stream, key_T, layout.position_T)
    order_T = layout.order(noise_T, layout.maskable_T)
    # The first `counts_B` of each sequence are masked. Where they are follows from the lengths, which are on the CPU,
    # so nothing waits for a device.
    counts_B = masked_counts(layout.lengths_B, masking.fraction)
    unmasked_B = layout.lengths_B - counts_B
    unmasked_M = torch.repeat_interleave(unmasked_B.cumsum(0) - unmasked_B, counts_B)
    positions_M = order_T[moved(torch.arange(len(unmasked_M)) + unmasked_M, batch.tokens_T.device)]
    return MaskedBatch(
        original=batch,
        tokens_T=batch.tokens_T.index_fill(0, positions_M, masking.mask_id),
        positions_M=positions_M,
        keys_M=randomness.key(randomness.REPLACEMENT, key_T[positions_M], layout.position_T[positions_M]),
    )


def corrupt(batch: TokenBatch, masking: Masking, distribution: Distribution, strength: float) -> CorruptedBatch:
    """Mask the batch, draw a replacement for each masked position, and put it in.

    The strength says how much p(x_hat) is smoothed at this update: the temperature T of Eq. 1, or gamma of E.2.
    """
    masked = mask(batch, masking)
    return replace(masked, distribution.sample(masked, strength))


def replace(masked: MaskedBatch, draws: Draws) -> CorruptedBatch:
    """Return the corrupted sequences and their labels 1(x_hat != x): a lucky guess counts as original (section 2)."""
    original_T = masked.original.tokens_T
    tokens_T = original_T.index_copy(0, masked.positions_M, draws.tokens_M)
    return CorruptedBatch(masked=masked, tokens_T=tokens_T, draws=draws, replaced_T=tokens_T != original_T)
