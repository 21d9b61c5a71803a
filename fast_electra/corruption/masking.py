"""Which positions are masked: an exact fraction of the non-special ones, by counter-based noise (section 2)."""

import torch

from fast_electra import randomness
from fast_electra.batch import MaskedBatch, TokenBatch
from fast_electra.corpus.loader import masked_counts


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
