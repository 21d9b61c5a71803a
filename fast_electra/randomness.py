"""Counter-based randomness: every random choice is a pure function of what it is about.

Which positions are masked, which token replaces them and in which order sequences come depend on (seed, epoch,
sequence, position) and on nothing else: not on rank, batch, device, or on what was drawn before. So one process and
sixty-four, online and offline, resumed and uninterrupted runs see the same corrupted tokens.

All keys are int64 tensors used as 64 random bits; arithmetic wraps.
"""

import torch
from torch import Tensor

# Streams keep the uses of one position apart.
ORDER, MASK, REPLACEMENT, MASK_OF_MLM, DROPOUT, DROP_TOKEN = 1, 2, 3, 4, 5, 6

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLY_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLY_2 = 0x94D049BB133111EB - (1 << 64)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of 64-bit integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """A bijection of 64-bit integers whose output bits each depend on all input bits (the SplitMix64 finaliser)."""
    x = (x ^ _shift(x, 30)) * _MULTIPLY_1
    x = (x ^ _shift(x, 27)) * _MULTIPLY_2
    return x ^ _shift(x, 31)


def key(*counters: int | Tensor) -> Tensor:
    """A 64-bit key for the tuple of counters, which broadcast against each other."""
    state = torch.zeros((), dtype=torch.int64)
    for counter in counters:
        value = torch.as_tensor(counter, dtype=torch.int64)
        state = mix((state.to(value.device) + _GOLDEN) ^ mix(value + _GOLDEN))
    return state


def permute(index: Tensor, size: int, rounds: Tensor) -> Tensor:
    """Image of each index under a pseudo-random permutation of range(size), in constant memory.

    A four-round Feistel network on the smallest even number of bits that holds `size`, walked until it falls inside
    the range: on average fewer than four steps, and exact for every size.

    Args:
        index: int64 [B], values in [0, size).
        rounds: int64 [B, 4] or [1, 4], keys that name the permutation of each index.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1

    def shuffle(x: Tensor) -> Tensor:
        left, right = x >> half, x & low
        for round_ in range(4):
            left, right = right, left ^ (mix(right + rounds[:, round_]) & low)
        return (left << half) | right

    image = shuffle(index)
    while bool((outside := image >= size).any()):
        image = torch.where(outside, shuffle(image), image)
    return image
