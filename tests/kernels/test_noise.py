"""The noise is Gumbel noise, tails included, and a pure function of key and token."""

import hashlib
import math

import numpy as np
import pytest
import torch
from scipy import stats

from fast_electra import randomness
from fast_electra_kernels.noise import GROUP, VERSION, exponential, gumbel, random_bits

TOKENS = torch.arange(4096, dtype=torch.int32)
PIN_KEYS = torch.tensor([0, 0x0123456789ABCDEF, -0x0FEDCBA987654321])
NOISE_CHANGED = """the noise has changed: every offline store on disk was drawn with the noise that is pinned here.
If the change is intended, change noise.VERSION too, so that old stores are refused, and then pin the new values."""


def keys(count: int, seed: int = 0) -> torch.Tensor:
    return randomness.key(seed, torch.arange(count))


def test_the_bits_are_pinned() -> None:
    """Literal values, because stores on disk rest on them: three keys, counters of groups and of tokens."""
    counters = torch.tensor([-2, -1, 0, 1, 127_999], dtype=torch.int32)
    assert random_bits(PIN_KEYS, counters).tolist() == [
        [1277061498, -1101615873, 0, 1007314967, 1696733686],
        [-682765359, -864520404, 961424133, -637087443, 1661357796],
        [2091947160, -789764485, -24359648, 1555617798, -1911174182],
    ], NOISE_CHANGED


def test_a_row_of_gumbel_numbers_is_pinned() -> None:
    exact = [
        1.192364773374665, -0.6721210788526559, -0.12516959527366087, -0.3204567851639493,
        0.7677107517735287, -0.14601623494700455, 0.7785784460980666, 2.393788228095368,
    ]  # fmt: skip
    assert gumbel(PIN_KEYS[1:2], TOKENS[:8], torch.float64)[0].tolist() == pytest.approx(exact, abs=1e-12)
    assert gumbel(PIN_KEYS[1:2], TOKENS[:8])[0].tolist() == pytest.approx(exact, abs=1e-6), NOISE_CHANGED


def test_version_changes_whenever_the_noise_does() -> None:
    """VERSION is what a store records, so it is pinned together with a hash of 1,536 bit patterns and 768 numbers."""
    bits = random_bits(PIN_KEYS, torch.arange(-256, 256, dtype=torch.int32)).numpy()
    millionths = gumbel(PIN_KEYS, TOKENS[:256], torch.float64).mul(1e6).round().long().numpy()  # none is near a half
    found = hashlib.sha256(bits.astype("<i4").tobytes() + millionths.astype("<i8").tobytes()).hexdigest()[:16]
    assert (VERSION, found) == ("exponentials of groups of 32, from the least one down", "29a085241ead8d19"), (
        NOISE_CHANGED
    )


def test_follows_the_gumbel_distribution() -> None:
    noise = gumbel(keys(200), TOKENS).flatten().numpy()
    assert stats.kstest(noise, stats.gumbel_r.cdf).pvalue > 1e-3  # one fixed seed: fails once in a thousand definitions


def test_upper_tail_is_exact_where_24_bits_would_fail() -> None:
    """A draw from a large vocabulary is decided by values that 24-bit uniforms cannot represent."""
    noise = gumbel(keys(4000, seed=1), TOKENS)  # 16.4 M numbers
    for threshold in (8.0, 10.0, 12.0):
        expected = noise.numel() * -math.expm1(-math.exp(-threshold))
        found = int((noise > threshold).sum())
        assert abs(found - expected) < 4 * math.sqrt(expected), (threshold, found, expected)


def test_matches_the_definition_in_double_precision() -> None:
    """The definition, written in numpy: each group's smallest exponential, its token, and then the others."""

    def exponentials(counters: np.ndarray) -> np.ndarray:
        bits = random_bits(keys(50), torch.from_numpy(counters.astype(np.int32))).numpy().view(np.uint32)
        return -np.log1p(-(bits.astype(np.float64) + 0.5) / 2**32)

    tokens = TOKENS.numpy()
    group = tokens // GROUP
    least = exponentials(-2 * group - 1) / GROUP
    place = random_bits(keys(50), torch.from_numpy(-2 * group - 2)).numpy() % GROUP
    exact = -np.log(least + np.where(tokens % GROUP == place, 0.0, exponentials(tokens)))
    assert np.abs(gumbel(keys(50), TOKENS, torch.float64).numpy() - exact).max() < 1e-12
    found = gumbel(keys(50), TOKENS).double().numpy()
    upper = exact > -2.0  # below, U is near 1 and its steps in float32 are coarse
    assert np.abs(found - exact)[upper].max() < 2e-5


def test_tokens_of_a_group_are_independent() -> None:
    """The exponentials of a group are as if each had been drawn by itself, although the smallest comes first.

    By Renyi's theorem this holds if two things do. The differences between a group's sorted exponentials, each times
    the number of those left, are independent standard exponentials. And each rank is equally likely for every token.
    Error rate 0.1% each.
    """
    exponentials = gumbel(keys(300), TOKENS, torch.float64).neg().exp().view(-1, GROUP)  # 38,400 groups
    ordered, who = exponentials.sort(dim=1)
    left = torch.arange(GROUP, 0, -1)
    spacings = torch.diff(ordered, dim=1, prepend=torch.zeros(len(ordered), 1)) * left
    for rank in (0, 1, 2, GROUP // 2, GROUP - 1):
        assert stats.kstest(spacings[:, rank].numpy(), stats.expon.cdf).pvalue > 1e-3
        assert stats.chisquare(torch.bincount(who[:, rank], minlength=GROUP).numpy()).pvalue > 1e-3
    correlation = torch.corrcoef(spacings.T)[~torch.eye(GROUP, dtype=torch.bool)]
    assert float(correlation.abs().max()) < 4.9 / math.sqrt(len(ordered))  # of 496: error rate 0.05%


def test_exponentials_are_exact_at_both_ends() -> None:
    bits = torch.tensor([0, 1, 2**31 - 1, -(2**31), -2, -1], dtype=torch.int32)
    exact = [-math.log1p(-((b % 2**32) + 0.5) / 2**32) for b in bits.tolist()]
    assert exponential(bits, torch.float64).tolist() == pytest.approx(exact, rel=1e-9)
    assert exponential(bits)[:4].tolist() == pytest.approx(exact[:4], rel=1e-6)
    assert bool((exponential(bits)[4:] > 16.0).all()) and bool(exponential(bits).isfinite().all())


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
    """If only the low halves counted, keys whose low halves are one STEP apart would give shifted copies."""
    key = keys(1)
    bits = random_bits(torch.cat([key, key + 0x9E3779B9 + (1 << 32)]), TOKENS)
    same = int((bits[0, 1:] == bits[1, :-1]).sum()) + int((bits[0, :-1] == bits[1, 1:]).sum())
    assert same <= 1  # by chance: 8190 / 2^32


def test_depends_on_key_and_token_only() -> None:
    whole = gumbel(keys(64), TOKENS)
    assert torch.equal(whole[10:20, 100:300], gumbel(keys(64)[10:20], TOKENS[100:300]))
