"""`sample` in plain PyTorch: rows in blocks, each block's logits computed, perturbed and forgotten."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fast_electra_kernels.noise import gumbel

# Elements of one block of logits. On a CPU a block stays in the outer cache, but has never so few rows that the product
# reads the whole weight for a handful of them; on a GPU blocks are larger, because each one is a launch.
_BLOCK_CPU, _BLOCK_GPU, _LEAST_ROWS = 1 << 18, 1 << 26, 64
_NEVER = -1e30  # stands for -inf where it would be multiplied by a probability of 0


class Statistics(NamedTuple):
    """Of the distributions that tokens were drawn from: float32 [M] each."""

    original_M: Tensor  # log-probability of the given (original) token
    entropy_M: Tensor  # nats


def sample(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    scale: float,
    prior_V: Tensor | None,
    keys_M: Tensor,
    original_M: Tensor | None,
) -> tuple[Tensor, Statistics | None]:
    """See `fast_electra_kernels.sample`; with `original_M`, see `sample_with_statistics`."""
    drawn = []
    for block in blocks(hidden_MD.shape[0], weight_VD.shape[0], hidden_MD.is_cuda):
        scores = F.linear(hidden_MD[block], weight_VD, bias_V).float()
        if scale != 1.0:
            scores *= scale
        if prior_V is not None:
            scores += prior_V
        drawn.append(_draw(scores, keys_M[block], None if original_M is None else original_M[block], block))
    return _join(drawn, hidden_MD.device, original_M is not None)


def sample_logits(logits_MV: Tensor, keys_M: Tensor, original_M: Tensor) -> tuple[Tensor, Statistics]:
    """See `fast_electra_kernels.sample_logits`."""
    drawn = [
        _draw(logits_MV[block].to(torch.float32, copy=True), keys_M[block], original_M[block], block)
        for block in blocks(logits_MV.shape[0], logits_MV.shape[1], logits_MV.is_cuda)
    ]
    ids_M, statistics = _join(drawn, logits_MV.device, True)
    assert statistics is not None
    return ids_M, statistics


def blocks(rows: int, vocabulary: int, on_gpu: bool) -> Iterator[slice]:
    """The rows in slices whose logits are a block."""
    size = max(_LEAST_ROWS, (_BLOCK_GPU if on_gpu else _BLOCK_CPU) // vocabulary)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _draw(
    scores_RV: Tensor, keys_R: Tensor, original_R: Tensor | None, rows: slice
) -> tuple[Tensor, Statistics | None]:
    """One draw for each row of scores, which are overwritten, and the row's statistics."""
    statistics = None
    if original_R is not None:
        shifted_RV = (scores_RV - scores_RV.amax(dim=1, keepdim=True)).clamp_(min=_NEVER)
        weight_RV = shifted_RV.exp()
        total_R = weight_RV.sum(1)
        mean_R = weight_RV.mul_(shifted_RV).sum(1) / total_R
        original_log_p = shifted_RV.gather(1, original_R[:, None])[:, 0] - total_R.log()
        statistics = Statistics(original_log_p, total_R.log() - mean_R)
        del shifted_RV, weight_RV  # before the noise is made: a block is large
    tokens_V = torch.arange(scores_RV.shape[1], dtype=torch.int32, device=scores_RV.device)
    best, ids_R = scores_RV.add_(gumbel(keys_R, tokens_V)).max(dim=1)
    if not bool((best < torch.inf).all()):  # NaN and +inf both fail; -inf only means never drawn
        raise ValueError(f"logits of rows {rows.start} to {rows.stop - 1} hold NaN or +inf")
    return ids_R, statistics


def _join(
    drawn: list[tuple[Tensor, Statistics | None]], device: torch.device, with_statistics: bool
) -> tuple[Tensor, Statistics | None]:
    """The blocks' results, one after another; empty tensors where there was no row."""
    empty = torch.empty(0, device=device)
    ids_M = torch.cat([ids for ids, _ in drawn] or [empty.long()])
    if not with_statistics:
        return ids_M, None
    columns = zip(*(statistics for _, statistics in drawn if statistics is not None), strict=True)
    return ids_M, Statistics(*([torch.cat(column) for column in columns] or [empty, empty]))
