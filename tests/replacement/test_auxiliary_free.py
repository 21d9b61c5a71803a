"""Each auxiliary-free distribution is drawn as D.1 and E.3 define it, and one race holds the draws at every gamma.

Keys are fixed, so a test passes always or never; the stated error rates are over all choices of keys.
"""

import math

import pytest
import torch
from scipy import stats

from fast_electra import randomness
from fast_electra.batch import Layout, MaskedBatch, TokenBatch
from fast_electra.corpus.frequency import log_frequency
from fast_electra.replacement import auxiliary_free as module
from fast_electra.replacement.auxiliary_free import AUXILIARY_FREE, AuxiliaryFree, auxiliary_free
from fast_electra.replacement.distribution import axis_position
from fast_electra.settings import UserError
from fast_electra_kernels import winners

V, ALPHA = 120, 0.35
# Zipf's law with ten absent tokens; the most frequent one is alone in its group, the next two share theirs.
COUNTS = (20_000 / torch.arange(1.0, V + 1)).long()
COUNTS[5::12] = 0
FREQUENT, RARE, ABSENT = 0, V - 2, 5
GAMMAS = [0.0, 1e-9, 0.1, 0.25, 0.3, 0.5, 0.77, 0.9, 1.0]


def make(name: str, counts: torch.Tensor = COUNTS, arrivals: int | None = None) -> AuxiliaryFree:
    distribution = auxiliary_free(name, len(counts), ALPHA, log_frequency(counts))
    distribution.arrivals = arrivals or distribution.arrivals
    return distribution


def masked(originals: torch.Tensor, seed: int = 0, keys: torch.Tensor | None = None) -> MaskedBatch:
    """One sequence that is masked everywhere."""
    m, zero = len(originals), torch.zeros(1, dtype=torch.int64)
    tokens = TokenBatch(originals, Layout.of(zero + m), zero)
    keys = randomness.key(seed, torch.arange(m)) if keys is None else keys
    return MaskedBatch(tokens, originals, torch.arange(m), keys)


def all_over(size: int, count: int) -> torch.Tensor:
    return torch.randint(size, (count,), generator=torch.Generator().manual_seed(7))


def dense(name: str, original: int, gamma: float, counts: torch.Tensor = COUNTS) -> torch.Tensor:
    """The definition over all V, in words of D.1 and E.3; torch has 0 ** 0 = 1."""
    size = len(counts)
    uniform = torch.full((size,), 1 / size, dtype=torch.float64)
    frequency = counts.double() / counts.sum()
    one_hot = torch.full((size,), ALPHA / (size - 1), dtype=torch.float64)
    one_hot[original] = 1 - ALPHA
    product = {
        "uniform": uniform,
        "term_frequency": frequency,
        "smoothed_one_hot": one_hot,
        "uniform_to_smoothed_one_hot": uniform**gamma * one_hot ** (1 - gamma),
        "term_frequency_to_smoothed_one_hot": frequency**gamma * one_hot ** (1 - gamma),
    }[name]
    return product / product.sum()


def chi_square(tokens: torch.Tensor, probability: torch.Tensor) -> float:
    """The p-value; what has no probability must not occur, and what is expected fewer than 20 times counts together."""
    observed, expected = torch.bincount(tokens, minlength=len(probability)), probability * len(tokens)
    assert not observed[probability == 0].any()
    small = expected < 20
    observed = torch.cat([observed[~small], observed[small].sum()[None]])
    expected = torch.cat([expected[~small], expected[small].sum()[None]])
    present = expected > 0
    return float(stats.chisquare(observed[present].numpy(), expected[present].numpy(), sum_check=False).pvalue)


def octaves(size: int) -> torch.Tensor:
    """A class for each token: ranks 1, 2-3, 4-7, ... together."""
    return torch.arange(1, size + 1).double().log2().floor().long()


def assert_follows(tokens: torch.Tensor, probability: torch.Tensor, original: int) -> None:
    """Token by token; and by class with the original apart, which sees small errors of large probabilities."""
    assert chi_square(tokens, probability) > 1e-3
    classes = octaves(len(probability))
    classes[original] = classes.max() + 1
    expected = torch.zeros(int(classes.max()) + 1, dtype=torch.float64).index_add(0, classes, probability)
    assert chi_square(classes[tokens], expected) > 1e-3


