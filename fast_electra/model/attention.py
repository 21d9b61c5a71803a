"""Attention with T5 relative position bias: one function, several backends that agree."""

import math
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fast_electra.settings import UserError

HEAD_SIZES = (32, 64, 128)  # that Triton's kernels serve
Dropout = float | Callable[[Tensor], Tensor]  # a rate, or a function that drops attention probabilities itself
START_SLOPE, START_SIDE = 2.0, 8.0  # values of the `local` start; docs/tiny.md says which others were tried
# Kernels that return the gradient of a mask. cuDNN's, which torch prefers on Hopper GPUs, does not.
TRAINING_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
FROZEN_KERNELS = [SDPBackend.CUDNN_ATTENTION, *TRAINING_KERNELS]  # flash attention takes no mask at all


def relative_buckets(length: int, buckets: int, max_distance: int) -> Tensor:
    """Return T5's bidirectional bucket of every (query, key) pair, int64 [L, L].

    Half of the buckets serve keys to the right of the query. In each half, half of the buckets hold one distance each.
    The others grow logarithmically up to `max_distance`. All longer distances share the last bucket.
    """
    position = torch.arange(length)
    offset = position[None, :] - position[:, None]  # key - query
    half, exact = buckets // 2, buckets // 4
    distance = offset.abs()
    logarithmic = torch.log(distance.clamp(min=1).double() / exact) / math.log(max_distance / exact) * (half - exact)
    far = (exact + logarithmic.long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (offset > 0)


class RelativePositionBias(nn.Module):
    """One table of biases, [buckets, H], that all layers share (Table 3 gives buckets and maximal distance)."""

    def __init__(self, buckets: int, max_distance: int, heads: int, start: str) -> None:
        """Make the table. `start` chooses its values before training: `zero` as in T5, or `local` (`_local_start`)."""
        super().__init__()
        self.buckets, self.max_distance = buckets, max_distance
        self.table = nn.Parameter(torch.zeros(buckets, heads))
        self._bucket_LL: Tensor | None = None
        self._bucket_R: Tensor | None = None
        if start == "local":
            _local_start(self.table, max_distance)

    def forward(self, length: int) -> Tensor:
        """Return the bias of every (query, key) pair: [H, L, L], in the dtype of the table."""
        if self._bucket_LL is None or len(self._bucket_LL) < length or self._bucket_LL.device != self.table.device:
            self._bucket_LL = relative_buckets(length, self.buckets, self.max_distance).to(self.table.device)
        return F.embedding(self._bucket_LL[:length, :length], self.table).permute(2, 0, 1).contiguous()

    def of_distances(self, length: int) -> Tensor:
        """Return the bias of every distance key - query, from 1 - length to length - 1: [H, 2 length - 1]."""
        device = self.table.device
        if self._bucket_R is None or len(self._bucket_R) != 2 * length - 1 or self._bucket_R.device != device:
            bucket_LL = relative_buckets(length, self.buckets, self.max_distance)
            self._bucket_R = torch.cat([bucket_LL[-1], bucket_LL[0, 1:]]).to(device)
        return F.embedding(self._bucket_R, self.table).t()


@torch.no_grad()
def _local_start(table: Tensor, max_distance: int) -> None:
    """Make each head start by looking near its query, on one side: even heads look left, odd heads right.

    The bias of a head falls by `slope` whenever the distance doubles. It is START_SIDE lower on the head's other side
    and at the query itself. Each further pair of heads looks further. A small model that starts from zero needs over a
    thousand updates to learn that near tokens matter most.
    """
    buckets, heads = table.shape
    bucket_L = relative_buckets(2 * max_distance + 1, buckets, max_distance)[max_distance]
    offset_L = torch.arange(-max_distance, max_distance + 1)
    near = torch.full((buckets,), torch.inf).scatter_reduce(0, bucket_L, offset_L.abs().float(), "amin")
    direction = torch.zeros(buckets).scatter(0, bucket_L, offset_L.sign().float())
    for head in range(heads):
        sign, slope = (1 if head % 2 else -1), START_SLOPE / 2 ** (head // 2)
        bias = -slope * torch.log2(1 + near) - START_SIDE * (direction * sign <= 0)
        table[:, head] = bias.masked_fill(near.isinf(), 0.0)  # a bucket that no distance falls into


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, padding: Tensor | None, dropout: Dropout) -> Tensor:
    assert isinstance(dropout, float), "fused kernels drop at random only"
    mask = bias if padding is None else bias + padding
    # Not `torch.is_grad_enabled()`: activation checkpointing runs the forward pass without gradients and repeats it
    # with them. Both must use the same kernel, or they drop different probabilities.
    trained = any(tensor.requires_grad for tensor in (q, k, v, bias))
    with sdpa_kernel(TRAINING_KERNELS if trained else FROZEN_KERNELS):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def _matmul(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, padding: Tensor | None, dropout: Dropout) -> Tensor:
    scores_BHLL = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)).add_(bias)
    if padding is not None:
        scores_BHLL.add_(padding)
    probabilities_BHLL = F.softmax(scores_BHLL, dim=-1)
    kept_BHLL = F.dropout(probabilities_BHLL, dropout) if isinstance(dropout, float) else dropout(probabilities_BHLL)
    return torch.matmul(kept_BHLL, v)


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, Dropout], Tensor]] = {
    "sdpa": _sdpa,
    "matmul": _matmul,
}


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    padding: Tensor | None = None,
    dropout: Dropout = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Return softmax(q k^T / sqrt(head size) + bias + padding) v, with dropout on the probabilities: [B, H, L, D/H].

    Queries, keys and values are [B, H, L, D/H]. All tensors have one dtype.

    - `bias`, [1, H, L, L], is differentiable: the relative positions.
    - `padding`, [B, 1, 1, L], is 0 at real keys and the lowest finite number at padding; None if there is none. It is
      not part of the bias because the bias's gradient is then summed over the batch only once.
    - `dropout` is a rate, or a function of the probabilities [B, H, L, L] that drops some (backend `matmul` only).
    - `backend` is a key of BACKENDS. The default is `sdpa` on a GPU, because its memory-efficient kernel takes a
      differentiable bias. On a CPU it is `matmul`, the faster of the two in training (without gradients, `sdpa` is).
    """
    return BACKENDS[backend or ("sdpa" if q.is_cuda else "matmul")](q, k, v, bias, padding, dropout)


def runs_triton(name: str, x: Tensor, heads: int) -> bool:
    """Return whether `attention_of_distances` serves hidden states [..., D], if a config's `attention` is `name`.

    On a GPU it is two to three times faster than `sdpa`, whose kernel has to read a mask [B, H, L, L].
    """
    if name not in ("auto", "triton"):
        return False
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    able = x.is_cuda and dtype != torch.float32 and x.shape[-1] // heads in HEAD_SIZES
    able = able and torch.cuda.get_device_capability(x.device) >= (8, 0) and find_spec("triton") is not None
    if name == "triton" and not able:
        need = "an Ampere GPU or newer, 16 bit, and heads of 32, 64 or 128"
        raise UserError(f"fast_electra.model.attention: triton needs {need}; use auto")
    return able


@torch.compiler.disable
def attention_of_distances(
    qkv_BL3Hd: Tensor, bias_HR: Tensor, lengths_B: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Return what `attention` does, as [B * L, H, d], from the bias of each distance and the sequences' lengths.

    Nothing of size [L, L] is ever in memory: see `fast_electra_kernels.triton_attention`.
    """
    from fast_electra_kernels.triton_attention import attention_packed

    b, length = qkv_BL3Hd.shape[:2]
    starts_B = torch.arange(0, b * length, length, dtype=torch.int32, device=qkv_BL3Hd.device)
    covered = lengths_B is None
    if lengths_B is None:
        lengths_B = torch.full_like(starts_B, length)
    # The key is from the CPU's generator, which activation checkpointing restores.
    key = int(torch.randint(1 << 62, ())) if dropout else 0
    return attention_packed(qkv_BL3Hd.flatten(0, 1), bias_HR, starts_B, lengths_B, length, dropout, key, covered)
