"""Shared by the tests of the sampler: models with known logits, keys, and comparisons of draws."""

import torch
from scipy import stats
from torch import Tensor

from fast_electra import randomness
from fast_electra_kernels import gumbel

DEVICE = torch.device(
    "cuda" if torch.cuda.is_available() else "cpu"
)  # for `triton`, which runs in its interpreter on a CPU
D, V = 8, 50


def logits_as_model(logits_V: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, weight and bias whose logits are `logits_V` in every row."""
    hidden = torch.zeros(rows, D)
    hidden[:, 0] = 1.0
    weight = torch.zeros(len(logits_V), D)
    weight[:, 0] = logits_V
    return hidden, weight, torch.zeros(len(logits_V))


def model(m: int, v: int, d: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states and weight whose product is normal with that standard deviation, and a normal bias."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(m, d, generator=generator), torch.randn(v, d, generator=generator)
    return hidden, weight * (spread * d**-0.5), torch.randn(v, generator=generator)


def keys(count: int, seed: int = 0) -> Tensor:
    return randomness.key(seed, torch.arange(count))


def chi_square(ids: Tensor, probability_V: Tensor) -> float:
    counts = torch.bincount(ids, minlength=len(probability_V)).double().numpy()
    return float(stats.chisquare(counts, probability_V.double().numpy() * len(ids)).pvalue)


def assert_equal_up_to_ties(ids: Tensor, scores_MV: Tensor, keys_M: Tensor) -> None:
    """Assert that `ids` are the winners in float64; at most one draw of 500 may be within rounding of it instead."""
    tokens = torch.arange(scores_MV.shape[1], dtype=torch.int32)
    perturbed_MV = scores_MV + gumbel(keys_M, tokens, torch.float64)
    best_M, exact_M = perturbed_MV.max(1)
    behind_M = best_M - perturbed_MV.gather(1, ids[:, None])[:, 0]
    assert float(behind_M.max()) < 2e-5
    assert int((ids != exact_M).sum()) <= len(ids) / 500
