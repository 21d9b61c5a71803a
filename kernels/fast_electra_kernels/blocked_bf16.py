"""`blocked` for bfloat16 on a CPU that multiplies in it: rounded products find the few tokens that can win.

The matrix library's bf16 product is several times faster than one in float32. It accumulates in float32, but rounds its
result to bfloat16. So each rounded score stands for an interval. A token is kept if the upper end of its perturbed
score beats the best lower end so far. One or two tokens a row are left, and their scores in float32 decide.

The statistics are sums over the rounded scores. A shift, close to the row's highest logit, is subtracted within the
product, before the rounding. So likely tokens are close to zero, where bfloat16 is fine. Tokens with a large part of a
row's sum are kept too, and enter the sums with their scores in float32. Scores are in bits here (units of log 2),
because torch's exp2 is several times faster than its exp.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fast_electra_kernels.contract import NEVER, Request, SampleResult, Statistics, scores
from fast_electra_kernels.noise import GROUP, group_least, group_winner, token_exponentials
from fast_electra_kernels.workspace import block_shape, ceil_div, slices

BIT = math.log(2.0)  # nats
NEVER_BITS = NEVER * 1e-9  # a lower score marks a token that is never drawn
ROUNDING = 1 / 250  # rounding to bfloat16 moves a number by at most 1/256 of it
SLACK = 2.0**-12  # for the roundings in float32; far more than they need
NEAR = 4.0 / BIT  # bits: the shift moves if the highest score of a block is farther above it
HEAVY = 5.0  # bits: a token with more than 1/32 of the sum of a row is kept, because its rounding would show in the sum
CACHED = 1 << 18  # scores that are worked on at a time: they fit into the second-level cache


class _Head(NamedTuple):
    """What the scores of all rows have in common, in bits; G groups of C tokens."""

    factor: float  # of the logits
    offset_GC: Tensor  # added to the scaled logits; at most 0, and -inf where the last group has no token
    size_GC: Tensor  # its absolute value, 0 for tokens that are never drawn
    most_G: Tensor  # the highest of each group
    lift: float  # what the offsets lack

    def part(self, groups: slice) -> "_Head":
        """Return the part for some groups."""
        return self._replace(offset_GC=self.offset_GC[groups], size_GC=self.size_GC[groups], most_G=self.most_G[groups])


class _Found(NamedTuple):
    """T tokens that can win, or that have a large part of the sums."""

    row_T: Tensor
    token_T: Tensor
    score_T: Tensor  # bits
    radius_T: Tensor  # bits: the true score is so close
    least_T: Tensor  # of the token's group
    winner_T: Tensor


def sample(request: Request) -> SampleResult:
    """Draw for one block of rows after another, each over all blocks of the vocabulary."""
    height, width = block_shape(len(request.hidden_MD), len(request.weight_VD), on_gpu=False, rounded=True)
    head = _head(request)
    parts = []
    for rows in slices(len(request.hidden_MD), height):
        search = _Search(request, head, rows, width)
        for tokens in slices(len(request.weight_VD), width):
            search.add(tokens)
        parts.append(search.result())
    return SampleResult.joined(parts)


def _head(request: Request) -> _Head:
    """Gather what is added to the scaled logits."""
    vocabulary, factor = len(request.weight_VD), request.scale / BIT
    offset_V = torch.zeros(ceil_div(vocabulary, GROUP) * GROUP, dtype=torch.float32)
    offset_V[vocabulary:] = -torch.inf
    if request.bias_V is not None:
        offset_V[:vocabulary].add_(request.bias_V.float(), alpha=factor)
    if request.prior_V is not None:
        offset_V[:vocabulary].add_(request.prior_V.float(), alpha=1 / BIT)
    highest = float(offset_V.max())
    lift = highest if math.isfinite(highest) else 0.0
    offset_GC = offset_V.sub_(lift).view(-1, GROUP)
    size_GC = torch.where(offset_GC > NEVER_BITS, offset_GC.abs(), 0.0)
    return _Head(factor, offset_GC, size_GC, size_GC.amax(1), lift)


class _Search:
    """The tokens that can win, and sums over all tokens, of R rows among the blocks that were added."""

    def __init__(self, request: Request, head: _Head, rows: slice, width: int) -> None:
        self.request, self.head, self.rows = request, head, rows
        self.hidden_RD, self.keys_R = request.hidden_MD[rows], request.keys_M[rows]
        self.top_R = torch.full_like(self.keys_R, -torch.inf, dtype=torch.float32)  # highest score; NaN if any is NaN
        self.best_R = self.top_R.clone()  # the best token's score plus noise is at least this
        self.base_R = torch.zeros_like(self.top_R)  # the shift in bits; the scores of a block are relative to it
        self.shift_R = self.base_R.bfloat16()  # of the logits
        self.sum_R, self.mean_R = self.base_R.clone(), self.base_R.clone()  # of 2^s and s 2^s, s relative to the base
        self.found: list[_Found] = []
        self.memory = self.shift_R.new_empty(width * len(self.shift_R))

    def add(self, tokens: slice) -> None:
        """Search a block that begins at a multiple of GROUP."""
        groups = slice(tokens.start // GROUP, ceil_div(tokens.stop, GROUP))
        head = self.head.part(groups)
        rounded_GCR = self._product(tokens, slice(None), self.memory)
        highest_GR = self._highest(head, rounded_GCR)
        top_R = highest_GR.amax(0)
        far_R = (top_R > NEAR) | ((top_R > NEVER_BITS) & (top_R < -NEAR) & (self.top_R < NEVER_BITS))
        far_K = (far_R & top_R.isfinite()).nonzero()[:, 0]
        if head.factor and len(far_K):
            self._move(far_K, top_R[far_K])
            if len(far_K) > len(far_R) // 2:  # as in the first block
                highest_GR = self._highest(head, self._product(tokens, slice(None), self.memory))
            else:
                memory = self.memory.new_empty(rounded_GCR[..., 0].numel() * len(far_K))
                rounded_GCK = self._product(tokens, far_K, memory)
                highest_GR.index_copy_(1, far_K, self._highest(head, rounded_GCK))
                rounded_GCR.index_copy_(2, far_K, rounded_GCK)
            top_R = highest_GR.amax(0)
        self.top_R = torch.maximum(self.top_R, top_R.add_(self.base_R))
        heavy_R = torch.full_like(self.top_R, torch.inf)
        if self.request.original_M is not None:
            self._sum(head, rounded_GCR)
            heavy_R = self._heavy_R()
        self._find(groups, head, rounded_GCR, highest_GR, heavy_R)

    def _product(self, tokens: slice, rows: slice | Tensor, memory: Tensor) -> Tensor:
        """Write the logits of a block minus the shift, rounded, into some memory; return them as [G, GROUP, rows]."""
        weight_CD, hidden_DR, shift_R = self.request.weight_VD[tokens], self.hidden_RD[rows].t(), self.shift_R[rows]
        count, full, height = len(weight_CD), ceil_div(len(weight_CD), GROUP) * GROUP, len(shift_R)
        rounded_CR = memory[: full * height].view(full, height)
        torch.addmm(-shift_R.expand(count, -1), weight_CD, hidden_DR, out=rounded_CR[:count])
        rounded_CR[count:] = 0.0
        return rounded_CR.unflatten(0, (-1, GROUP))

    def _scored(self, head: _Head, rounded_GCR: Tensor) -> Iterator[Tensor]:
        """Yield the scores of a few groups at a time."""
        for some in slices(len(rounded_GCR), max(1, CACHED // max(1, rounded_GCR[0].numel()))):
            scores_GCR = rounded_GCR[some].float()
            yield torch.add(head.offset_GC[some, :, None], scores_GCR, alpha=head.factor, out=scores_GCR)

    def _highest(self, head: _Head, rounded_GCR: Tensor) -> Tensor:
        """Return the highest score of each group."""
        return torch.cat([scores_GCR.amax(1) for scores_GCR in self._scored(head, rounded_GCR)])

    def _move(self, rows_K: Tensor, rise_K: Tensor) -> None:
        """Move the shift of some rows, by so many bits at least."""
        before_K, sum_K = self.base_R[rows_K], self.sum_R[rows_K]
        self.shift_R[rows_K] = ((before_K + rise_K) / self.head.factor).bfloat16()
        self.base_R[rows_K] = self.shift_R[rows_K].float() * self.head.factor
        rise_K = (self.base_R[rows_K] - before_K).clamp_(min=0)  # where it falls, the sums are still 0
        self.mean_R[rows_K] = (self.mean_R[rows_K] - sum_K * rise_K) * torch.exp2(-rise_K)
        self.sum_R[rows_K] = sum_K * torch.exp2(-rise_K)

    def _sum(self, head: _Head, rounded_GCR: Tensor) -> None:
        """Add a block to the sums of the statistics."""
        for scores_GCR in self._scored(head, rounded_GCR):
            scores_CR = scores_GCR.flatten(0, 1)
            weights_CR = torch.exp2(scores_CR)
            self.sum_R += weights_CR.sum(0)
            mean_R = weights_CR.mul_(scores_CR).sum(0)
            if bool(mean_R.isnan().any()):  # from 0 * -inf, or from a NaN that is refused later
                mean_R = torch.exp2(scores_CR, out=weights_CR).mul_(scores_CR.clamp_(min=NEVER)).sum(0)
            self.mean_R += mean_R

    def _find(self, groups: slice, head: _Head, rounded_GCR: Tensor, highest_GR: Tensor, heavy_R: Tensor) -> None:
        """Find the tokens of a block that can beat the best so far, and those above a score."""
        numbers_G = torch.arange(groups.start, groups.stop, dtype=torch.int32)
        least_GR, winner_GR = (noise(self.keys_R, numbers_G).t() for noise in (group_least, group_winner))
        log_least_GR, slack_R = least_GR.log2(), (self.base_R.abs() + 1.0) * SLACK
        if bool((self.best_R == -torch.inf).any()):  # begin with the token of each group that has the most noise
            place_GR = (winner_GR & (GROUP - 1)).long()
            sure_GR = rounded_GCR.gather(1, place_GR[:, None])[:, 0].float()
            sure_GR = sure_GR.mul_(head.factor).add_(head.offset_GC.gather(1, place_GR))
            sure_GR -= (sure_GR.abs() + head.size_GC.gather(1, place_GR)) * ROUNDING + log_least_GR
            self.best_R = torch.maximum(self.best_R, sure_GR.amax(0) - slack_R + self.base_R)
        # Groups that may hold such a token, then the tokens of them.
        beat_R = self.best_R - self.base_R - slack_R
        above_GR = highest_GR.add(highest_GR.abs().add_(head.most_G[:, None]), alpha=ROUNDING).sub_(log_least_GR)
        group_K, row_K = ((above_GR > beat_R) | (highest_GR > heavy_R)).nonzero(as_tuple=True)
        score_KC = rounded_GCR[group_K, :, row_K].float().mul_(head.factor).add_(head.offset_GC[group_K])
        radius_KC = (score_KC.abs() + head.size_GC[group_K]).mul_(ROUNDING)
        beat_K = beat_R[row_K] + log_least_GR[group_K, row_K]
        keep_KC = (score_KC + radius_KC > beat_K[:, None]) | (score_KC > heavy_R[row_K, None])
        index_T, offset_T = keep_KC.nonzero(as_tuple=True)
        group_T, row_T = group_K[index_T], row_K[index_T]
        token_T = ((group_T + groups.start) * GROUP + offset_T).int()
        score_T = score_KC[index_T, offset_T] + self.base_R[row_T]
        radius_T = radius_KC[index_T, offset_T] + slack_R[row_T]
        noise_T = least_GR[group_T, row_T], winner_GR[group_T, row_T]
        self.found.append(_Found(row_T, token_T, score_T, radius_T, *noise_T))
        if sum(len(part.row_T) for part in self.found) > 4 * len(self.keys_R):
            self._narrow()

    def _heavy_R(self) -> Tensor:
        """Return the scores, relative to the base, above which tokens are kept for the sums."""
        return self.sum_R.clamp(min=1e-30).log2_().sub_(HEAVY)

    def _narrow(self) -> tuple[_Found, Tensor]:
        """Forget the tokens found that are not needed any more; return the others and their exponentials."""
        found = _Found(*map(torch.cat, zip(*self.found, strict=True)))
        columns = (tensor[:, None] for tensor in (found.token_T, found.least_T, found.winner_T))
        exponential_T = token_exponentials(self.keys_R[found.row_T], *columns)[:, 0]
        perturbed_T = found.score_T - exponential_T.log2()
        self.best_R = self.best_R.scatter_reduce(0, found.row_T, perturbed_T - found.radius_T, "amax")
        keep_T = perturbed_T + found.radius_T >= self.best_R[found.row_T]
        if self.request.original_M is not None:
            keep_T |= found.score_T > (self._heavy_R() + self.base_R)[found.row_T]
        self.found = [_Found(*(tensor[keep_T] for tensor in found))]
        return self.found[0], exponential_T[keep_T]

    def result(self) -> SampleResult:
        """Return the draws. The tokens that can win get their scores in float32 here."""
        found, exponential_T = self._narrow()
        row_T, token_T = found.row_T, found.token_T.long()
        row_M = row_T + self.rows.start
        score_T = torch.cat([scores(self.request, row_M[p], token_T[p]) for p in slices(len(row_T), 512)])
        perturbed_T = score_T - exponential_T.log()
        ids_R, score_R = torch.zeros_like(self.keys_R), torch.full_like(self.top_R, -torch.inf)
        won_T = perturbed_T == score_R.scatter_reduce(0, row_T, perturbed_T, "amax")[row_T]
        ids_R[row_T[won_T]], score_R[row_T[won_T]] = token_T[won_T], score_T[won_T]
        statistics = None
        if self.request.original_M is not None:
            original_R = scores(self.request, self.rows, self.request.original_M[self.rows])
            statistics = self._statistics(found, score_T, score_R, original_R)
        return SampleResult(ids_R, self.top_R.abs() < torch.inf, statistics)

    def _statistics(self, found: _Found, score_T: Tensor, score_R: Tensor, original_R: Tensor) -> Statistics:
        """Put the exact scores of the tokens found into the sums, in place of the rounded ones; return statistics."""
        row_T, exact_T = found.row_T, score_T / BIT - self.head.lift
        for bits_T, sign in ((exact_T - self.base_R[row_T], 1), (found.score_T - self.base_R[row_T], -1)):
            self.sum_R.index_add_(0, row_T, torch.exp2(bits_T), alpha=sign)
            self.mean_R.index_add_(0, row_T, torch.exp2(bits_T) * bits_T, alpha=sign)
        log_sum_R = self.sum_R.log2()
        entropy_R = (log_sum_R - self.mean_R / self.sum_R).mul_(BIT).clamp_(min=0.0)
        log_sum_R.add_(self.base_R).add_(self.head.lift).mul_(BIT)
        # The other tokens are rounded, so a probability of 1 may come out a little higher.
        return Statistics((score_R - log_sum_R).clamp_(max=0.0), (original_R - log_sum_R).clamp_(max=0.0), entropy_R)
