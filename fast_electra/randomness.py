"""Counter-based randomness: every random choice is a pure function of its counters.

Which positions are masked, which token replaces each of them, and in which order sequences come depend on (seed, epoch,
sequence, position) and on nothing else. They do not depend on the rank, the batch, the device or on earlier draws. So
one process and sixty-four, online and offline, resumed and uninterrupted runs see the same corrupted tokens.

All keys are int64 tensors that hold 64 random bits; their arithmetic wraps around.
"""

import torch
from torch import Tensor

# Each use of randomness has a stream of its own, so that two uses of one position draw different bits.
ORDER, MASK, REPLACEMENT, MASK_OF_MLM, DROPOUT, DROP_TOKEN, TRAINING_DROPOUT = 1, 2, 3, 4, 5, 6, 7

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLY_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLY_2 = 0x94D049BB133111EB - (1 << 64)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Return the logical right shift of 64-bit integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """Apply SplitMix64's last step: a bijection of 64-bit integers, each output bit of which depends on all input."""
    x = (x ^ _shift(x, 30)) * _MULTIPLY_1
    x = (x ^ _shift(x, 27)) * _MULTIPLY_2
    return x ^ _shift(x, 31)


def key(*counters: int | Tensor) -> Tensor:
    """Return a 64-bit key for the tuple of counters, which broadcast against each other.

    An int stays on the CPU as a tensor without dimensions: it mixes with tensors of any device, and no copy to the
    device or back is needed. Tensors with dimensions must share one device.
    """
    state = torch.zeros((), dtype=torch.int64)
    for counter in counters:
        value = torch.as_tensor(counter, dtype=torch.int64)
        state = mix((state + _GOLDEN) ^ mix(value + _GOLDEN))
    return state


def permute(index: Tensor, size: int, rounds: Tensor) -> Tensor:
    """Return the image of each index under a pseudo-random permutation of range(size), in constant memory.

    A four-round Feistel network permutes the smallest even number of bits that holds `size`. It is applied again until
    the image falls inside the range. This takes fewer than four steps on average and is exact for every size. `rounds`,
    int64 [B, 4] or [1, 4], are keys that name the permutation of each index.
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
