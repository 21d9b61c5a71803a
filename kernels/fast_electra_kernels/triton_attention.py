"""Attention with a bias of the distance alone, over sequences of any lengths, as Triton kernels with a backward pass.

The forward pass keeps the output and the log-sum-exp of each query. The backward pass computes the probabilities again,
tile by tile, once for the queries' gradient, once for that of keys and values, and once for the bias's gradient. In the
last, a program holds one tile of one head, [queries, keys], and adds up its score gradients over many sequences. Only
then does it sum the tile along its diagonals. No kernel uses atomics, so two runs give the same bits.

Dropout is a function of (key, sequence, head, query, key position). No mask is stored; `dropout_mask` returns it.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from fast_electra_kernels import attention_kernels as kernels
from fast_electra_kernels import noise

LOG2_E = 1.0 / math.log(2.0)
LEVELS = 1 << 16  # dropout rates are multiples of 1 / LEVELS
ROOM = 256  # of the padded bias on each side: the longest side of a tile is at most this


class Tiles(NamedTuple):
    """Shape of a kernel's tiles, and compiler options."""

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int = 0  # the most that a thread may have; 0 leaves it to the assembler


class Plan(NamedTuple):
    """Tiles of each kernel, and into how many parts the kernel of the bias's gradient cuts a batch.

    All sides are powers of two. A kernel reads row statistics of whole blocks of queries, so its block must be at most
    that of the kernel which wrote them: `forward.queries` >= `queries.queries` >= those of `keys` and `bias`. In
    `bias`, keys are at least queries.
    """

    forward: Tiles
    queries: Tiles
    keys: Tiles
    bias: Tiles
    chunks: int = 2


_ANY = Tiles(64, 64, 4, 1)
INTERPRETED = Plan(_ANY, _ANY, _ANY, _ANY)  # for Triton's interpreter on a CPU


def plan(dtype: torch.dtype, d: int, capability: tuple[int, int]) -> Plan:
    """Return the tiles for a GPU of that compute capability; `benchmarks/attention.py --tune` tries others."""
    # None of these spills registers, except for `queries` in fp32 with d = 128. All but 9.0's fit into 99 KiB of shared
    # memory.
    if dtype == torch.float32:
        rows = 32 if d <= 64 else 16
        return Plan(Tiles(32, 32, 8, 1), Tiles(32, rows, 8, 1), Tiles(rows, 32, 8, 1), Tiles(32, 32, 8, 1))
    if capability[0] == 9 and d <= 64:
        forward = Tiles(128, 64, 8, 3, 128 if d == 64 else 0)  # so that two programs fit on a multiprocessor
        return Plan(forward, Tiles(64, 32, 4, 3), Tiles(32, 64, 4, 2), Tiles(64, 64, 4, 3), chunks=1)
    if capability[0] == 9:
        return Plan(Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 2), Tiles(32, 128, 8, 2), Tiles(64, 64, 8, 2))
    keys = Tiles(32, 128 if d <= 64 else 64, 8, 2)
    return Plan(Tiles(128, 64, 8, 2), Tiles(64, 32, 4, 2), keys, keys)


class Batch(NamedTuple):
    """What describes a batch, its dropout, and how the kernels run."""

    starts_B: Tensor
    lengths_B: Tensor
    longest: int
    dropout: float
    key: int
    covered: bool
    plan: Plan | None


def attention(
    qkv: Tensor,
    bias_HR: Tensor,
    starts_B: Tensor,
    lengths_B: Tensor,
    longest: int,
    dropout: float = 0.0,
    key: int = 0,
    covered: bool = False,
    plan: Plan | None = None,
) -> Tensor:
    """Return softmax(q k^T / sqrt(d) + bias) v within each sequence, with dropout on the probabilities: [T, H, d].

    The result and all gradients are the same to the bit in every run.

    Args:
        qkv: queries, keys and values, [T, 3, H, d] in bf16, fp16 or fp32; d is 32, 64 or 128.
        bias_HR: finite biases of each distance, differentiable, R = 2 Lmax - 1 and Lmax >= longest. The score of a
            query and a key gets bias_HR[head, key - query + Lmax - 1]. Its gradient is summed in fp32.
        starts_B: first row of each sequence, int32, on the device. Sequences do not overlap.
        lengths_B: rows of each sequence, int32, on the device.
        longest: no sequence is longer.
        dropout: rate, rounded to a multiple of 2^-16.
        key: 64 bits that choose what is dropped.
        covered: whether every row belongs to a sequence. If not, the other rows have output and gradients 0.
        plan: replaces the tiles that are chosen by default.
    """
    assert qkv.shape[-1] in (32, 64, 128) and qkv.stride(-1) == 1, (qkv.shape, qkv.stride())
    assert bias_HR.shape[1] % 2 == 1 and bias_HR.shape[1] // 2 + 1 >= longest, (bias_HR.shape, longest)
    assert starts_B.dtype == lengths_B.dtype == torch.int32, (starts_B.dtype, lengths_B.dtype)
    assert 0.0 <= dropout < 1.0, dropout
    batch = Batch(starts_B, lengths_B, longest, dropout, key, covered, plan)
    output: Tensor = _Attention.apply(bias_HR, batch, qkv)
    return output


