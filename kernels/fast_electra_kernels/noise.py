"""The noise of the sampler: independent standard Gumbel numbers, a pure function of (key of the position, token id).

No state, no device, no batch: whoever asks for the noise of a position gets the same numbers. The arithmetic is 32-bit
integer multiplication, exclusive or and shift, which every device does alike.

The noise of token v is g_v = -log E_v, with E_v standard exponential. It is made from the top down: tokens stand in
groups of GROUP neighbours, and for each group g come first the least of its exponentials, m_g, and the token a_g that
has it; the others follow by what memorylessness says of them:

    m_g ~ Exp(1) / GROUP,    a_g ~ uniform,    E_v = m_g + [v != a_g] e_v  with  e_v ~ Exp(1).

So the E_v are independent standard exponentials, exactly as if each had been drawn by itself. But that no token of
group g has more noise than -log m_g is known from one number, so a sampler that knows a group's highest score knows
whether it can hold the winner, and need not make the noise of the groups that cannot.
"""

import torch
from torch import Tensor

from fast_electra_kernels.autocast import without_autocast

GROUP = 32  # tokens
VERSION = "exponentials of groups of 32, from the least one down"  # whoever keeps draws notes by which noise

# Multipliers with good avalanche for 32-bit multiply-xorshift mixing, as signed integers (torch has no full uint32).
STEP = 0x9E3779B9 - (1 << 32)
MULTIPLY_1 = 0x7FEB352D
MULTIPLY_2 = 0x846CA68B - (1 << 32)
MULTIPLY_3 = 0xC2B2AE35 - (1 << 32)


def random_bits(keys_M: Tensor, counters_C: Tensor) -> Tensor:
    """32 random bits for every (key, counter) as int32 [M, C].

    Args:
        keys_M: int64 [M], well-mixed 64-bit keys, one a position.
        counters_C: int32 [C]; or [M, C], where each key has counters of its own.
    """
    low_M1 = keys_M.to(torch.int32)[:, None]  # wraps: the low 32 bits
    high_M1 = (keys_M >> 32).to(torch.int32)[:, None]
    x = low_M1 + counters_C * STEP
    _xorshift_(x, 16).mul_(MULTIPLY_1)
    _xorshift_(x, 15).add_(high_M1).mul_(MULTIPLY_2)  # the high half enters between rounds: keys are not mere shifts
    _xorshift_(x, 13).mul_(MULTIPLY_3)
    return _xorshift_(x, 16)


def exponential(bits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard exponentials -log(1 - U), U = (bits + 1/2) / 2^32, from 32 random bits each.

    The small values, which become the large noise that decides a draw, come from small U: there U is exact in float32
    and log1p keeps it so. Near 1, float32 rounds U to steps of 2^-24, which only coarsens the largest exponentials.

    Args:
        bits: int32.
        dtype: float32, or float64 where exact values are wanted.
    """
    # The arithmetic shift is -1 for the negative half and adds its missing 2^32.
    uniform = bits.to(dtype).mul_(2.0**-32).sub_(bits >> 31).add_(2.0**-33)
    if dtype == torch.float32:
        uniform.clamp_(max=1.0 - 2.0**-24)
    return uniform.neg_().log1p_().neg_()


def group_least(keys_M: Tensor, groups_C: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """m, the least exponential of each group: [M, C] in dtype.

    Args:
        keys_M: int64 [M].
        groups_C: int32 [C] or [M, C], numbers of groups: token id divided by GROUP.
    """
    return exponential(random_bits(keys_M, -2 * groups_C - 1), dtype).div_(GROUP)  # tokens have the counters from 0 on


def group_winner(keys_M: Tensor, groups_C: Tensor) -> Tensor:
    """a, the token id that has the least exponential of each group: int32 [M, C]; arguments as for `group_least`."""
    return random_bits(keys_M, -2 * groups_C - 2).bitwise_and_(GROUP - 1).add_(groups_C * GROUP)


def token_exponentials(keys_M: Tensor, tokens_MC: Tensor, least_MC: Tensor, winner_MC: Tensor) -> Tensor:
    """E_v for each key and token, [M, C].

    Args:
        keys_M: int64 [M].
        tokens_MC: int32 [C] or [M, C], token ids.
        least_MC: m of each token's group; broadcast against [M, C].
        winner_MC: int32, a of each token's group; likewise.
    """
    more_MC = exponential(random_bits(keys_M, tokens_MC), least_MC.dtype)
    return more_MC.masked_fill_(tokens_MC == winner_MC, 0.0).add_(least_MC)


@without_autocast
def gumbel(keys_M: Tensor, tokens_V: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard Gumbel noise of every (key, token), [M, V] in dtype.

    Args:
        keys_M: int64 [M], well-mixed 64-bit keys, one a position.
        tokens_V: int32 [V], token ids.
        dtype: float32, or float64 where exact values are wanted.
    """
    groups_G, group_V = torch.unique(tokens_V // GROUP, return_inverse=True)
    least_MG, winner_MG = group_least(keys_M, groups_G, dtype), group_winner(keys_M, groups_G)
    exponentials_MV = token_exponentials(
        keys_M, tokens_V, least_MG.index_select(1, group_V), winner_MG.index_select(1, group_V)
    )
    return exponentials_MV.log_().neg_()


def _xorshift_(x: Tensor, bits: int) -> Tensor:
    """x ^= x >>> bits, in place; the mask makes torch's arithmetic shift a logical one."""
    return x.bitwise_xor_((x >> bits).bitwise_and_((1 << (32 - bits)) - 1))
