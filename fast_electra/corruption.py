"""The spine: from original sequences to corrupted ones. Online training and offline preprocessing run these lines.

masked    = mask(batch, masking)                       # section 2
draws     = distribution.sample(masked, strength)      # Eq. 1, D.1, E.2, E.3
corrupted = replace(masked, draws)                     # label = (x_hat != x)
"""

from typing import NamedTuple

import torch
from pydantic import Field

from fast_electra import randomness
from fast_electra.batch import CorruptedBatch, Draws, MaskedBatch, TokenBatch, masked_counts
from fast_electra.replacement.distribution import Distribution
from fast_electra.settings import Settings


class CorruptionSettings(Settings):
    """Which share of the positions is masked. The paper masks 15%, and never special tokens (appendix B)."""

    mask_fraction: float = Field(default=0.15, gt=0.0, lt=1.0)


class Masking(NamedTuple):
    """How positions are chosen and what is written there."""

    seed: int
    fraction: float
    mask_id: int


def mask(batch: TokenBatch, masking: Masking, stream: int = randomness.MASK) -> MaskedBatch:
    """Put [MASK] at an exact fraction of each sequence's maskable positions (section 2).

    The positions with the smallest noise are masked. The noise of a position is a function of (seed, epoch, sequence,
    position). Each masked position also gets the key from which its replacement is drawn. `stream` is the
    stream of noise: the auxiliary model is trained with another one than it is used with.
    """
    b, length = batch.tokens_BL.shape
    device = batch.tokens_BL.device
    name_B1 = randomness.key(masking.seed, batch.epochs_B, batch.sequences_B).to(device)[:, None]
    noise_BL = randomness.key(stream, name_B1, torch.arange(length, device=device))
    noise_BL = noise_BL.masked_fill(~batch.maskable_BL, torch.iinfo(torch.int64).max)  # sorts last
    order_BL = noise_BL.argsort(dim=1, stable=True)
    # Row and rank of each masked position follow from the lengths, which are on the CPU: nothing waits for a device.
    counts_B = masked_counts(batch.lengths_B, masking.fraction)
    row_M = torch.repeat_interleave(torch.arange(b), counts_B)
    rank_M = torch.arange(len(row_M)) - torch.repeat_interleave(counts_B.cumsum(0) - counts_B, counts_B)
    row_M, rank_M = row_M.to(device, non_blocking=True), rank_M.to(device, non_blocking=True)
    column_M = order_BL[row_M, rank_M]
    positions_M = row_M * length + column_M
    return MaskedBatch(
        original=batch,
        tokens_BL=batch.tokens_BL.flatten().index_fill(0, positions_M, masking.mask_id).view(b, length),
        positions_M=positions_M,
        keys_M=randomness.key(randomness.REPLACEMENT, name_B1[row_M, 0], column_M),
        keys_B=name_B1[:, 0],
    )


def corrupt(batch: TokenBatch, masking: Masking, distribution: Distribution, strength: float) -> CorruptedBatch:
    """Mask the batch, draw a replacement for each masked position, and put it in.

    The strength says how much p(x_hat) is smoothed at this update: the temperature T of Eq. 1, or gamma of E.2.
    """
    masked = mask(batch, masking)
    return replace(masked, distribution.sample(masked, strength))


def replace(masked: MaskedBatch, draws: Draws) -> CorruptedBatch:
    """Return the corrupted sequences and their labels 1(x_hat != x): a lucky guess counts as original (section 2)."""
    original_BL = masked.original.tokens_BL
    tokens_BL = original_BL.flatten().index_copy(0, masked.positions_M, draws.tokens_M).view_as(original_BL)
    return CorruptedBatch(masked=masked, tokens_BL=tokens_BL, draws=draws, replaced_BL=tokens_BL != original_BL)
