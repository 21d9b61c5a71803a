"""Unpadded batches as the rectangles that models of transformers read, and back. Nothing waits for a device."""

from typing import NamedTuple

from torch import Tensor

from fast_electra.batch import Layout


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
