"""The sampler's noise: independent standard Gumbel numbers, a pure function of (key of the position, token id).

The noise of a position does not depend on any state, on the device or on the batch. The arithmetic is 32-bit integer
multiplication, exclusive or and shift, which give the same bits on every device.

The noise of token v is g_v = -log E_v, where E_v is a standard exponential. Every GROUP = 32 consecutive tokens form
a group. For group g we draw the smallest exponential m_g and the token a_g that has it. The other exponentials of the
group follow, because the exponential distribution is memoryless:

    m_g ~ Exp(1) / GROUP,    a_g ~ uniform,    E_v = m_g + [v != a_g] e_v  with  e_v ~ Exp(1).

The E_v are independent standard exponentials, exactly as if each had been drawn by itself. But one number, m_g, bounds
the noise of the whole group: no token of group g has more noise than -log m_g. A sampler that knows the group's highest
score therefore knows whether the group can hold the winner, and generates noise only for the groups that can.
"""

import torch
from torch import Tensor

from fast_electra_kernels.autocast import without_autocast

GROUP = 32  # tokens
# Stores of draws record this name of the noise. Change it whenever a bit of the noise changes; a test enforces that.
VERSION = "exponentials of groups of 32, from the least one down"

# Multipliers with good avalanche for 32-bit multiply-xorshift mixing, as signed integers (torch has no full uint32).
STEP = 0x9E3779B9 - (1 << 32)
MULTIPLY_1 = 0x7FEB352D
MULTIPLY_2 = 0x846CA68B - (1 << 32)
MULTIPLY_3 = 0xC2B2AE35 - (1 << 32)


def random_bits(keys_M: Tensor, counters_C: Tensor) -> Tensor:
    """Return 32 random bits for every (key, counter), int32 [M, C].

    Keys are well-mixed and int64. Counters are int32 [C], or [M, C] if each key has its own.
    """
    low_M1 = keys_M.to(torch.int32)[:, None]  # wraps: the low 32 bits
    high_M1 = (keys_M >> 32).to(torch.int32)[:, None]
    x = low_M1 + counters_C * STEP
    _xorshift_(x, 16).mul_(MULTIPLY_1)
    # The high half of the key enters between rounds. At the start, two keys could give shifted copies of one stream.
    _xorshift_(x, 15).add_(high_M1).mul_(MULTIPLY_2)
    _xorshift_(x, 13).mul_(MULTIPLY_3)
    return _xorshift_(x, 16)


def exponential(bits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard exponentials -log(1 - U) with U = (bits + 1/2) / 2^32.

    Small exponentials become the large noise that decides a draw. They come from small U, where float32 and log1p are
    precise. Near 1, float32 rounds U to steps of 2^-24, which only coarsens the largest exponentials. The bits are
    int32. `dtype` is float32, or float64 for exact values.
    """
    # A negative int32 stands for itself plus 2^32: `bits >> 31` is -1 there, so the subtraction adds 2^32 / 2^32 = 1.
    uniform = bits.to(dtype).mul_(2.0**-32).sub_(bits >> 31).add_(2.0**-33)
    if dtype == torch.float32:
        uniform.clamp_(max=1.0 - 2.0**-24)
    return uniform.neg_().log1p_().neg_()


def group_least(keys_M: Tensor, groups_C: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return m, the smallest exponential of each group (token id // GROUP, int32 [C] or [M, C]): [M, C] in dtype."""
    # Groups have the negative counters, because tokens have those from 0 on.
    return exponential(random_bits(keys_M, -2 * groups_C - 1), dtype).div_(GROUP)


def group_winner(keys_M: Tensor, groups_C: Tensor) -> Tensor:
    """Return a, the token that has each group's smallest exponential, int32 [M, C]; arguments as for `group_least`."""
    return random_bits(keys_M, -2 * groups_C - 2).bitwise_and_(GROUP - 1).add_(groups_C * GROUP)


def token_exponentials(keys_M: Tensor, tokens_MC: Tensor, least_MC: Tensor, winner_MC: Tensor) -> Tensor:
    """Return E_v for each key and token, [M, C].

    `tokens_MC` has int32 ids, [C] or [M, C]. `least_MC` and `winner_MC` are m and a of each token's group.
    """
    more_MC = exponential(random_bits(keys_M, tokens_MC), least_MC.dtype)
    return more_MC.masked_fill_(tokens_MC == winner_MC, 0.0).add_(least_MC)


@without_autocast()
def gumbel(keys_M: Tensor, tokens_V: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard Gumbel noise for every (key, token id), [M, V] in dtype: float32, or float64 for exact values.

    Keys are well-mixed and int64, one for each position. Token ids are int32.
    """
    groups_G, group_V = torch.unique(tokens_V // GROUP, return_inverse=True)
    least_MG, winner_MG = group_least(keys_M, groups_G, dtype), group_winner(keys_M, groups_G)
    least_MV, winner_MV = least_MG.index_select(1, group_V), winner_MG.index_select(1, group_V)
    return token_exponentials(keys_M, tokens_V, least_MV, winner_MV).log_().neg_()


def _xorshift_(x: Tensor, bits: int) -> Tensor:
    """Compute x ^= x >>> bits in place; the mask turns torch's arithmetic shift into a logical one."""
    return x.bitwise_xor_((x >> bits).bitwise_and_((1 << (32 - bits)) - 1))
