"""Unpadded batches as the rectangles that models of transformers read, and back. Nothing waits for a device."""

from typing import NamedTuple

import torch
from torch import Tensor

from fast_electra.batch import Layout

WORTH = 0.875  # share of a rectangle's positions below which two smaller ones take its place


class Padded(NamedTuple):
    """The sequences of a micro-batch, padded to the longest: [B, L]."""

    ids_BL: Tensor  # int64
    mask_BL: Tensor  # int64: 1 at tokens, 0 at padding
    numbers_T: Tensor  # int64: number of each token's place, below B * L

    def tokens(self, x_BLD: Tensor) -> Tensor:
        """Return the rows of the tokens: [T, D]."""
        return x_BLD.flatten(0, 1).index_select(0, self.numbers_T)


def pad(tokens_T: Tensor, layout: Layout, pad_id: int) -> Padded:
    """Lay a micro-batch out as a rectangle."""
    shape = (len(layout.lengths_B), layout.longest)
    numbers_T = layout.sequence_T * layout.longest + layout.position_T
    ids_BL = tokens_T.new_full(shape, pad_id).view(-1).index_copy(0, numbers_T, tokens_T).view(shape)
    mask_BL = tokens_T.new_zeros(shape).view(-1).index_fill(0, numbers_T, 1).view(shape)
    return Padded(ids_BL, mask_BL, numbers_T)


def shorter(layout: Layout) -> Tensor | None:
    """Return which sequences, bool [B] on the CPU, have a rectangle of their own: the division with least padding.

    Return None if that saves little, or on a GPU, where each pass costs launches.
    """
    lengths_B = layout.lengths_B.sort(descending=True).values
    longer_B = torch.arange(len(lengths_B))
    positions_B = longer_B * lengths_B[0] + (len(lengths_B) - longer_B) * lengths_B  # if so many are not short
    best = int(positions_B.argmin())
    if layout.sequence_T.is_cuda or positions_B[best] > WORTH * positions_B[0]:
        return None
    return layout.lengths_B <= lengths_B[best]
