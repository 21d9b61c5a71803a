"""The noise of the sampler: Gumbel(0, 1) numbers as a pure function of (key of the position, token id).

No state, no device, no batch: whoever asks for the noise of a position gets the same numbers. The arithmetic is 32-bit
integer multiplication, exclusive or and shift, which every device does alike.
"""

import torch
from torch import Tensor

# Multipliers with good avalanche for 32-bit multiply-xorshift mixing, as signed integers (torch has no full uint32).
_STEP = 0x9E3779B9 - (1 << 32)
_MULTIPLY_1 = 0x7FEB352D
_MULTIPLY_2 = 0x846CA68B - (1 << 32)
_MULTIPLY_3 = 0xC2B2AE35 - (1 << 32)


def _xorshift_(x: Tensor, bits: int) -> Tensor:
    """x ^= x >>> bits, in place; the mask makes torch's arithmetic shift a logical one."""
    return x.bitwise_xor_((x >> bits).bitwise_and_((1 << (32 - bits)) - 1))


def random_bits(keys_M: Tensor, tokens_V: Tensor) -> Tensor:
    """32 random bits for every (key, token) as int32 [M, V].

    Args:
        keys_M: int64 [M], well-mixed 64-bit keys, one a position.
        tokens_V: int32 [V], token ids.
    """
    low_M1 = keys_M.to(torch.int32)[:, None]  # wraps: the low 32 bits
    high_M1 = (keys_M >> 32).to(torch.int32)[:, None]
    x = low_M1 + (tokens_V * _STEP)[None, :]
    _xorshift_(x, 16).mul_(_MULTIPLY_1)
    _xorshift_(x, 15).add_(high_M1).mul_(_MULTIPLY_2)  # the high half enters between rounds: keys are not mere shifts
    _xorshift_(x, 13).mul_(_MULTIPLY_3)
    return _xorshift_(x, 16)


def gumbel(keys_M: Tensor, tokens_V: Tensor) -> Tensor:
    """Standard Gumbel noise -log(E), E = -log(1 - U), float32 [M, V], from full 32-bit uniforms.

    The large values of the noise, which decide the draw, come from small E and so from small U: there U is exact in
    float32 and log1p keeps it so. Near 1, float32 rounds U to steps of 2^-24, which only coarsens the lowest values.
    """
    bits = random_bits(keys_M, tokens_V)
    # U = (unsigned bits + 1/2) / 2^32; the arithmetic shift is -1 for the negative half and adds its missing 2^32.
    uniform = bits.to(torch.float32).mul_(2.0**-32).sub_((bits >> 31).to(torch.float32)).add_(2.0**-33)
    exponential = uniform.clamp_(max=1.0 - 2.0**-24).neg_().log1p_().neg_()
    return exponential.log_().neg_()