@pytest.mark.parametrize(
    ("name", "gamma", "original"),
    [
        ("uniform", 1.0, RARE),
        ("term_frequency", 1.0, FREQUENT),
        ("smoothed_one_hot", 0.0, FREQUENT),
        ("uniform_to_smoothed_one_hot", 0.3, RARE),
        ("term_frequency_to_smoothed_one_hot", 0.0, ABSENT),
        ("term_frequency_to_smoothed_one_hot", 0.3, FREQUENT),
        ("term_frequency_to_smoothed_one_hot", 0.3, ABSENT),
    ],
)
def test_draws_follow_the_definition(name: str, gamma: float, original: int) -> None:
    """20,000 draws. Error rate of each case: one in five hundred."""
    draws = make(name).sample(masked(torch.full((20_000,), original), seed=1), gamma)
    assert_follows(draws.tokens_M, dense(name, original, gamma), original)


@pytest.mark.parametrize(
    ("name", "gamma"),
    [("smoothed_one_hot", 0.0), ("uniform_to_smoothed_one_hot", 0.6), ("term_frequency_to_smoothed_one_hot", 0.6)],
)
def test_a_million_draws_follow_the_definition(name: str, gamma: float) -> None:
    """They see an error of 1% in any class's probability above 0.25, or errors of 1% in all single tokens at once.

    Uniform and term frequency are ends of the two paths, see below. Error rate of each case: one in five hundred.
    """
    draws = make(name).sample(masked(torch.full((1_000_000,), RARE), seed=2), gamma)
    assert_follows(draws.tokens_M, dense(name, RARE, gamma), RARE)


def test_ends_of_the_paths_are_the_distributions_themselves() -> None:
    """The same race, so the same draws; TF->SOH at 0 has other groups, and is tested by chi-square above."""
    batch = masked(all_over(V, 5000))

    def draws(name: str, gamma: float) -> list[int]:
        return make(name).sample(batch, gamma).tokens_M.tolist()

    assert draws("uniform_to_smoothed_one_hot", 1.0) == draws("uniform", 7.0)  # whose gamma is 1 whatever is asked
    assert draws("uniform_to_smoothed_one_hot", 0.0) == draws("smoothed_one_hot", 7.0)
    assert draws("term_frequency_to_smoothed_one_hot", 1.0) == draws("term_frequency", 7.0)


def test_tail_of_a_large_vocabulary() -> None:
    """Ranks together by octave, and the rarest half. Error rate: one in a thousand."""
    counts = (2e8 / torch.arange(1.0, 128_001)).long()
    counts[-1000:] = 0
    original, name, gamma = 70_000, "term_frequency_to_smoothed_one_hot", 0.5
    lump = octaves(128_000)
    lump[64_000:], lump[-1000:], lump[original] = 16, 17, 18
    tokens = make(name, counts).sample(masked(torch.full((100_000,), original)), gamma).tokens_M
    expected = torch.zeros(19, dtype=torch.float64).index_add(0, lump, dense(name, original, gamma, counts))
    assert chi_square(lump[tokens], expected) > 1e-3
    assert len(tokens[lump[tokens] == 16].unique()) > 1000  # spread, not a few of them


@pytest.mark.parametrize("name", AUXILIARY_FREE)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_entropy_and_probability_of_the_original(name: str, gamma: float) -> None:
    originals = torch.tensor([FREQUENT, RARE, ABSENT, 50])
    draws = make(name).sample(masked(originals), gamma)
    p = torch.stack([dense(name, int(original), gamma) for original in originals])
    assert draws.entropy_M is not None and draws.original_probability_M is not None
    assert draws.entropy_M.dtype == draws.original_probability_M.dtype == torch.float32
    torch.testing.assert_close(draws.entropy_M.double(), torch.special.entr(p).sum(dim=1), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        draws.original_probability_M.double(), p.gather(1, originals[:, None])[:, 0], rtol=1e-6, atol=0
    )


def test_same_keys_give_same_tokens_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    originals, keys = all_over(V, 300), randomness.key(9, torch.arange(300))
    distribution = make("term_frequency_to_smoothed_one_hot")
    whole = distribution.sample(masked(originals, keys=keys), 0.4).tokens_M
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(module, "_BLOCK", 1000)  # about twenty rows at a time
    shuffled = distribution.sample(masked(originals[order], keys=keys[order]), 0.4).tokens_M
    parts = [
        distribution.sample(masked(originals[i : i + 7], keys=keys[i : i + 7]), 0.4).tokens_M for i in range(0, 300, 7)
    ]
    assert torch.equal(whole[order], shuffled) and torch.equal(whole, torch.cat(parts))
    assert len(distribution.sample(masked(originals[:0]), 0.4).tokens_M) == 0


def test_other_keys_give_independent_tokens() -> None:
    """Of another seed, and of the neighbouring position; by octaves of rank. Error rate: one in five hundred."""
    originals, distribution = torch.full((100_000,), RARE), make("term_frequency")
    first, second = (octaves(V)[distribution.sample(masked(originals, seed=seed), 1.0).tokens_M] for seed in (1, 2))
    for one, other in ((first, second), (first[1:], first[:-1])):
        table = torch.bincount(one * 7 + other, minlength=49).view(7, 7)
        assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("name", AUXILIARY_FREE)
