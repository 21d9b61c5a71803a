"""Dropout by counter: what is dropped is a function of (key of the sequence, layer, position, feature).

A sequence is therefore perturbed alike in any batch, on any rank, online and offline. The augmentations `dropout` and
`attention_dropout` of E.2 need this, because they change draws. In training on a CPU it is several times faster than
torch's generator, and no mask is kept for the backward pass: it is made again.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fast_electra import randomness
from fast_electra.batch import Layout
from fast_electra_kernels.noise import random_bits

_BLOCKS = {"cpu": 2**17, "cuda": 2**26}  # numbers that are made together: they stay in a CPU's cache
_MULTIPLY_1, _MULTIPLY_2, _STEP = 0x2C1B3C6D, 0x297A2D39, 0x9E3779B1 - 2**32  # of the quick hash


@dataclass(frozen=True)
class KeyedDropout:
    """Rates of dropout in one forward pass. Numbers that are kept are scaled by 1 / (1 - rate)."""

    hidden_rate: float = 0.0  # for the embedding's output and each residual branch
    attention_rate: float = 0.0  # for the attention probabilities
    site: int = 0  # number of the layer's first site; a layer has three
    quick: bool = False  # for training: rates are rounded to multiples of 2^-16, and a short hash makes the bits

    def of_layer(self, layer: int) -> "KeyedDropout":
        """Return the dropout of one encoder layer: 1, 2, ...; 0 is the embedding."""
        return dataclasses.replace(self, site=3 * layer)

    def hidden(self, x: Tensor, branch: int, layout: Layout, positions_M: Tensor | None = None) -> Tensor:
        """Drop features of hidden states in residual branch 0 or 1 of the layer.

        They are [T, D]; or, if `positions_M` is given, the rows [M, D] of these tokens.
        """
        if self.hidden_rate == 0.0:
            return x
        if self.quick and x.is_cuda:  # torch's single kernel is faster than ours
            return F.dropout(x, self.hidden_rate)
        sequence, position = layout.sequence_T, layout.position_T
        if positions_M is not None:
            sequence, position = sequence[positions_M], position[positions_M]
        keys = randomness.key(self._names(layout)[sequence], self.site + branch, position)
        dropped: Tensor = _Drop.apply(x, keys, self, self.hidden_rate)
        return dropped

    def query_keys(self, layout: Layout, heads: int) -> Tensor:
        """Return a key for the attention probabilities of each query and head: int64 [T, H]."""
        head_H = torch.arange(heads, device=layout.sequence_T.device)
        names_T1 = self._names(layout)[layout.sequence_T][:, None]
        return randomness.key(names_T1, self.site + 2, head_H, layout.position_T[:, None])

    def _names(self, layout: Layout) -> Tensor:
        return randomness.key(randomness.TRAINING_DROPOUT if self.quick else randomness.DROPOUT, layout.keys_B)

    def apply(self, x: Tensor, keys: Tensor, rate: float) -> Tensor:
        """Drop numbers of the last dimension, each row by its key, int64 [...]."""
        out, make = torch.empty_like(x, memory_format=torch.contiguous_format), _factors[self.quick]
        rows, keys, out_rows = x.flatten(0, -2), keys.flatten(), out.flatten(0, -2)
        step = max(1, _BLOCKS[x.device.type] // x.shape[-1])
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            torch.mul(rows[block], make(keys[block], x.shape[-1], rate, x.dtype), out=out_rows[block])
        return out


class _Drop(torch.autograd.Function):
    """Drop numbers; the backward pass makes the same choice again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keys: Tensor, drop: KeyedDropout, rate: float) -> Tensor:
        ctx.save_for_backward(keys)
        ctx.drop, ctx.rate = drop, rate
        return drop.apply(x, keys, rate)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (keys,) = ctx.saved_tensors
        return ctx.drop.apply(grads[0], keys, ctx.rate), None, None, None


def _exact_factors(keys: Tensor, width: int, rate: float, dtype: torch.dtype) -> Tensor:
    """Return 0 or 1 / (1 - rate) for each number of each row. The draws of two augmentations rest on these bits."""
    bits = random_bits(keys, torch.arange(width, dtype=torch.int32, device=keys.device))
    return (bits >= round(rate * 2**32) - 2**31).to(dtype) / (1.0 - rate)  # the bits are signed


def _quick_factors(keys: Tensor, width: int, rate: float, dtype: torch.dtype) -> Tensor:
    """Return 0 or 1 / (1 - rate) for each number of each row, from 16 bits each: two from one hash of 32 bits."""
    columns = torch.arange((width + 1) // 2, dtype=torch.int32, device=keys.device).mul_(_STEP)
    bits = keys.to(torch.int32)[:, None] + columns
    bits.mul_(_MULTIPLY_1)
    bits.bitwise_xor_(bits >> 15).mul_(_MULTIPLY_2)
    dropped = min(round(rate * 2**16), 2**16 - 1)
    factors = torch.empty(len(keys), width, dtype=dtype, device=keys.device)
    torch.ge(bits.view(torch.int16)[:, :width], dropped - 2**15, out=factors)
    return factors.mul_(2**16 / (2**16 - dropped))


_factors = {False: _exact_factors, True: _quick_factors}
