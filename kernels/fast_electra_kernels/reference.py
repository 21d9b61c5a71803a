"""The definition of `sample`: the argmax of score plus noise over all tokens. The others are tested against it."""

import torch

from fast_electra_kernels.contract import NEVER, Request, SampleResult, Statistics
from fast_electra_kernels.noise import gumbel

_SCORES = 1 << 20  # scores in memory at a time


def sample(request: Request) -> SampleResult:
    """Draw with arithmetic in float32, or in float64 if the hidden states are float64."""
    hidden_MD, weight_VD, bias_V, scale, prior_V, keys_M, original_M = request
    dtype = torch.promote_types(hidden_MD.dtype, torch.float32)
    weight_VD, tokens_V = weight_VD.to(dtype), torch.arange(len(weight_VD), dtype=torch.int32, device=weight_VD.device)
    parts = []
    for rows in torch.arange(len(hidden_MD), device=hidden_MD.device).split(max(1, _SCORES // len(weight_VD))):
        scores_RV = hidden_MD[rows].to(dtype) @ weight_VD.t()
        if bias_V is not None:
            scores_RV += bias_V
        scores_RV *= scale
        if prior_V is not None:
            scores_RV += prior_V
        ids_R1 = (scores_RV + gumbel(keys_M[rows], tokens_V, dtype)).argmax(dim=1, keepdim=True)
        highest_R = scores_RV.amax(dim=1)
        statistics = None
        if original_M is not None:
            log_p_RV = scores_RV.log_softmax(dim=1)
            entropy_R = -torch.linalg.vecdot(log_p_RV.exp(), log_p_RV.clamp(min=NEVER))
            drawn_R, original_R = (log_p_RV.gather(1, ids)[:, 0] for ids in (ids_R1, original_M[rows, None]))
            statistics = Statistics(drawn_R.float(), original_R.float(), entropy_R.float())
        parts.append(SampleResult(ids_R1[:, 0], highest_R.abs() < torch.inf, statistics))
    return SampleResult.joined(parts)
