"""The spine: original sequences to corrupted ones. Training online and preprocessing offline both run these lines."""

import torch
from pydantic import Field

from fast_electra import randomness
from fast_electra.batch import CorruptedBatch, Draws, MaskedBatch, TokenBatch
from fast_electra.corpus.loader import masked_counts
from fast_electra.replacement.distribution import Distribution
from fast_electra.settings import Settings


class CorruptionSettings(Settings):
    """What is masked. The paper: 15% of the positions, special tokens never (appendix B)."""

    mask_fraction: float = Field(default=0.15, gt=0.0, lt=1.0)


def mask(batch: TokenBatch, seed: int, fraction: float, mask_id: int, stream: int = randomness.MASK) -> MaskedBatch:
    """Puts [MASK] at `fraction` of each sequence's positions, never at [CLS], [SEP] or padding.

    The positions with the smallest noise are taken. The noise of a position is a function of (seed, epoch, sequence,
    position); each masked position also gets the key from which its replacement is drawn. `stream` keeps apart the
    masks on which the auxiliary model is trained and those that it later fills.
    """
    b, length = batch.tokens_BL.shape
    device = batch.tokens_BL.device
    name_B1 = randomness.key(seed, batch.epochs_B, batch.sequences_B).to(device)[:, None]
    position_L = torch.arange(length, device=device)
    # Special positions sort last: [CLS] is the first, [SEP] the last real one, padding follows.
    lengths_B1 = batch.lengths_B.to(device, non_blocking=True)[:, None]
    special_BL = (position_L == 0) | (position_L >= lengths_B1 - 1)
    noise_BL = randomness.key(stream, name_B1, position_L)
    noise_BL = noise_BL.masked_fill(special_BL, torch.iinfo(torch.int64).max)
    order_BL = noise_BL.argsort(dim=1, stable=True)
    # Row and rank of each masked position are known from the lengths, on the CPU: no device is waited for.
    counts_B = masked_counts(batch.lengths_B, fraction)
    row_M = torch.repeat_interleave(torch.arange(b), counts_B)
    rank_M = torch.arange(len(row_M)) - torch.repeat_interleave(counts_B.cumsum(0) - counts_B, counts_B)
    row_M, rank_M = row_M.to(device, non_blocking=True), rank_M.to(device, non_blocking=True)
    column_M = order_BL[row_M, rank_M]
    positions_M = row_M * length + column_M
    tokens_BL = batch.tokens_BL.flatten().index_fill(0, positions_M, mask_id).view(b, length)
    keys_M = randomness.key(randomness.REPLACEMENT, name_B1[row_M, 0], column_M)
    return MaskedBatch(
        original=batch, tokens_BL=tokens_BL, positions_M=positions_M, keys_M=keys_M, keys_B=name_B1[:, 0]
    )


def corrupt(
    batch: TokenBatch, distribution: Distribution, value: float, *, seed: int, fraction: float, mask_id: int
) -> CorruptedBatch:
    """Masks the batch, draws a replacement for each masked position, and puts it in.

    Args:
        value: the curriculum's value at this update: the temperature T of Eq. 1, or another distribution's gamma.
    """
    masked = mask(batch, seed, fraction, mask_id)
    draws = distribution.sample(masked, value)
    return replace(masked, draws)


def replace(masked: MaskedBatch, draws: Draws) -> CorruptedBatch:
    """The corrupted sequences and their labels 1(x_hat != x): a lucky guess counts as original (section 2)."""
    original_BL = masked.original.tokens_BL
    tokens_BL = original_BL.flatten().index_copy(0, masked.positions_M, draws.tokens_M).view_as(original_BL)
    return CorruptedBatch(masked=masked, tokens_BL=tokens_BL, draws=draws, replaced_BL=tokens_BL != original_BL)
