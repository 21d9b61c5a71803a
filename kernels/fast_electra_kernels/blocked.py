"""`sample` by blocks of logits from the matrix library: for a CPU, and for a GPU without Triton.

A block's logits are made, reduced to the highest one of each group of neighbouring tokens, and forgotten. A group's
highest score and its least exponential bound what any of its tokens can reach (see `noise`), so that only the few
groups whose bound beats the best token so far are looked into. Nothing of the size [M, V] ever exists.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fast_electra_kernels.noise import GROUP, group_least, group_winner, token_exponentials
from fast_electra_kernels.result import NEVER, Drawn, Statistics
from fast_electra_kernels.workspace import BLOCK_CPU, BLOCK_GPU, block_shape

_FIRST = 4  # groups of a row that are looked into before it is asked which others can still win


def sample(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    scale: float,
    prior_V: Tensor | None,
    keys_M: Tensor,
    original_M: Tensor | None,
) -> Drawn:
    """See `fast_electra_kernels.sample`."""
    vocabulary = len(weight_VD)
    parts = []
    height, width = block_shape(len(hidden_MD), vocabulary, hidden_MD.is_cuda)
    for rows in _slices(len(hidden_MD), height):
        search = _Search(keys_M[rows], scale, vocabulary, original_M is not None)
        for tokens in _slices(vocabulary, width):
            logits_RC = logits(hidden_MD[rows], weight_VD[tokens], None if bias_V is None else bias_V[tokens])
            search.look(logits_RC, tokens.start, None if prior_V is None else prior_V[tokens])
        original_score_R = None
        if original_M is not None:
            original_R = original_M[rows]
            original_score_R = (hidden_MD[rows].float() * weight_VD[original_R].float()).sum(1)
            if bias_V is not None:
                original_score_R += bias_V[original_R]
            original_score_R *= scale
            if prior_V is not None:
                original_score_R += prior_V[original_R]
        parts.append(search.result(original_score_R))
    return Drawn.joined(parts, hidden_MD.device, original_M is not None)


def sample_logits(logits_MV: Tensor, keys_M: Tensor, original_M: Tensor) -> Drawn:
    """See `fast_electra_kernels.sample_logits`."""
    m, vocabulary = logits_MV.shape
    parts = []
    height, width = block_shape(m, vocabulary, logits_MV.is_cuda)
    for rows in _slices(m, height):
        search = _Search(keys_M[rows], 1.0, vocabulary, True)
        for tokens in _slices(vocabulary, width):
            search.look(logits_MV[rows, tokens].float(), tokens.start, None)
        parts.append(search.result(logits_MV[rows].gather(1, original_M[rows, None])[:, 0].float()))
    return Drawn.joined(parts, logits_MV.device, True)


def logits(hidden_RD: Tensor, weight_CD: Tensor, bias_C: Tensor | None) -> Tensor:
    """hidden @ weight.T + bias, accumulated and kept in float32 whatever the dtypes are: [R, C]."""
    if hidden_RD.dtype == torch.float32:
        return torch.nn.functional.linear(hidden_RD, weight_CD, bias_C)
    if hidden_RD.is_cuda:
        product_RC = torch.mm(hidden_RD, weight_CD.t(), out_dtype=torch.float32)
        return product_RC if bias_C is None else product_RC.add_(bias_C)
    return torch.nn.functional.linear(hidden_RD.float(), weight_CD.float(), None if bias_C is None else bias_C.float())


class _Search:
    """The best token of each of R rows, over the blocks of the vocabulary that were looked at."""

    def __init__(self, keys_R: Tensor, scale: float, vocabulary: int, with_statistics: bool) -> None:
        self.keys_R, self.scale, self.with_statistics = keys_R, scale, with_statistics
        self.best_R = torch.full(keys_R.shape, -torch.inf, device=keys_R.device)  # score and noise
        self.score_R = self.best_R.clone()  # without the noise
        self.ids_R = torch.zeros_like(keys_R)
        self.top_R = self.best_R.clone()  # the highest score; NaN if any is NaN
        self.sums: list[tuple[Tensor, Tensor]] = []  # of each block: its log-sum-exp, its mean score

    def look(self, logits_RC: Tensor, first: int, prior_C: Tensor | None) -> None:
        """Takes in the logits (overwritten) of the tokens from `first` on, a multiple of GROUP."""
        r, c = logits_RC.shape
        scores_RC, scale = logits_RC, self.scale
        if prior_C is not None or c % GROUP:
            scores_RC, scale = scores_RC.mul_(scale), 1.0
        if prior_C is not None:
            scores_RC.add_(prior_C)
        if c % GROUP:
            scores_RC = torch.nn.functional.pad(scores_RC, (0, -c % GROUP), value=-torch.inf)
        scores_RGC = scores_RC.view(r, -1, GROUP)
        highest_RG = scores_RGC.amax(2)
        top_R = highest_RG.amax(1).mul_(scale)
        self.top_R = torch.maximum(self.top_R, top_R)
        self._draw(scores_RGC, highest_RG.mul_(scale), scale, first)
        if self.with_statistics:
            # A block of -inf alone has a finite top here, weights of 0, and so no part in the row.
            top_R = top_R.clamp_(min=NEVER)
            shifted_RC = torch.add(top_R.neg()[:, None], scores_RC, alpha=scale).clamp_(min=NEVER)
            weights_RC = torch.exp(shifted_RC, out=scores_RC)
            total_R = weights_RC.sum(1).clamp_(min=1e-30)
            mean_R = torch.linalg.vecdot(weights_RC, shifted_RC).div_(total_R)
            self.sums.append((top_R + total_R.log(), top_R + mean_R))

    def _draw(self, scores_RGC: Tensor, highest_RG: Tensor, scale: float, first: int) -> None:
        groups_G = torch.arange(
            first // GROUP, first // GROUP + highest_RG.shape[1], dtype=torch.int32, device=highest_RG.device
        )
        least_RG = group_least(self.keys_R, groups_G)
        bound_RG = highest_RG - least_RG.log()
        offsets_C = torch.arange(GROUP, dtype=torch.int32, device=highest_RG.device)

        def look_into(rows_K: Tensor, groups_K: Tensor) -> None:
            """Compares the tokens of some groups, rows in rising order, with the best so far."""
            keys_K, chosen_K1 = self.keys_R[rows_K], groups_G[groups_K, None]
            tokens_KC = chosen_K1 * GROUP + offsets_C
            exponentials_KC = token_exponentials(
                keys_K, tokens_KC, least_RG[rows_K, groups_K, None], group_winner(keys_K, chosen_K1)
            )
            scores_KC = scores_RGC[rows_K, groups_K] * scale
            best_K, place_K = (scores_KC - exponentials_KC.log_()).max(1)
            self.best_R = self.best_R.scatter_reduce(0, rows_K, best_K, "amax")
            won_K = (best_K == self.best_R[rows_K]).nonzero()[:, 0]
            rows_W, place_W = rows_K[won_K], place_K[won_K, None]
            self.ids_R[rows_W] = tokens_KC[won_K].gather(1, place_W)[:, 0].long()
            self.score_R[rows_W] = scores_KC[won_K].gather(1, place_W)[:, 0]

        # First the most promising groups of each row, then those that still may beat what was found there.
        bound_RK, group_RK = bound_RG.topk(min(_FIRST, bound_RG.shape[1]), dim=1, sorted=False)
        rows_K, place_K = (bound_RK > self.best_R[:, None]).nonzero(as_tuple=True)
        groups_K = group_RK[rows_K, place_K]
        look_into(rows_K, groups_K)
        bound_RG[rows_K, groups_K] = -torch.inf
        look_into(*(bound_RG > self.best_R[:, None]).nonzero(as_tuple=True))

    def result(self, original_score_R: Tensor | None) -> Drawn:
        statistics = None
        if original_score_R is not None:
            log_sums_BR, means_BR = (torch.stack(column) for column in zip(*self.sums, strict=True))
            log_sum_R = log_sums_BR.logsumexp(0)
            mean_R = ((log_sums_BR - log_sum_R).exp_() * means_BR).sum(0)
            statistics = Statistics(
                self.score_R - log_sum_R, original_score_R - log_sum_R, (log_sum_R - mean_R).clamp_(min=0.0)
            )
        return Drawn(self.ids_R, self.top_R.abs() < torch.inf, statistics)


def row_blocks(rows: int, vocabulary: int, on_gpu: bool) -> Iterator[slice]:
    """The rows in slices, for whoever needs all logits of a row at once: those of a slice are a block or two."""
    size = max(64, (BLOCK_GPU if on_gpu else BLOCK_CPU) // vocabulary)
    return _slices(rows, size)


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
