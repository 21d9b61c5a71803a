"""The public sampling function and the choice of its implementation."""

from collections.abc import Callable

import torch
from torch import Tensor

from fast_electra_kernels import reference

IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {"reference": reference.sample}


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
    if hidden_MD.dim() != 2 or weight_VD.dim() != 2 or hidden_MD.shape[1] != weight_VD.shape[1]:
        raise ValueError(f"hidden [M, D] and weight [V, D] do not fit: {hidden_MD.shape} and {weight_VD.shape}")
    if keys_M.shape != hidden_MD.shape[:1] or keys_M.dtype != torch.int64:
        raise ValueError(f"keys must be int64 [{hidden_MD.shape[0]}], not {keys_M.dtype} {tuple(keys_M.shape)}")
    if not scale >= 0.0:
        raise ValueError(f"scale must be a number >= 0, not {scale}")
    name = impl or "reference"
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, not {name!r}")
    return IMPLEMENTATIONS[name](hidden_MD, weight_VD, bias_V, scale, prior_V, keys_M)