def padded_bias(bias_HR: Tensor) -> Tensor:
    """Return the bias as the kernels read it: in base 2, with room on both sides, fp32 [H, R + 2 ROOM]."""
    return F.pad(bias_HR.float() * LOG2_E, (ROOM, ROOM))


def _mixed(key: int) -> int:
    """Return 64 well-mixed bits of a key, as a signed number."""
    x = (key + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return (x ^ x >> 31) - 2**63


def dropout_mask(key: int, rate: float, sequences: int, heads: int, length: int) -> Tensor:
    """Return which probabilities are kept, bool [B, H, query, key], as the kernels compute it."""
    mixed = torch.tensor([_mixed(key)])
    stream_S = noise.random_bits(mixed, torch.arange(sequences * heads, dtype=torch.int32))[0].long() & 0xFFFFFFFF
    position_L = torch.arange(length, dtype=torch.int32)
    word_SL = noise.random_bits(stream_S + ((mixed >> 32) << 32), position_L)
    key_word_L = (position_L & ~kernels.PAIR) * (kernels.KEY_STEP - (1 << 32))
    bits = (word_SL[:, :, None] ^ key_word_L) * (kernels.MULTIPLY - (1 << 32))
    bits = bits ^ (bits >> 15 & (1 << 17) - 1)
    kept_SLL = (bits >> 16 - (position_L & kernels.PAIR) * 2 & 0xFFFF) >= round(rate * LEVELS)
    return kept_SLL.view(sequences, heads, length, length)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bias_HR: Tensor, batch: Batch, qkv: Tensor) -> Tensor:
        q, k, v = qkv.unbind(1)
        launcher = Launcher(q, bias_HR.shape[1], batch)
        padded_HW = padded_bias(bias_HR)
        output, lse_BHL, words_BHL = launcher.forward(q, k, v, padded_HW)
        ctx.launcher, ctx.bias_dtype = launcher, bias_HR.dtype
        ctx.save_for_backward(padded_HW, output, lse_BHL, words_BHL, qkv)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor]:
        padded_HW, output, lse_BHL, words_BHL, qkv = ctx.saved_tensors
        q, k, v = qkv.unbind(1)
        grad = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        launcher: Launcher = ctx.launcher
        made = launcher.empty(qkv.shape, dtype=q.dtype, device=q.device)
        saved = (q, k, v, padded_HW, grad, lse_BHL, words_BHL)
        delta_BHL = launcher.backward_queries(*saved, output, made[:, 0])
        launcher.backward_keys(*saved, delta_BHL, made[:, 1], made[:, 2])
        grad_bias = launcher.backward_bias(*saved, delta_BHL).to(ctx.bias_dtype) if ctx.needs_input_grad[0] else None
        return grad_bias, None, made


