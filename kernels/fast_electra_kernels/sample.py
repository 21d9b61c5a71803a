"""The public sampling functions and the choice of their implementation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fast_electra_kernels import reference
from fast_electra_kernels.reference import Statistics

IMPLEMENTATIONS: dict[str, Callable[..., tuple[Tensor, Statistics | None]]] = {"reference": reference.sample}


@torch.no_grad()
def sample(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None = None,
    *,
    scale: float,
    prior_V: Tensor | None = None,
    keys_M: Tensor,
    impl: str | None = None,
) -> Tensor:
    """Draws one token for each masked position from softmax(scale * (hidden @ weight.T + bias) + prior).

    The draw is argmax over tokens v of score_v + g_v with g_v standard Gumbel noise, a pure function of (key, v):
    the same key and scores give the same token in any batch, on any rank, on any device (up to ties of rounding).

    Args:
        hidden_MD: [M, D] float32, bfloat16 or float16; M may be 0.
        weight_VD: [V, D], same dtype: the vocabulary head.
        bias_V: [V] or None.
        scale: factor of the logits, >= 0: 1/T for temperature T (Eq. 1), 1 - gamma for interpolation (E.2).
        prior_V: [V] float32 added to the scaled logits (gamma * log p_TF), or None.
        keys_M: int64 [M], a well-mixed key for each position.
        impl: a key of IMPLEMENTATIONS; by default the best for the device.

    Returns:
        int64 [M] token ids.

    Raises:
        ValueError: for shapes or values that cannot be sampled from (NaN, +inf, a negative scale).
    """
    return _implementation(hidden_MD, weight_VD, scale, keys_M, impl)(
        hidden_MD, weight_VD, bias_V, scale, prior_V, keys_M, None
    )[0]


@torch.no_grad()
def sample_with_statistics(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None = None,
    *,
    scale: float,
    prior_V: Tensor | None = None,
    keys_M: Tensor,
    original_M: Tensor,
    impl: str | None = None,
) -> tuple[Tensor, Statistics]:
    """The draws of `sample`, and each distribution's entropy and log-probability of a given token.

    Args:
        original_M: int64 [M], the token whose log-probability is wanted at each position; the rest as for `sample`.
    """
    ids_M, statistics = _implementation(hidden_MD, weight_VD, scale, keys_M, impl)(
        hidden_MD, weight_VD, bias_V, scale, prior_V, keys_M, original_M
    )
    assert statistics is not None
    return ids_M, statistics


@torch.no_grad()
def sample_logits(logits_MV: Tensor, keys_M: Tensor, original_M: Tensor) -> tuple[Tensor, Statistics]:
    """As `sample_with_statistics` at scale 1, from logits that stand in memory anyway, as in joint training."""
    return reference.sample_logits(logits_MV, keys_M, original_M)


def _implementation(
    hidden_MD: Tensor, weight_VD: Tensor, scale: float, keys_M: Tensor, impl: str | None
) -> Callable[..., Any]:
    """The implementation of that name, once its arguments are known to fit each other."""
    if hidden_MD.dim() != 2 or weight_VD.dim() != 2 or hidden_MD.shape[1] != weight_VD.shape[1]:
        raise ValueError(f"hidden [M, D] and weight [V, D] do not fit: {hidden_MD.shape} and {weight_VD.shape}")
    if keys_M.shape != hidden_MD.shape[:1] or keys_M.dtype != torch.int64:
        raise ValueError(f"keys must be int64 [{hidden_MD.shape[0]}], not {keys_M.dtype} {tuple(keys_M.shape)}")
    if not scale >= 0.0:
        raise ValueError(f"scale must be a number >= 0, not {scale}")
    name = impl or "reference"
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, not {name!r}")
    return IMPLEMENTATIONS[name]
