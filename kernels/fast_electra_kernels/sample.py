"""The public sampling functions and the choice of their implementation."""

import math
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from fast_electra_kernels import blocked, reference
from fast_electra_kernels.autocast import without_autocast
from fast_electra_kernels.contract import Request, SampleResult, Statistics

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _triton(request: Request) -> SampleResult:
    from fast_electra_kernels import triton_sampler  # here, because Triton is slow to import and optional

    return triton_sampler.sample(request)


IMPLEMENTATIONS: dict[str, Callable[[Request], SampleResult]] = {
    "reference": reference.sample,
    "blocked": blocked.sample,
    "triton": _triton,
}


@torch.no_grad()
@without_autocast()
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
    """Draw one token for each masked position from softmax(scale * (hidden @ weight.T + bias) + prior).

    The drawn token is the argmax over v of score_v + g_v, where g_v is standard Gumbel noise, a pure function of (key,
    v). The same key and scores give the same token in any batch, on any rank, on any device and by any implementation,
    except for rounding ties: scores are accumulated in float32, and their last bits depend on the order of the sum. The
    matrix of logits, [M, V], is never in memory. A caller's autocast has no effect.

    Args:
        hidden_MD: [M, D] float32, bfloat16 or float16; M may be 0. (`reference` also takes float64.)
        weight_VD: [V, D], the vocabulary head: same dtype, contiguous, V and D any numbers.
        bias_V: [V], floating, or None. -inf marks a token that is never drawn.
        scale: factor of the logits, >= 0: 1/T for temperature T (Eq. 1), 1 - gamma for interpolation (E.2).
        prior_V: [V], floating, added to the scaled logits (gamma * log p_TF), or None; -inf as in the bias.
        keys_M: int64 [M], a well-mixed key for each position.
        impl: a key of IMPLEMENTATIONS, or None for `default_implementation`.

    Returns:
        int64 [M] token ids.

    Raises:
        ValueError: for shapes, dtypes or layouts that do not fit, if a score is NaN or +inf, or if all scores of a
            position are -inf. On a GPU, the check of the scores waits for the device.
    """
    return _sample(Request(hidden_MD, weight_VD, bias_V, scale, prior_V, keys_M, None), impl).ids_M


@torch.no_grad()
@without_autocast()
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
    """Return the draws of `sample` and statistics of each position's distribution, in the same pass over the logits.

    It takes the arguments of `sample` and original_M, int64 [M]: the token whose log-probability is wanted at each
    position. It raises the same errors. On a CPU with bf16 instructions, statistics of bfloat16 scores have errors of
    about 0.0005 (see `blocked_bf16`); elsewhere they are as exact as float32.
    """
    result = _sample(Request(hidden_MD, weight_VD, bias_V, scale, prior_V, keys_M, original_M), impl)
    assert result.statistics is not None
    return result.ids_M, result.statistics


@torch.no_grad()
@without_autocast()
def sample_logits(logits_MV: Tensor, keys_M: Tensor, original_M: Tensor) -> tuple[Tensor, Statistics]:
    """Return `sample_with_statistics` at scale 1 for logits that are in memory anyway, as in joint training."""
    result = _refuse_invalid(blocked.sample_logits(logits_MV, keys_M, original_M))
    assert result.statistics is not None
    return result.ids_M, result.statistics


def default_implementation(device: torch.device) -> str:
    """Return the name of the implementation that `impl=None` means on a device."""
    return default_for(torch.cuda.get_device_capability(device) if device.type == "cuda" else None)


def default_for(capability: tuple[int, int] | None) -> str:
    """Return "triton" from compute capability 8.0 on if it is installed, else "blocked"; None stands for a CPU."""
    # Below 8.0, Triton spills 28 KB of registers to memory and is far slower than the matrix library.
    return "triton" if capability is not None and capability >= (8, 0) and find_spec("triton") else "blocked"