def test_pieces_hold_the_draw_at_every_gamma(name: str) -> None:
    distribution, batch = make(name), masked(all_over(V, 3000), seed=3)
    whole, part = distribution.pieces(batch, 0.0, 1.0), distribution.pieces(batch, 0.2, 0.6)
    for gamma in GAMMAS:
        drawn = distribution.sample(batch, gamma).tokens_M
        assert torch.equal(winners(whole, axis_position(distribution.parameter, gamma)), drawn), gamma
        if 0.2 <= gamma <= 0.6:
            assert torch.equal(winners(part, axis_position(distribution.parameter, gamma)), drawn), gamma
    pieces = whole.counts_M.double().mean()
    assert pieces == 1 if AUXILIARY_FREE[name].gamma is not None else 1 < pieces < 4


def test_pieces_of_no_position() -> None:
    for name in AUXILIARY_FREE:
        assert all(len(part) == 0 for part in make(name).pieces(masked(all_over(V, 0)), 0.0, 1.0))


@pytest.mark.parametrize("name", AUXILIARY_FREE)
def test_draws_do_not_depend_on_the_arrivals_of_the_first_race(name: str) -> None:
    batch = masked(all_over(V, 3000), seed=4)
    few, many = make(name, arrivals=1), make(name, arrivals=16)
    for gamma in (0.0, 0.5, 1.0):
        assert torch.equal(few.sample(batch, gamma).tokens_M, many.sample(batch, gamma).tokens_M)
    for one, other in zip(few.pieces(batch, 0.0, 1.0), many.pieces(batch, 0.0, 1.0), strict=True):
        torch.testing.assert_close(one, other)
    # With one arrival, bounds do win at first: the second race was needed.
    lines = few._lines(batch.keys_M, batch.original.tokens_T, 1)
    first = lines.tokens_MC.gather(1, (lines.slopes_MC * 0.5 + lines.intercepts_MC).argmax(dim=1, keepdim=True))
    assert (first < 0).sum() > 10


def test_absent_tokens_are_drawn_at_zero_only() -> None:
    distribution, batch = make("term_frequency_to_smoothed_one_hot"), masked(all_over(V, 20_000), seed=5)
    absent = COUNTS == 0
    pieces = distribution.pieces(batch, 0.0, 1.0)
    # Ten of the 120 originals are absent and are kept with 0.65; 10/119 of the other draws are.
    share = float(absent[winners(pieces, 0.0)].double().mean())
    assert share == pytest.approx(10 / 120, abs=5 * math.sqrt(10 / 120 / 20_000))  # five standard deviations
    for gamma in (1e-9, 0.01, 1.0):
        assert not absent[winners(pieces, gamma)].any()
        assert not absent[distribution.sample(batch, gamma).tokens_M].any()


@pytest.mark.parametrize("name", ["term_frequency", "term_frequency_to_smoothed_one_hot"])
def test_a_corpus_of_one_token(name: str) -> None:
    counts = torch.tensor([0, 7, 0])
    draws = make(name, counts).sample(masked(torch.tensor([0, 1, 2])), 0.5)
    assert draws.tokens_M.tolist() == [1, 1, 1]
    assert draws.entropy_M is not None and draws.entropy_M.tolist() == [0.0, 0.0, 0.0]
    assert draws.original_probability_M is not None and draws.original_probability_M.tolist() == [0.0, 1.0, 0.0]


def test_the_smallest_vocabulary() -> None:
    """Two tokens in one group; half of the arrivals are void. Error rate: one in a thousand."""
    draws = make("smoothed_one_hot", torch.tensor([1, 1])).sample(masked(torch.zeros(20_000, dtype=torch.int64)), 0.0)
    assert chi_square(draws.tokens_M, torch.tensor([1 - ALPHA, ALPHA], dtype=torch.float64)) > 1e-3


@pytest.mark.parametrize("gamma", [-0.01, 1.01, math.nan])
def test_a_gamma_out_of_range_is_refused(gamma: float) -> None:
    distribution, batch = make("uniform_to_smoothed_one_hot"), masked(all_over(V, 5))
    with pytest.raises(UserError, match=r"\[0, 1\].*curriculum\.initial"):
        distribution.sample(batch, gamma)
    with pytest.raises(UserError, match="gamma"):
        distribution.pieces(batch, 0.0, gamma)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, math.nan])
def test_an_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(UserError, match=r"replacement\.alpha"):
        auxiliary_free("smoothed_one_hot", V, alpha)
