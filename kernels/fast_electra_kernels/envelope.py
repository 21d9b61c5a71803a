"""The upper envelope of many lines: which line is highest at each coordinate, for many positions at once.

With the noise fixed, the token drawn at a position is the argmax over tokens of slope * t + intercept. The coordinate t
is 1/T for a temperature T (the slope is the logit, the intercept is the noise) or gamma for an interpolation. As t
moves, the argmax changes only where two lines cross, so a few pieces give the drawn token at every t, exactly.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fast_electra_kernels.autocast import without_autocast

# Scores in memory at a time.
_BLOCK_CPU, _BLOCK_GPU = 1 << 22, 1 << 26


class Pieces(NamedTuple):
    """The winners of M positions along the coordinate; piece k of a position is valid for starts_k <= t < starts_{k+1}.

    P is the number of pieces of all positions, ordered by position and then by coordinate.
    """

    counts_M: Tensor  # int64 [M], number of pieces of each position, at least 1
    tokens_P: Tensor  # int64 [P], the winners
    starts_P: Tensor  # float32 [P], where each piece begins: strictly rising within a position, -inf for its first


@torch.no_grad()
@without_autocast()
def envelope(slopes_MC: Tensor, intercepts_MC: Tensor, low: float, high: float) -> Pieces:
    """Return the pieces of argmax over columns of slopes * t + intercepts, for t in [low, high].

    The search takes the argmax at both ends. If the two winners differ, it evaluates all lines where those two cross.
    A third winner there splits the interval, and the search continues in both parts. The slopes of winners rise
    strictly with t. A winner that breaks this rule is a rounding tie and ends the search in its interval. Wherever the
    lines were evaluated, the ends included, the pieces give the winner found there. Elsewhere they differ from an
    argmax in float32 only by rounding ties.

    Slopes and intercepts are float32 or float64 [M, C] and finite; NEVER marks a line that must not win. Both
    coordinates are rounded to float32, like the sampler's scale. The tokens of the pieces are column numbers. Below
    `low` they give the winner at `low`; above `high`, that at `high`.

    Raises:
        ValueError: for wrong shapes or coordinates, and for values without a highest line (NaN, +inf).
    """
    if slopes_MC.dim() != 2 or slopes_MC.shape != intercepts_MC.shape or slopes_MC.shape[1] == 0:
        shapes = f"{slopes_MC.shape} and {intercepts_MC.shape}"
        raise ValueError(f"slopes and intercepts must be [M, C] with C > 0: {shapes}")
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"coordinates must be finite, low at most high, not {low} and {high}")
    m, device = slopes_MC.shape[0], slopes_MC.device
    row = torch.arange(m, device=device)
    # Intervals [a, b] that are still to be searched, with the winners at their ends.
    a, b = (torch.full((m,), t, dtype=torch.float32, device=device) for t in (low, high))
    left, right = (_highest(slopes_MC, intercepts_MC, row, t) for t in (a, b))
    rows, tokens, starts = [row], [left], [torch.full_like(a, -torch.inf)]  # of the pieces found so far
    while True:
        row, a, b, left, right = _keep(left != right, row, a, b, left, right)
        if not len(row):
            break
        rising = slopes_MC[row, left] < slopes_MC[row, right]
        inside, t = _crossing(slopes_MC, intercepts_MC, row, left, right, a, b)
        # There is no coordinate between the ends: the winner changes at the one nearest to the crossing.
        settled = ~(rising & inside)
        rows, tokens, starts = [*rows, row[settled]], [*tokens, right[settled]], [*starts, t[settled]]

        row, a, b, left, right, t = _keep(~settled, row, a, b, left, right, t)
        middle = _highest(slopes_MC, intercepts_MC, row, t)
        slope = slopes_MC[row, middle]
        split = (slopes_MC[row, left] < slope) & (slope < slopes_MC[row, right])
        # One of the two wins where they cross: `right` from there on, or still `left` there and `right` just after.
        change = torch.where(middle == left, t.nextafter(torch.full_like(t, torch.inf)), t)
        rows, tokens, starts = [*rows, row[~split]], [*tokens, right[~split]], [*starts, change[~split]]

        row, a, b, left, right, t, middle = _keep(split, row, a, b, left, right, t, middle)
        row, a, b = torch.cat([row, row]), torch.cat([a, t]), torch.cat([t, b])
        left, right = torch.cat([left, middle]), torch.cat([middle, right])
    return _in_order(torch.cat(rows), torch.cat(tokens), torch.cat(starts), m)


@without_autocast()
def winners(pieces: Pieces, t: float) -> Tensor:
    """Return the winner of each position at the coordinate `t`, int64 [M]."""
    end_M = pieces.counts_M.cumsum(0)
    first_M = end_M - pieces.counts_M
    begun_P = (pieces.starts_P <= torch.tensor(t, dtype=torch.float32, device=end_M.device)).long().cumsum(0)
    before_M = torch.cat([begun_P.new_zeros(1), begun_P])[first_M]
    return pieces.tokens_P[first_M + begun_P[end_M - 1] - before_M - 1]  # a position's first piece begins at -inf


@without_autocast()
def concatenate(parts: list[Pieces]) -> Pieces:
    """Join the pieces of one or more blocks of positions, in order."""
    return Pieces(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _keep(mask: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor[mask] for tensor in tensors)


def _highest(slopes_MC: Tensor, intercepts_MC: Tensor, row_I: Tensor, t_I: Tensor) -> Tensor:
    """Return the winning column of each row at its coordinate, int64 [I]; multiplies, then adds, like the sampler."""
    block = max(1, (_BLOCK_GPU if slopes_MC.is_cuda else _BLOCK_CPU) // slopes_MC.shape[1])
    winner_I = torch.empty_like(row_I)
    for start in range(0, len(row_I), block):
        part = slice(start, start + block)
        scores = slopes_MC[row_I[part]] * t_I[part, None].to(slopes_MC.dtype)
        best, winner_I[part] = scores.add_(intercepts_MC[row_I[part]]).max(dim=1)
        if not bool((best < torch.inf).all()):  # NaN and +inf both fail
            raise ValueError("slopes or intercepts hold NaN or +inf")
    return winner_I


def _crossing(
    slopes_MC: Tensor, intercepts_MC: Tensor, row: Tensor, left: Tensor, right: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """Return whether two lines cross strictly between a and b, and where (if not: the nearest place in (a, b])."""
    rise = slopes_MC[row, right].double() - slopes_MC[row, left].double()
    t = ((intercepts_MC[row, left].double() - intercepts_MC[row, right].double()) / rise).float()
    t = torch.where(t.isfinite(), t, b)  # parallel
    return (a < t) & (t < b), torch.minimum(torch.maximum(t, a.nextafter(b)), b)


def _in_order(row_P: Tensor, token_P: Tensor, start_P: Tensor, m: int) -> Pieces:
    """Sort pieces by row, then by start. A row has no start twice, because its intervals are disjoint."""
    by_start = start_P.argsort(stable=True)
    order = by_start[row_P[by_start].argsort(stable=True)]
    return Pieces(torch.bincount(row_P, minlength=m), token_P[order], start_P[order])