class Launcher:
    """Launches each kernel on one batch; a benchmark uses it to time them one by one."""

    def __init__(self, q: Tensor, r: int, batch: Batch) -> None:
        (self.tokens, self.heads, self.d), self.r, self.batch = q.shape, r, batch
        if q.is_cuda:
            self.plan = batch.plan or plan(q.dtype, self.d, torch.cuda.get_device_capability(q.device))
        else:
            self.plan = batch.plan or INTERPRETED
        rows = [tiles.queries for tiles in self.plan[:4]]
        assert rows[0] >= rows[1] >= max(rows[2:]) and self.plan.bias.keys >= rows[3], self.plan
        self.empty = torch.empty if batch.covered else torch.zeros
        self.threshold = min(round(batch.dropout * LEVELS), LEVELS - 1)
        self.padded = triton.cdiv(batch.longest, ROOM) * ROOM
        self.keep_scale = LEVELS / (LEVELS - self.threshold)
        self.softmax_scale = self.d**-0.5
        self.constants = {"D": self.d, "DROPOUT": self.threshold > 0, "WIDEN": not q.is_cuda}

    def _options(self, tiles: Tiles) -> dict[str, Any]:
        shape = {"BM": tiles.queries, "BN": tiles.keys, "num_warps": tiles.warps, "num_stages": tiles.stages}
        return self.constants | shape | ({"maxnreg": tiles.registers} if tiles.registers else {})

    def _bias(self) -> tuple[int, int, int, float]:
        return self.padded, self.r + 2 * ROOM, self.r // 2 + ROOM, self.softmax_scale * LOG2_E

    def _threshold(self) -> int:
        return _signed(self.threshold << 16)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output, and the log-sum-exp and the dropout word of each query."""
        output = self.empty(self.tokens, self.heads, self.d, dtype=q.dtype, device=q.device)
        lse_BHL = torch.empty(len(self.batch.starts_B), self.heads, self.padded, dtype=torch.float32, device=q.device)
        words_BHL = torch.empty_like(lse_BHL, dtype=torch.int32) if self.threshold else lse_BHL
        starts, lengths, tiles = self.batch.starts_B, self.batch.lengths_B, self.plan.forward
        mixed = _mixed(self.batch.key)
        high, low = mixed >> 32, _signed(mixed & 0xFFFFFFFF)
        kernels.forward[triton.cdiv(self.batch.longest, tiles.queries), self.heads, len(starts)](
            q, k, v, bias, output, lse_BHL, words_BHL, starts, lengths, *_strides(q, k, v), *self._bias(), low, high,
            self._threshold(), self.keep_scale, H=self.heads, **self._options(tiles),
        )  # fmt: skip
        return output, lse_BHL, words_BHL

    def backward_queries(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, grad: Tensor, lse: Tensor, words: Tensor, output: Tensor,
        grad_q: Tensor,
    ) -> Tensor:  # fmt: skip
        """Fill `grad_q`, and return delta."""
        delta_BHL, tiles = torch.empty_like(lse), self.plan.queries
        kernels.backward_queries[triton.cdiv(self.batch.longest, tiles.queries), self.heads, len(self.batch.starts_B)](
            q, k, v, bias, output, grad, lse, delta_BHL, words, grad_q, self.batch.starts_B, self.batch.lengths_B,
            *_strides(q, k, v, grad, grad_q), *self._bias(), self.softmax_scale, self._threshold(), self.keep_scale,
            H=self.heads, **self._options(tiles),
        )  # fmt: skip
        return delta_BHL

    def backward_keys(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, grad: Tensor, lse: Tensor, words: Tensor, delta: Tensor,
        grad_k: Tensor, grad_v: Tensor,
    ) -> None:  # fmt: skip
        """Fill `grad_k` and `grad_v`."""
        tiles = self.plan.keys
        kernels.backward_keys[triton.cdiv(self.batch.longest, tiles.keys), self.heads, len(self.batch.starts_B)](
            q, k, v, bias, grad, lse, delta, words, grad_k, grad_v, self.batch.starts_B, self.batch.lengths_B,
            *_strides(q, k, v, grad, grad_k), *self._bias(), self.softmax_scale, self._threshold(), self.keep_scale,
            H=self.heads, **self._options(tiles),
        )  # fmt: skip

    def backward_bias(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, grad: Tensor, lse: Tensor, words: Tensor, delta: Tensor
    ) -> Tensor:
        """Return the gradient of the bias, fp32 [H, R]."""
        tiles, starts, lengths = self.plan.bias, self.batch.starts_B, self.batch.lengths_B
        b, chunks = len(starts), min(self.plan.chunks, len(starts))
        order = torch.empty_like(lengths)
        kernels.sort[(triton.cdiv(b, 32),)](lengths, order, b, BLOCK=32)
        blocks = triton.cdiv(self.batch.longest, tiles.queries), triton.cdiv(self.batch.longest, tiles.keys)
        count = blocks[0] * blocks[1]
        sums = torch.empty(chunks, self.heads, count, 2 * tiles.keys, dtype=torch.float32, device=q.device)
        kernels.backward_bias[count, self.heads, chunks](
            q, k, v, bias, grad, lse, delta, words, sums, order, starts, lengths, *_strides(q, k, v, grad),
            *self._bias(), self._threshold(), self.keep_scale, b, blocks[1], H=self.heads, **self._options(tiles),
        )  # fmt: skip
        grad_bias = torch.empty(self.heads, self.r, dtype=torch.float32, device=q.device)
        kernels.add_diagonals[triton.cdiv(self.r, 64), self.heads](
            sums, grad_bias, self.r, *blocks, chunks, H=self.heads, BM=tiles.queries, BN=tiles.keys, BLOCK=64, TILES=32
        )
        return grad_bias


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _signed(bits: int) -> int:
    """Return 32 bits as a signed number."""
    return bits - ((bits & 0x80000000) << 1)
