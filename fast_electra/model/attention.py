"""Attention with T5 relative position bias: one function, several backends that agree.

Sequences lie one after another in T tokens. Triton's kernels read them there. The other backends make rectangles of
sequences of about the same length (`rectangles.py`). The bias is a number for each distance in all of them.
"""

import functools
import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fast_electra.batch import Layout
from fast_electra.model.dropout import KeyedDropout
from fast_electra.model.rectangles import Rectangle, distance_sums, pair_bias, rectangles
from fast_electra.settings import UserError
from fast_electra_kernels.autocast import without_autocast

HEAD_SIZES = (32, 64, 128)  # that Triton's kernels serve
START_SLOPE, START_SIDE = 2.0, 8.0  # values of the `local` start; docs/tiny.md says which others were tried
# Kernels that return the gradient of a mask. cuDNN's, which torch prefers on Hopper GPUs, does not.
TRAINING_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
FROZEN_KERNELS = [SDPBackend.CUDNN_ATTENTION, *TRAINING_KERNELS]  # flash attention takes no mask at all


def relative_buckets(offset: Tensor, buckets: int, max_distance: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return T5's bidirectional bucket of each offset, key - query, int64. The logarithms are in `dtype`.

    Half of the buckets serve keys to the right of the query. In each half, half of the buckets hold one distance each.
    The others grow logarithmically up to `max_distance`. All longer distances share the last bucket.
    """
    half, exact = buckets // 2, buckets // 4
    distance = offset.abs()
    logarithmic = torch.log(distance.clamp(min=1).to(dtype) / exact) / math.log(max_distance / exact) * (half - exact)
    far = (exact + logarithmic.long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (offset > 0)


class RelativePositionBias(nn.Module):
    """One table of biases, [buckets, H], that all layers share (Table 3 gives buckets and maximal distance)."""

    def __init__(self, buckets: int, max_distance: int, heads: int, start: str) -> None:
        """Make the table. `start` chooses its values before training: `zero` as in T5, or `local` (`_local_start`)."""
        super().__init__()
        self.buckets, self.max_distance = buckets, max_distance
        self.table = nn.Parameter(torch.zeros(buckets, heads))
        self._bucket_R: Tensor | None = None
        if start == "local":
            _local_start(self.table, max_distance)

    def forward(self, longest: int) -> Tensor:
        """Return the bias of every distance key - query, from 1 - longest to longest - 1: [H, 2 longest - 1]."""
        known_R = self._bucket_R
        if known_R is None or len(known_R) < 2 * longest - 1 or known_R.device != self.table.device:
            offset_R = torch.arange(1 - longest, longest)
            known_R = relative_buckets(offset_R, self.buckets, self.max_distance).to(self.table.device)
            self._bucket_R = known_R
        middle = len(known_R) // 2
        return F.embedding(known_R[middle - longest + 1 : middle + longest], self.table).t()


@torch.no_grad()
def _local_start(table: Tensor, max_distance: int) -> None:
    """Make each head start by looking near its query, on one side: even heads look left, odd heads right.

    The bias of a head falls by `slope` whenever the distance doubles. It is START_SIDE lower on the head's other side
    and at the query itself. Each further pair of heads looks further. A small model that starts from zero needs over a
    thousand updates to learn that near tokens matter most.
    """
    buckets, heads = table.shape
    offset_R = torch.arange(-max_distance, max_distance + 1)
    bucket_R = relative_buckets(offset_R, buckets, max_distance)
    near = torch.full((buckets,), torch.inf).scatter_reduce(0, bucket_R, offset_R.abs().float(), "amin")
    direction = torch.zeros(buckets).scatter(0, bucket_R, offset_R.sign().float())
    for head in range(heads):
        sign, slope = (1 if head % 2 else -1), START_SLOPE / 2 ** (head // 2)
        bias = -slope * torch.log2(1 + near) - START_SIDE * (direction * sign <= 0)
        table[:, head] = bias.masked_fill(near.isinf(), 0.0)  # a bucket that no distance falls into


@without_autocast()
def _sdpa(qkv_T3Hd: Tensor, bias_HR: Tensor, layout: Layout, drop: KeyedDropout | None) -> Tensor:
    """PyTorch's fused attention. Its mask has the size [H, L, L], or with padding [b, H, L, L]."""
    bias_HLL, rate = pair_bias(bias_HR).to(qkv_T3Hd.dtype), 0.0
    if drop is not None:
        assert drop.quick, "fused kernels drop at random only"
        rate = drop.attention_rate
    # Not `torch.is_grad_enabled()`: activation checkpointing runs the forward pass without gradients and repeats it
    # with them. Both must use the same kernel, or they drop different probabilities.
    trained = qkv_T3Hd.requires_grad or bias_HR.requires_grad
    mixed, all_parts = [], rectangles(layout, qkv_T3Hd.is_cuda)
    for part in all_parts.parts:
        q, k, v = part.of(qkv_T3Hd).permute(2, 0, 3, 1, 4)
        mask = functools.reduce(torch.add, part.biases(bias_HLL[None]))
        with sdpa_kernel(TRAINING_KERNELS if trained else FROZEN_KERNELS):
            mixed_bHld = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        mixed.append(mixed_bHld.transpose(1, 2))
    return all_parts.joined(mixed)


class _Matmul(torch.autograd.Function):
    """Products and a softmax, one rectangle after another.

    Queries, keys, values and probabilities are kept for the backward pass, and no mask of what was dropped.
    """

    @staticmethod
    @without_autocast()
    def forward(ctx: Any, qkv_T3Hd: Tensor, bias_HR: Tensor, layout: Layout, drop: KeyedDropout | None) -> Tensor:
        mixed, kept, all_parts = [], [], rectangles(layout, qkv_T3Hd.is_cuda)
        bias_HLL, dropped = pair_bias(bias_HR).to(qkv_T3Hd.dtype), _dropping(drop, layout, qkv_T3Hd.shape[2])
        for part in all_parts.parts:
            qkv = (
                part.of(qkv_T3Hd).permute(2, 0, 3, 1, 4).flatten(1, 2).contiguous()
            )  # a view would keep all of it alive
            q, k, v = qkv
            p = torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2))
            for bias in part.biases(bias_HLL):
                p.unflatten(0, (part.sequences, -1)).add_(bias)
            torch.softmax(p, dim=-1, out=p)
            mixed.append(_shaped(torch.bmm(dropped(p, part), v), part))
            kept += [qkv, p]
        ctx.save_for_backward(*kept)
        ctx.layout, ctx.drop, ctx.bias_dtype = layout, drop, bias_HR.dtype
        return all_parts.joined(mixed)

    @staticmethod
    @without_autocast()
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad_THd,), layout, kept = grads, ctx.layout, ctx.saved_tensors
        (_, heads, size), all_parts = grad_THd.shape, rectangles(layout, grad_THd.is_cuda)
        dropped, longest, joined = _dropping(ctx.drop, layout, heads), layout.longest, []
        grad_HLL = torch.zeros(heads, longest, longest, device=grad_THd.device)
        for part, qkv, p in zip(all_parts.parts, kept[::2], kept[1::2], strict=True):
            q, k, v = qkv
            grad = part.without_padding(part.of(grad_THd)).transpose(1, 2).flatten(0, 1)
            grad_v = torch.bmm(dropped(p, part).transpose(1, 2), grad)
            grad_s = dropped(torch.bmm(grad, v.transpose(1, 2)), part)
            torch._softmax_backward_data(grad_s, p, -1, p.dtype, grad_input=grad_s)
            summed = grad_s if part.sequences == 1 else grad_s.unflatten(0, (-1, heads)).sum(0)
            grad_HLL[:, : part.length, : part.length] += summed
            scale = size**-0.5
            grad_qkv = torch.bmm(grad_s, k).mul_(scale), torch.bmm(grad_s.transpose(1, 2), q).mul_(scale), grad_v
            joined.append(torch.stack([_shaped(grad, part) for grad in grad_qkv], dim=2))
        return all_parts.joined(joined), distance_sums(grad_HLL).to(ctx.bias_dtype), None, None


