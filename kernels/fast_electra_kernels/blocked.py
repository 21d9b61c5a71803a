"""`sample` with blocks of logits from the matrix library: for a CPU, and for a GPU without Triton.

Each block of logits is computed, reduced to the highest logit of each group of neighbouring tokens, and overwritten. A
group's highest score and its smallest exponential bound the perturbed score of all its tokens (see `noise`). So only
the few groups whose bound beats the best token so far are searched. No tensor of the size [M, V] ever exists.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fast_electra_kernels import blocked_bf16
from fast_electra_kernels.autocast import without_autocast
from fast_electra_kernels.contract import NEVER, Request, SampleResult, Statistics, scores
from fast_electra_kernels.noise import GROUP, group_least, group_winner, token_exponentials
from fast_electra_kernels.processor import multiplies_bf16
from fast_electra_kernels.workspace import BLOCK_CPU, BLOCK_GPU, block_shape, slices


def sample(request: Request) -> SampleResult:
    """Draw for one block of rows after another, each over all blocks of the vocabulary."""
    hidden_MD, weight_VD, bias_V, scale, prior_V, keys_M, original_M = request
    if hidden_MD.dtype == torch.bfloat16 and hidden_MD.device.type == "cpu" and multiplies_bf16():
        return blocked_bf16.sample(request)
    parts = []
    height, width = block_shape(len(hidden_MD), len(weight_VD), hidden_MD.is_cuda)
    for rows in slices(len(hidden_MD), height):
        search = _Search(keys_M[rows], scale, original_M is not None)
        for tokens in slices(len(weight_VD), width):
            logits_RC = logits(hidden_MD[rows], weight_VD[tokens], None if bias_V is None else bias_V[tokens])
            search.add(logits_RC, tokens.start, None if prior_V is None else prior_V[tokens])
        parts.append(search.result(None if original_M is None else scores(request, rows, original_M[rows])))
    return SampleResult.joined(parts)


def sample_logits(logits_MV: Tensor, keys_M: Tensor, original_M: Tensor) -> SampleResult:
    """See `fast_electra_kernels.sample_logits`."""
    m, vocabulary = logits_MV.shape
    parts = []
    height, width = block_shape(m, vocabulary, logits_MV.is_cuda)
    for rows in slices(m, height):
        search = _Search(keys_M[rows], 1.0, True)
        for tokens in slices(vocabulary, width):
            search.add(logits_MV[rows, tokens].to(torch.float32, copy=True), tokens.start, None)
        parts.append(search.result(logits_MV[rows].gather(1, original_M[rows, None])[:, 0].float()))
    return SampleResult.joined(parts)


@without_autocast()
def logits(hidden_RD: Tensor, weight_CD: Tensor, bias_C: Tensor | None) -> Tensor:
    """Return hidden @ weight.T + bias, [R, C], accumulated and kept in float32 whatever the dtypes are."""
    bias_C = None if bias_C is None else bias_C.float()
    if hidden_RD.dtype == torch.float32:
        return torch.nn.functional.linear(hidden_RD, weight_CD, bias_C)
    if hidden_RD.is_cuda:
        product_RC = torch.mm(hidden_RD, weight_CD.t(), out_dtype=torch.float32)
        return product_RC if bias_C is None else product_RC.add_(bias_C)
    return torch.nn.functional.linear(hidden_RD.float(), weight_CD.float(), bias_C)


class _Search:
    """The best token of each of R rows among the blocks of the vocabulary that were added."""

    def __init__(self, keys_R: Tensor, scale: float, with_statistics: bool) -> None:
        self.keys_R, self.scale, self.with_statistics = keys_R, scale, with_statistics
        self.best_R = torch.full_like(keys_R, -torch.inf, dtype=torch.float32)  # score plus noise of the best token
        self.score_R = self.best_R.clone()  # its score without the noise
        self.ids_R = torch.zeros_like(keys_R)
        self.top_R = self.best_R.clone()  # the highest score; NaN if any is NaN
        self.sums: list[tuple[Tensor, Tensor]] = []  # log-sum-exp and mean score of each block

    def add(self, logits_RC: Tensor, first: int, prior_C: Tensor | None) -> None:
        """Search the logits of the tokens from `first` on, a multiple of GROUP; overwrites them."""
        scores_RC, scale, missing = logits_RC, self.scale, -logits_RC.shape[1] % GROUP
        if prior_C is not None or missing:
            scores_RC, scale = scores_RC.mul_(scale), 1.0
        if prior_C is not None:
            scores_RC.add_(prior_C)
        if missing:
            scores_RC = torch.nn.functional.pad(scores_RC, (0, missing), value=-torch.inf)
        scores_RGC = scores_RC.unflatten(1, (-1, GROUP))
        highest_RG = scores_RGC.amax(2)
        top_R = highest_RG.amax(1).mul_(scale)
        self.top_R = torch.maximum(self.top_R, top_R)
        self._draw(scores_RGC, highest_RG.mul_(scale), scale, first)
        if self.with_statistics:
            # If all scores of a block are -inf, its top is finite here and its weights are 0, so it adds nothing.
            top_R = top_R.clamp_(min=NEVER)
            shifted_RC = torch.add(top_R.neg()[:, None], scores_RC, alpha=scale)
            weights_RC = torch.exp(shifted_RC, out=scores_RC)
            total_R = weights_RC.sum(1).clamp_(min=1e-30)
            mean_R = weights_RC.mul_(shifted_RC).sum(1)
            if bool(mean_R.isnan().any()):  # from 0 * -inf, or from a NaN that is refused later
                mean_R = torch.exp(shifted_RC, out=weights_RC).mul_(shifted_RC.clamp_(min=NEVER)).sum(1)
            self.sums.append((top_R + total_R.log(), top_R + mean_R / total_R))

    def _draw(self, scores_RGC: Tensor, highest_RG: Tensor, scale: float, first: int) -> None:
        """Compare the tokens that can win with the best so far."""
        groups_G = torch.arange(highest_RG.shape[1], dtype=torch.int32, device=highest_RG.device) + first // GROUP
        least_RG = group_least(self.keys_R, groups_G)
        log_least_RG = least_RG.log()
        if bool((self.best_R == -torch.inf).any()):  # begin with the token of each group that has the most noise
            token_RG = group_winner(self.keys_R, groups_G).long()
            score_RG = scores_RGC.flatten(1).gather(1, token_RG - first).mul_(scale)
            best_R, place_R = (score_RG - log_least_RG).max(1)
            better_R = best_R > self.best_R
            self.best_R = torch.where(better_R, best_R, self.best_R)
            for mine_R, found_RG in ((self.score_R, score_RG), (self.ids_R, token_RG)):
                mine_R.copy_(torch.where(better_R, found_RG.gather(1, place_R[:, None])[:, 0], mine_R))
        # Groups that may hold a better token, then the tokens of them that may be better, then the noise of those.
        rows_K, groups_K = (highest_RG - log_least_RG > self.best_R[:, None]).nonzero(as_tuple=True)
        keys_K, numbers_K1 = self.keys_R[rows_K], groups_G[groups_K, None]
        scores_KC = scores_RGC[rows_K, groups_K].mul_(scale)
        reach_KC = scores_KC - log_least_RG[rows_K, groups_K, None]
        index_T, offset_T = (reach_KC > self.best_R[rows_K, None]).nonzero(as_tuple=True)
        rows_T, score_T = rows_K[index_T], scores_KC[index_T, offset_T]
        token_T1 = (numbers_K1[index_T] * GROUP).add_(offset_T[:, None])
        least_T1, winner_K1 = least_RG[rows_K, groups_K, None][index_T], group_winner(keys_K, numbers_K1)
        exponential_T1 = token_exponentials(keys_K[index_T], token_T1, least_T1, winner_K1[index_T])
        perturbed_T = score_T - exponential_T1.log_()[:, 0]
        self.best_R = self.best_R.scatter_reduce(0, rows_T, perturbed_T, "amax")
        won_T = perturbed_T == self.best_R[rows_T]
        rows_W = rows_T[won_T]
        self.ids_R[rows_W], self.score_R[rows_W] = token_T1[won_T, 0].long(), score_T[won_T]

    def result(self, original_score_R: Tensor | None) -> SampleResult:
        """Return the draws, with statistics if the score of each row's original token is given."""
        statistics = None
        if original_score_R is not None:
            log_sums_BR, means_BR = (torch.stack(column) for column in zip(*self.sums, strict=True))
            log_sum_R = log_sums_BR.logsumexp(0)
            mean_R = ((log_sums_BR - log_sum_R).exp_() * means_BR).sum(0)
            entropy_R = (log_sum_R - mean_R).clamp_(min=0.0)
            statistics = Statistics(self.score_R - log_sum_R, original_score_R - log_sum_R, entropy_R)
        return SampleResult(self.ids_R, self.top_R.abs() < torch.inf, statistics)


def row_blocks(rows: int, vocabulary: int, on_gpu: bool) -> Iterator[slice]:
    """Yield slices of rows for callers that need all logits of a row at once; each is a block or two of logits."""
    return slices(rows, max(64, (BLOCK_GPU if on_gpu else BLOCK_CPU) // vocabulary))
