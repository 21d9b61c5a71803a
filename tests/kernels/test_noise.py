"""The noise is Gumbel noise, tails included, and a pure function of key and token."""

import math

import numpy as np
import torch
from scipy import stats

from fast_electra import randomness
from fast_electra_kernels.noise import gumbel, random_bits

TOKENS = torch.arange(4096, dtype=torch.int32)


def keys(count: int, seed: int = 0) -> torch.Tensor:
    return randomness.key(seed, torch.arange(count))


def test_follows_the_gumbel_distribution() -> None:
    noise = gumbel(keys(200), TOKENS).flatten().numpy()
    assert stats.kstest(noise, stats.gumbel_r.cdf).pvalue > 1e-3  # one fixed seed: fails once in a thousand definitions


def test_upper_tail_is_exact_where_24_bits_would_fail() -> None:
    """Draws from a large vocabulary are decided by values that 24-bit uniforms cannot reach or get wrong."""
    noise = gumbel(keys(4000, seed=1), TOKENS)  # 16.4 M numbers
    for threshold in (8.0, 10.0, 12.0):
        expected = noise.numel() * -math.expm1(-math.exp(-threshold))
        found = int((noise > threshold).sum())
        assert abs(found - expected) < 4 * math.sqrt(expected), (threshold, found, expected)
    assert gumbel_at(0) == -math.inf or gumbel_at(0) > 21.0  # the largest of all: U = 2^-33


def gumbel_at(bits: int) -> float:
    """The noise of given random bits, by the definition in float64."""
    return -math.log(-math.log1p(-(bits + 0.5) / 2**32))


def test_matches_the_definition_in_double_precision() -> None:
    bits = random_bits(keys(50), TOKENS).numpy().view(np.uint32).astype(np.float64)
    exact = -np.log(-np.log1p(-(bits + 0.5) / 2**32))
    found = gumbel(keys(50), TOKENS).double().numpy()
    upper = exact > -2.0  # below, U is near 1 and its steps in float32 are coarse
    assert np.abs(found - exact)[upper].max() < 2e-5


def test_bits_are_independent_between_positions_and_tokens() -> None:
    bits = random_bits(keys(512), TOKENS[:512]).numpy().view(np.uint32)
    uniform = bits.astype(np.float64) / 2**32 - 0.5
    limit = 4.5 / math.sqrt(uniform[:, :-1].size) / 12  # of a mean of products of variance 1/144
    for shift in (1, 2, 64):
        assert abs((uniform[:, :-shift] * uniform[:, shift:]).mean()) < limit
        assert abs((uniform[:-shift] * uniform[shift:]).mean()) < limit
    ones = np.unpackbits(bits.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 4.5 * 0.5 / math.sqrt(bits.size * 32)


def test_neighbouring_keys_share_nothing() -> None:
    """Low halves one token step apart would give shifted copies of one sequence, if the high halves did not enter."""
    key = keys(1)
    bits = random_bits(torch.cat([key, key + 0x9E3779B9 + (1 << 32)]), TOKENS)
    same = int((bits[0, 1:] == bits[1, :-1]).sum()) + int((bits[0, :-1] == bits[1, 1:]).sum())
    assert same <= 1  # by chance: 8190 / 2^32


def test_depends_on_key_and_token_only() -> None:
    whole = gumbel(keys(64), TOKENS)
    assert torch.equal(whole[10:20, 100:300], gumbel(keys(64)[10:20], TOKENS[100:300]))