def _shaped(x: Tensor, part: Rectangle) -> Tensor:
    """Return [b, l, H, d] from [b * H, l, d]."""
    return x.unflatten(0, (part.sequences, -1)).transpose(1, 2)


def _dropping(drop: KeyedDropout | None, layout: Layout, heads: int) -> Callable[[Tensor, Rectangle], Tensor]:
    """Return a function that drops some of the probabilities [b * H, l, l] of a rectangle."""
    if drop is None or drop.attention_rate == 0.0:
        return lambda p, _: p
    keys_TH, rate = drop.query_keys(layout, heads), drop.attention_rate
    return lambda p, part: drop.apply(p, part.of(keys_TH).transpose(1, 2), rate)


@torch.compiler.disable
def _triton(qkv_T3Hd: Tensor, bias_HR: Tensor, layout: Layout, drop: KeyedDropout | None) -> Tensor:
    """Kernels that read the tokens where they are: see `fast_electra_kernels.triton_attention`."""
    from fast_electra_kernels import triton_attention

    rate = 0.0 if drop is None else drop.attention_rate
    # The key is from the CPU's generator, which activation checkpointing restores.
    key = int(torch.randint(1 << 62, ())) if rate else 0
    covered = int(layout.lengths_B.sum()) == len(qkv_T3Hd)  # a replayed model pads T
    return triton_attention.attention(
        qkv_T3Hd, bias_HR, layout.starts_B, layout.sizes_B, layout.longest, rate, key, covered=covered
    )


