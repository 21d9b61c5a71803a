"""Padded groups of sequences, for the attention backends that cannot read unpadded batches.

They are private to attention. Everything else works on T tokens; see `batch.Layout`.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fast_electra.batch import Layout, moved

SPARED = 4096  # pairs of positions that a rectangle of its own has to save for a sequence
AREA = 2**18  # pairs of positions of a rectangle on a CPU, so that they stay in its cache


class Rectangle(NamedTuple):
    """Some sequences of a micro-batch, padded to the longest of them: [b, l]."""

    sequences: int  # b
    length: int  # l
    rows: slice | Tensor  # tokens: a slice for one sequence, else int64 [b * l], with any token at padding
    padding: Tensor | None  # bool [b, l]: True at padding; None if there is none

    def of(self, x_T: Tensor) -> Tensor:
        """Return the rectangle's part of a tensor [T, ...]: [b, l, ...]."""
        part = x_T[self.rows] if isinstance(self.rows, slice) else x_T.index_select(0, self.rows)
        return part.unflatten(0, (self.sequences, self.length))

    def biases(self, bias_HLL: Tensor) -> list[Tensor]:
        """Return what is added to the scores [b, H, l, l]: the bias of each pair, and perhaps a mask of padding."""
        found = [bias_HLL[..., : self.length, : self.length]]
        if self.padding is not None:  # the lowest finite number, because a row of -inf alone would become NaN
            mask = torch.zeros_like(self.padding, dtype=bias_HLL.dtype)
            found.append(mask.masked_fill_(self.padding, torch.finfo(mask.dtype).min)[:, None, None])
        return found

    def without_padding(self, x: Tensor) -> Tensor:
        """Return x, [b, l, H, d], with zeros at padding."""
        return x if self.padding is None else x * ~self.padding[..., None, None]


class Rectangles(NamedTuple):
    """A micro-batch as rectangles, and the place of each token among them: int64 [T]."""

    parts: list[Rectangle]
    place_T: Tensor

    def joined(self, parts: list[Tensor]) -> Tensor:
        """Return [T, ...] from [b, l, ...] for each rectangle."""
        flat = [part.flatten(0, 1) for part in parts]
        return (torch.cat(flat) if len(flat) > 1 else flat[0]).index_select(0, self.place_T)


@lru_cache(maxsize=4)  # all layers of a pass read the same ones
def rectangles(layout: Layout, whole: bool) -> Rectangles:
    """Divide a micro-batch into rectangles: a single one if `whole`, as a GPU wants it, else small ones for a CPU.

    The sequences of a small one have nearly the same length, and its scores stay in a CPU's cache.
    """
    device, starts_B = layout.sequence_T.device, layout.lengths_B.cumsum(0) - layout.lengths_B
    order_B = layout.lengths_B.argsort(descending=True, stable=True)
    groups, first = [], 0
    for last, length in enumerate(layout.lengths_B[order_B].tolist() + [0]):
        longest = int(layout.lengths_B[order_B[first]])
        fits = longest**2 - length**2 <= SPARED and longest**2 * (last - first + 1) <= AREA
        if last == len(order_B) or not (whole or fits or last == first):
            groups.append(order_B[first:last])
            first = last
    parts, places, before = [], torch.empty(len(order_B), dtype=torch.int64), 0
    for sequence_b in groups:
        lengths_b, longest = layout.lengths_B[sequence_b], int(layout.lengths_B[sequence_b[0]])
        places[sequence_b] = before + longest * torch.arange(len(sequence_b))
        before += longest * len(sequence_b)
        position_L, start = torch.arange(longest), int(starts_B[sequence_b[0]])
        padding_bL = position_L >= lengths_b[:, None]
        rows: slice | Tensor = slice(start, start + longest)
        if len(sequence_b) > 1:
            rows = moved((starts_B[sequence_b][:, None] + position_L.where(~padding_bL, 0)).flatten(), device)
        padding = moved(padding_bL, device) if bool(padding_bL.any()) else None
        parts.append(Rectangle(len(sequence_b), longest, rows, padding))
    return Rectangles(parts, moved(places, device)[layout.sequence_T] + layout.position_T)


def pair_bias(bias_HR: Tensor) -> Tensor:
    """Return the bias of every (query, key) pair, [H, L, L], from that of each distance, [H, 2L - 1]."""
    # Of another order in memory, the result would be so too, and adding it would take ten times as long.
    heads_first = bias_HR.contiguous()
    return heads_first.unfold(1, bias_HR.shape[1] // 2 + 1, 1).flip(1)  # L - 1 from the last query to the first key


def distance_sums(grad_HLL: Tensor) -> Tensor:
    """Return the sum over all pairs of each distance, [H, 2L - 1]: the transpose of `pair_bias`."""
    heads, length, _ = grad_HLL.shape
    # Each row gets L zeros behind it, and the last row is cut short: then all pairs of one distance are in one column.
    skewed = F.pad(grad_HLL.flip(1), (0, length)).flatten(1)[:, : length * (2 * length - 1)]
    return skewed.view(heads, length, 2 * length - 1).sum(1)
