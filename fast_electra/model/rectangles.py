"""Rectangles of sequences: what attention without a kernel for unpadded batches computes on.

They are private to attention. Everything else works on T tokens; see `batch.Layout`.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fast_electra.batch import Layout

SPARED = 4096  # pairs of positions: if one more rectangle saves fewer, it costs more than it saves
AREA = 2**18  # pairs of positions of a rectangle on a CPU, so that they stay in its cache


class Rectangle(NamedTuple):
    """Some sequences of a micro-batch, padded to the longest of them: [b, l]."""

    sequence_b: Tensor  # int64, their numbers
    length: int  # l
    rows: slice | Tensor  # tokens: a slice for one sequence, else int64 [b * l], with any token at padding
    real: Tensor | None  # int64: which of the b * l places are tokens; None if all are
    padding: Tensor | None  # bool [b, 1, 1, l]: True at padding; None if there is none

    def of(self, x_T: Tensor) -> Tensor:
        """Return the rectangle's part of a tensor [T, ...]: [b, l, ...]."""
        return x_T[self.rows].unflatten(0, (len(self.sequence_b), self.length))

    def put(self, out_T: Tensor, x: Tensor) -> None:
        """Write x, [b, l, ...], to its tokens in a tensor [T, ...]."""
        if self.real is None:
            out_T[self.rows] = x.flatten(0, 1)
        else:
            assert isinstance(self.rows, Tensor)
            out_T[self.rows[self.real]] = x.flatten(0, 1)[self.real]


@lru_cache(maxsize=4)  # all layers of a pass read the same ones
def rectangles(layout: Layout, whole: bool) -> list[Rectangle]:
    """Divide a micro-batch into rectangles: a single one if `whole`, as a GPU wants it, else small ones for a CPU.

    The sequences of a small one have nearly the same length, and its scores stay in a CPU's cache.
    """
    groups: list[list[int]] = []
    longest = 0
    for sequence in layout.lengths_B.argsort(descending=True, stable=True).tolist():
        if (length := int(layout.lengths_B[sequence])) == 0:
            break
        fits = longest**2 - length**2 <= SPARED and longest**2 * (len(groups[-1]) + 1) <= AREA if groups else False
        if groups and (whole or fits):
            groups[-1].append(sequence)
        else:
            groups.append([sequence])
            longest = length
    return [_rectangle(layout, torch.tensor(group)) for group in groups]


def _rectangle(layout: Layout, sequence_b: Tensor) -> Rectangle:
    device = layout.sequence_T.device
    lengths_b = layout.lengths_B[sequence_b]
    starts_b = (layout.lengths_B.cumsum(0) - layout.lengths_B)[sequence_b]
    longest = int(lengths_b[0])
    if len(sequence_b) == 1:
        rows = slice(int(starts_b[0]), int(starts_b[0]) + longest)
        return Rectangle(sequence_b.to(device), longest, rows, None, None)
    position_L = torch.arange(longest)
    real_bL = position_L < lengths_b[:, None]
    rows_N = (starts_b[:, None] + torch.where(real_bL, position_L, 0)).flatten().to(device)
    if bool(real_bL.all()):
        return Rectangle(sequence_b.to(device), longest, rows_N, None, None)
    real_N = real_bL.flatten().nonzero().squeeze(1).to(device)
    return Rectangle(sequence_b.to(device), longest, rows_N, real_N, ~real_bL[:, None, None].to(device))


def pair_bias(bias_HR: Tensor) -> Tensor:
    """Return the bias of every (query, key) pair, [H, L, L], from that of each distance, [H, 2L - 1]."""
    return bias_HR.unfold(1, bias_HR.shape[1] // 2 + 1, 1).flip(1)  # the last query is L - 1 away from the first key


def distance_sums(grad_HLL: Tensor) -> Tensor:
    """Return the sum over all pairs of each distance, [H, 2L - 1]: the transpose of `pair_bias`."""
    heads, length, _ = grad_HLL.shape
    # With L zeros behind each row, and the last row cut short, pairs of one distance stand in one column.
    skewed = F.pad(grad_HLL.flip(1), (0, length)).flatten(1)[:, : length * (2 * length - 1)]
    return skewed.view(heads, length, 2 * length - 1).sum(1)