def _sample(request: Request, impl: str | None) -> SampleResult:
    """Check the arguments, run an implementation, and refuse scores that cannot be drawn from."""
    hidden_MD, scale, bias_V = request.hidden_MD, request.scale, request.bias_V
    name = impl or default_implementation(hidden_MD.device)
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, not {name!r}")
    _check(request)
    if hidden_MD.dtype not in DTYPES and not (name == "reference" and hidden_MD.dtype == torch.float64):
        raise ValueError(f"hidden must be float32, bfloat16 or float16 for {name}, not {hidden_MD.dtype}")
    if not 0.0 <= scale < math.inf:
        raise ValueError(f"scale must be a finite number >= 0, not {scale}")
    if scale == 0.0 and bias_V is not None:  # 0 * -inf is NaN, so a bias of -inf moves to the prior
        never_V = torch.where(bias_V == -torch.inf, -torch.inf, 0.0)
        prior_V = never_V if request.prior_V is None else request.prior_V + never_V
        request = request._replace(bias_V=None, prior_V=prior_V)
    request = Request(*(x.contiguous() if isinstance(x, Tensor) else x for x in request))  # type: ignore[arg-type]
    with torch.cuda.device_of(hidden_MD):  # the device that launches the kernels; no effect on a CPU
        return _refuse_invalid(IMPLEMENTATIONS[name](request))


def _check(request: Request) -> None:
    """Raise a ValueError that names an argument that does not fit the others."""
    hidden_MD, weight_VD = request.hidden_MD, request.weight_VD
    of_tokens = {"bias": request.bias_V, "prior": request.prior_V}
    of_positions = {"keys": request.keys_M, "original": request.original_M}
    if type(weight_VD) not in (Tensor, torch.nn.Parameter):
        raise ValueError(f"weight is a {type(weight_VD).__name__}, whose data may be elsewhere: gather it first")
    if hidden_MD.dim() != 2 or weight_VD.dim() != 2 or hidden_MD.shape[1] != weight_VD.shape[1] or not len(weight_VD):
        raise ValueError(
            f"hidden [M, D] and weight [V, D] do not fit: {list(hidden_MD.shape)} and {list(weight_VD.shape)}"
            f"{' (a weight that is sharded over processes must be gathered first)' if not weight_VD.numel() else ''}"
        )
    if not weight_VD.is_contiguous():
        raise ValueError(f"weight has strides {weight_VD.stride()}: pass weight.contiguous()")
    if hidden_MD.dtype != weight_VD.dtype:
        raise ValueError(f"hidden is {hidden_MD.dtype} and weight {weight_VD.dtype}: convert one of them")
    for name, tensor in of_tokens.items():
        if tensor is not None and (tensor.shape != weight_VD.shape[:1] or not tensor.is_floating_point()):
            raise ValueError(f"{name} must be floating [{len(weight_VD)}], not {tensor.dtype} {list(tensor.shape)}")
    for name, tensor in of_positions.items():
        if tensor is not None and (tensor.shape != hidden_MD.shape[:1] or tensor.dtype != torch.int64):
            raise ValueError(f"{name} must be int64 [{len(hidden_MD)}], not {tensor.dtype} {list(tensor.shape)}")
    for name, tensor in {"weight": weight_VD, **of_tokens, **of_positions}.items():
        if tensor is not None and tensor.device != hidden_MD.device:
            raise ValueError(f"{name} is on {tensor.device} and hidden on {hidden_MD.device}")


def _refuse_invalid(result: SampleResult) -> SampleResult:
    """Return the result, or raise a ValueError if the scores of a position cannot be drawn from."""
    if not bool(result.valid_M.all()):
        rows = (~result.valid_M).nonzero()[:, 0].tolist()
        raise ValueError(
            f"the scores of {len(rows)} of {len(result.valid_M)} positions hold NaN or +inf, or are all -inf; "
            f"the first is position {rows[0]}"
        )
    return result