BACKENDS: dict[str, Callable[[Tensor, Tensor, Layout, KeyedDropout | None], Tensor]] = {
    "triton": _triton,
    "sdpa": _sdpa,
    "matmul": lambda *inputs: _Matmul.apply(*inputs),
}


def attention(
    qkv_T3Hd: Tensor, bias_HR: Tensor, layout: Layout, drop: KeyedDropout | None = None, backend: str = "matmul"
) -> Tensor:
    """Return softmax(q k^T / sqrt(d) + bias) v within each sequence, with dropout on the probabilities: [T, H, d].

    Args:
        qkv_T3Hd: queries, keys and values [T, 3, H, d] of all tokens.
        bias_HR: differentiable bias of each distance key - query, R = 2 longest - 1; see `RelativePositionBias`.
        layout: which tokens are a sequence.
        drop: what is dropped; None for nothing. Only `matmul` drops by the keys of the sequences.
        backend: a key of BACKENDS; `choose` names the best one.
    """
    return BACKENDS[backend](qkv_T3Hd, bias_HR, layout, drop)


def runs_triton(device: torch.device | None = None) -> bool:
    """Return whether a GPU, by default the current one, runs our Triton kernels."""
    return torch.cuda.get_device_capability(device) >= (8, 0) and find_spec("triton") is not None


def choose(name: str, x: Tensor, head_size: int, drop: KeyedDropout | None) -> str:
    """Return the backend for tensors like `x`, on its device and in its dtype, if a config's `attention` is `name`.

    On a GPU, Triton's kernels are two to three times faster than `sdpa`, whose kernel has to read a mask of pairs. On a
    CPU, `matmul` is the fastest.
    """
    if drop is not None and drop.attention_rate and not drop.quick:
        return "matmul"
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    able = x.is_cuda and dtype != torch.float32 and head_size in HEAD_SIZES
    able = able and runs_triton(x.device)
    if name == "triton" and not able:
        need = "an Ampere GPU or newer, 16 bit, and heads of 32, 64 or 128"
        raise UserError(f"fast_electra.model.attention: triton needs {need}; use auto")
    if name == "auto":
        return "triton" if able else "sdpa" if x.is_cuda else "matmul"
    return name
