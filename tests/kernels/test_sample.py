"""Draws follow softmax(scale * logits + prior) and do not depend on the batch."""

import pytest
import torch
from scipy import stats

from fast_electra import randomness
from fast_electra_kernels import IMPLEMENTATIONS, sample, sample_logits, sample_with_statistics

M, D, V = 200_000, 8, 50  # so many draws see an error of 1% in any probability over 0.05


def logits_as_model(logits_V: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, weight and bias whose product is `logits_V` in every row."""
    hidden = torch.zeros(rows, D)
    hidden[:, 0] = 1.0
    weight = torch.zeros(len(logits_V), D)
    weight[:, 0] = logits_V
    return hidden, weight, torch.zeros(len(logits_V))


def keys(count: int, seed: int = 0) -> torch.Tensor:
    return randomness.key(seed, torch.arange(count))


def chi_square(ids: torch.Tensor, probability_V: torch.Tensor) -> float:
    counts = torch.bincount(ids, minlength=len(probability_V)).double().numpy()
    return float(stats.chisquare(counts, probability_V.double().numpy() * len(ids)).pvalue)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("temperature", [1.0, 1.5, 2.0, 4.0])
def test_follows_the_smoothed_softmax(impl: str, temperature: float) -> None:
    """Eq. 1. Error rate: one of a thousand correct implementations fails each case."""
    logits = torch.randn(V, generator=torch.Generator().manual_seed(3)) * 1.5
    ids = sample(*logits_as_model(logits, M), scale=1 / temperature, keys_M=keys(M), impl=impl)
    assert chi_square(ids, torch.softmax(logits.double() / temperature, 0)) > 1e-3


def test_prior_interpolates_logarithmically() -> None:
    generator = torch.Generator().manual_seed(4)
    logits, prior = torch.randn(V, generator=generator), torch.randn(V, generator=generator).log_softmax(0)
    gamma = 0.3
    ids = sample(*logits_as_model(logits, M), scale=1 - gamma, prior_V=gamma * prior, keys_M=keys(M))
    assert chi_square(ids, torch.softmax((1 - gamma) * logits.double() + gamma * prior.double(), 0)) > 1e-3


def test_same_keys_give_same_tokens_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(5)
    hidden, weight = torch.randn(300, D, generator=generator), torch.randn(2000, D, generator=generator)
    whole = sample(hidden, weight, scale=0.7, keys_M=keys(300))
    order = torch.randperm(300, generator=generator)
    shuffled = sample(hidden[order], weight, scale=0.7, keys_M=keys(300)[order])
    parts = torch.cat(
        [sample(hidden[i : i + 7], weight, scale=0.7, keys_M=keys(300)[i : i + 7]) for i in range(0, 300, 7)]
    )
    assert torch.equal(whole[order], shuffled) and torch.equal(whole, parts)


def test_other_keys_give_independent_tokens() -> None:
    logits = torch.zeros(V)
    first = sample(*logits_as_model(logits, M), scale=1.0, keys_M=keys(M, seed=1))
    second = sample(*logits_as_model(logits, M), scale=1.0, keys_M=keys(M, seed=2))
    agree = int((first == second).sum())  # binomial(M, 1/V)
    assert stats.binomtest(agree, M, 1 / V).pvalue > 1e-3


def test_extremes() -> None:
    logits = torch.zeros(V)
    logits[7] = 30.0
    assert (sample(*logits_as_model(logits, 1000), scale=1.0, keys_M=keys(1000)) == 7).all()
    hidden, weight, bias = logits_as_model(torch.zeros(V), 1000)
    bias[10:] = -torch.inf
    assert int(sample(hidden, weight, bias, scale=0.5, keys_M=keys(1000)).max()) < 10
    assert sample(hidden[:0], weight, bias, scale=1.0, keys_M=keys(0)).shape == (0,)


def test_bad_input_is_refused() -> None:
    hidden, weight, bias = logits_as_model(torch.zeros(V), 4)
    with pytest.raises(ValueError, match="NaN"):
        sample(hidden * torch.nan, weight, bias, scale=1.0, keys_M=keys(4))
    with pytest.raises(ValueError, match="scale"):
        sample(hidden, weight, bias, scale=-1.0, keys_M=keys(4))
    with pytest.raises(ValueError, match="keys"):
        sample(hidden, weight, bias, scale=1.0, keys_M=keys(3))
    with pytest.raises(ValueError, match="impl"):
        sample(hidden, weight, bias, scale=1.0, keys_M=keys(4), impl="cuda")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_statistics_are_those_of_the_distribution_drawn_from(impl: str) -> None:
    """Beside a dense float64 softmax; tokens that are never drawn add nothing, and do not make NaN."""
    generator = torch.Generator().manual_seed(5)
    hidden, weight = torch.randn(300, D, generator=generator), torch.randn(V, D, generator=generator)
    bias, prior = torch.randn(V, generator=generator), torch.randn(V, generator=generator)
    bias[7], prior[9] = -torch.inf, -1e30
    original = torch.arange(300) % V
    more = {"scale": 0.6, "prior_V": prior, "keys_M": keys(300), "impl": impl}
    ids, statistics = sample_with_statistics(hidden, weight, bias, original_M=original, **more)
    assert torch.equal(ids, sample(hidden, weight, bias, **more))
    p = (0.6 * (hidden @ weight.T + bias).double() + prior).softmax(1)
    assert torch.allclose(statistics.entropy_M.double(), -torch.xlogy(p, p).sum(1), atol=1e-5)
    assert torch.allclose(statistics.original_M.exp().double(), p.gather(1, original[:, None])[:, 0], atol=1e-6)


def test_logits_in_memory_give_the_same_draws() -> None:
    generator = torch.Generator().manual_seed(6)
    hidden, weight = torch.randn(700, D, generator=generator), torch.randn(V, D, generator=generator)
    logits, original = hidden @ weight.T, torch.arange(700) % V
    before = logits.clone()
    ids, statistics = sample_logits(logits, keys(700), original)
    expected = sample_with_statistics(hidden, weight, scale=1.0, keys_M=keys(700), original_M=original)
    assert torch.equal(ids, expected[0]) and torch.equal(logits, before)
    assert torch.allclose(statistics.entropy_M, expected[1].entropy_M, atol=1e-5)
    assert [len(part) for part in sample_logits(logits[:0], keys(0), original[:0])[1]] == [0, 0]
