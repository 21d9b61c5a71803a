"""Every implementation draws from softmax(scale * logits + prior), and draws depend only on keys and scores.

Tests of `triton` alone, which is slow without a GPU, are in `test_triton_sampler.py`.
"""

import math

import pytest
import torch
from draws import DEVICE, D, V, assert_equal_up_to_ties, chi_square, keys, logits_as_model, model
from scipy import stats
from torch import Tensor

from fast_electra.cost.measure import tensor_memory
from fast_electra_kernels import (
    IMPLEMENTATIONS,
    blocked,
    logits,
    sample,
    sample_logits,
    sample_with_statistics,
    workspace_bytes,
)

FAST = ["reference", "blocked"]
M = 200_000  # so many draws see an error of 1% in any probability over 0.05


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("temperature", [1.0, 4.0])  # others are compared with float64 below
def test_follows_the_smoothed_softmax(impl: str, temperature: float) -> None:
    """Eq. 1. Error rate: one of a thousand correct implementations fails each case."""
    logits = torch.randn(V, generator=torch.Generator().manual_seed(3)) * 1.5
    ids = sample(*logits_as_model(logits, M), scale=1 / temperature, keys_M=keys(M), impl=impl)
    assert chi_square(ids, torch.softmax(logits.double() / temperature, 0)) > 1e-3


@pytest.mark.parametrize("impl", FAST)
def test_prior_interpolates_logarithmically(impl: str) -> None:
    generator = torch.Generator().manual_seed(4)
    logits_V, prior = torch.randn(V, generator=generator), torch.randn(V, generator=generator).log_softmax(0)
    gamma = 0.3
    ids = sample(*logits_as_model(logits_V, M), scale=1 - gamma, prior_V=gamma * prior, keys_M=keys(M), impl=impl)
    assert chi_square(ids, torch.softmax((1 - gamma) * logits_V.double() + gamma * prior.double(), 0)) > 1e-3


def test_rare_tokens_of_a_large_vocabulary_have_their_share() -> None:
    """127,000 tokens of the paper's V have a probability below 1e-6 each, and a tenth together.

    20,000 draws detect an error of 2% in that tenth. The rare draws are spread evenly over 50 stretches of the
    vocabulary. Error rate 0.1% each.
    """
    vocabulary, common, draws = 128_000, 1000, 20_000
    p_V = torch.full((vocabulary,), 0.1 / (vocabulary - common), dtype=torch.float64)
    p_V[:common] = 0.9 / common
    assert float(p_V[common:].max()) < 1e-6
    hidden, weight, bias = torch.zeros(draws, 1), torch.zeros(vocabulary, 1), p_V.log().float()
    ids = sample(hidden, weight, bias, scale=1.0, keys_M=keys(draws, seed=3), impl="blocked")
    rare = ids[ids >= common]
    assert stats.binomtest(len(rare), draws, 0.1).pvalue > 1e-3
    stretches = torch.bincount((rare - common) * 50 // (vocabulary - common), minlength=50)
    assert stats.chisquare(stretches.numpy()).pvalue > 1e-3
    some = slice(0, 400)
    same = sample(hidden[some], weight, bias, scale=1.0, keys_M=keys(draws, seed=3)[some], impl="reference")
    assert torch.equal(same, ids[some])


CASES = [  # rows, vocabulary, hidden size, spread of the logits, scale, with a prior
    (1000, 2000, 64, 1.5, 0.5, False),
    (300, 1001, 40, 4.0, 1.0, False),  # V and D are multiples of nothing
    (300, 777, 128, 2.0, 0.6, True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_agrees_with_float64(
    impl: str,
    case: tuple[int, int, int, float, float, bool],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Draws and statistics, also in 16 bits, because products of 16-bit numbers are exact in float32."""
    monkeypatch.setattr(blocked, "multiplies_bf16", lambda: False)  # `test_blocked_bf16.py` has the other case
    m, v, d, spread, scale, with_prior = case
    if impl == "triton" and dtype != torch.float32:
        if not with_prior:
            pytest.skip("one case in 16 bit is enough of the slow interpreter")
        m = 100
    hidden, weight, bias = (tensor.to(dtype) for tensor in model(m, v, d, spread))
    prior = torch.randn(v, generator=torch.Generator().manual_seed(1)) if with_prior else None
    original = torch.arange(m) % v
    device = DEVICE if impl == "triton" else torch.device("cpu")
    arguments = [None if tensor is None else tensor.to(device) for tensor in (hidden, weight, bias, prior, keys(m))]
    ids, statistics = sample_with_statistics(
        *arguments[:3],
        scale=scale,
        prior_V=arguments[3],
        keys_M=arguments[4],
        original_M=original.to(device),
        impl=impl,
    )
    scores_MV = scale * (hidden.double() @ weight.double().T + bias.double()) + (0.0 if prior is None else prior)
    ids = ids.cpu()
    assert_equal_up_to_ties(ids, scores_MV, keys(m))
    log_p_MV = scores_MV.log_softmax(1)
    expected = (
        log_p_MV.gather(1, ids[:, None])[:, 0],
        log_p_MV.gather(1, original[:, None])[:, 0],
        -(log_p_MV.exp() * log_p_MV).sum(1),
    )
    for found, exact in zip(statistics, expected, strict=True):
        assert torch.allclose(found.cpu().double(), exact, atol=3e-5)


@pytest.mark.parametrize("impl", FAST)
def test_a_flat_distribution_over_part_of_the_vocabulary(impl: str) -> None:
    """With scale 0 only the prior counts, if there is one; padding tokens of the last group are never drawn."""
    hidden, weight, bias = logits_as_model(torch.randn(V), 20_000)
    assert (
        chi_square(
            sample(hidden, weight, bias, scale=0.0, keys_M=keys(20_000), impl=impl),
            torch.ones(V, dtype=torch.float64) / V,
        )
        > 1e-3
    )
    prior = torch.full((3000,), -torch.inf)  # the whole first block of `blocked`, and more
    prior[2990:] = 0.0
    hidden, weight, bias = logits_as_model(torch.randn(3000), 2000)
    original = torch.full((2000,), 2995)
    ids, statistics = sample_with_statistics(
        hidden, weight, bias, scale=0.0, prior_V=prior, keys_M=keys(2000), original_M=original, impl=impl
    )
    assert chi_square(ids - 2990, torch.full((10,), 0.1, dtype=torch.float64)) > 1e-3
    for found, exact in zip(statistics, (-math.log(10), -math.log(10), math.log(10)), strict=True):
        assert torch.allclose(found, torch.tensor(exact))


@pytest.mark.parametrize("impl", FAST)
def test_same_keys_give_same_tokens_in_any_batch(impl: str) -> None:
    hidden, weight, _ = model(300, 2000, D, 3.0, seed=5)
    whole = sample(hidden, weight, scale=0.7, keys_M=keys(300), impl=impl)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(5))
    shuffled = sample(hidden[order], weight, scale=0.7, keys_M=keys(300)[order], impl=impl)
    parts = torch.cat(
        [sample(hidden[i : i + 7], weight, scale=0.7, keys_M=keys(300)[i : i + 7], impl=impl) for i in range(0, 300, 7)]
    )
    assert torch.equal(whole[order], shuffled) and torch.equal(whole, parts)


@pytest.mark.parametrize("impl", FAST)
def test_other_keys_give_independent_tokens(impl: str) -> None:
    """With flat logits, two draws agree only by chance, and their ids do not correlate."""
    logits_V = torch.zeros(V)
    first, second = (
        sample(*logits_as_model(logits_V, M), scale=1.0, keys_M=keys(M, seed=seed), impl=impl) for seed in (1, 2)
    )
    agree = int((first == second).sum())  # binomial(M, 1/V)
    assert stats.binomtest(agree, M, 1 / V).pvalue > 1e-3
    for one, other in ((first, second), (first[1:], first[:-1])):
        correlation = float(torch.corrcoef(torch.stack([one, other]).double())[0, 1])
        assert abs(correlation) < 3.3 / math.sqrt(M)  # error rate 0.1%


def refused(impl: str, hidden: Tensor, weight: Tensor, bias: Tensor) -> str:
    """Return the error message for scores that cannot be drawn from."""
    device = DEVICE if impl == "triton" else torch.device("cpu")
    arguments = [tensor.to(device) for tensor in (hidden, weight, bias)]
    with pytest.raises(ValueError) as caught:
        sample(*arguments, scale=1.0, keys_M=keys(len(hidden)).to(device), impl=impl)
    return str(caught.value)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_extremes(impl: str) -> None:
    """A point mass; tokens that are never drawn, by bias, prior or weight; no positions at all."""
    device = DEVICE if impl == "triton" else torch.device("cpu")
    rows = 300
    logits_V = torch.zeros(V)
    logits_V[7] = 30.0
    hidden, weight, bias = (tensor.to(device) for tensor in logits_as_model(logits_V, rows))
    more = {"scale": 1.0, "keys_M": keys(rows).to(device), "original_M": torch.full((rows,), 7, device=device)}
    ids, statistics = sample_with_statistics(hidden, weight, bias, impl=impl, **more)
    assert (ids == 7).all()
    assert float(statistics.entropy_M.max()) < 1e-3 and float(statistics.drawn_M.abs().max()) < 1e-4
    weight[7] = 0.0
    weight[40:, 0], bias[20:40] = -torch.inf, -torch.inf
    prior = torch.zeros(V, device=device)
    prior[10:20] = -torch.inf
    ids, statistics = sample_with_statistics(hidden, weight, bias, prior_V=prior, impl=impl, **more)
    assert ids.unique().tolist() == list(range(10))
    assert torch.allclose(statistics.entropy_M.cpu(), torch.tensor(math.log(10)), atol=1e-5)
    flat = sample(hidden, torch.zeros_like(weight), bias, prior_V=prior, scale=0.0, keys_M=more["keys_M"], impl=impl)
    assert int(flat.max()) < 50 and not torch.isin(flat.cpu(), torch.arange(10, 40)).any()  # by bias and prior
    none = sample(hidden[:0], weight, bias, scale=1.0, keys_M=keys(0).to(device), impl=impl)
    assert none.shape == (0,) and none.dtype == torch.int64


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_scores_that_nothing_can_be_drawn_from_are_refused(impl: str) -> None:
    hidden, weight, bias = logits_as_model(torch.zeros(V), 4)
    broken = hidden.clone()
    broken[2] = torch.nan
    assert "1 of 4 positions hold NaN" in refused(impl, broken, weight, bias)
    one = weight.clone()
    one[33, 0] = torch.nan  # hides among finite scores
    assert "4 of 4" in refused(impl, hidden, one, bias)
    one[33, 0] = torch.inf
    assert "+inf" in refused(impl, hidden, one, bias)
    assert "all -inf" in refused(impl, hidden, weight, bias - torch.inf)


def test_arguments_that_do_not_fit_are_refused() -> None:
    hidden, weight, bias = logits_as_model(torch.zeros(V), 4)
    good = {"scale": 1.0, "keys_M": keys(4)}
    for arguments, more, message in (
        ((hidden, weight, bias), {"scale": -1.0}, "scale must be a finite number >= 0, not -1.0"),
        ((hidden, weight, bias), {"scale": float("nan")}, "scale"),
        ((hidden, weight, bias), {"keys_M": keys(3)}, r"keys must be int64 \[4\], not torch.int64 \[3\]"),
        ((hidden, weight, bias), {"keys_M": keys(4).int()}, "keys must be int64"),
        ((hidden, weight, bias), {"impl": "cuda"}, "impl must be one of reference, blocked, triton"),
        ((hidden, weight[:, :4], bias), {}, "do not fit"),
        ((hidden, weight[:0], bias[:0]), {}, "gathered first"),
        ((hidden, torch.zeros(D, V).T, bias), {}, r"strides .* weight.contiguous\(\)"),
        ((hidden, weight.bfloat16(), bias), {}, "hidden is torch.float32 and weight torch.bfloat16: convert one"),
        ((hidden.double(), weight.double(), bias), {}, "not torch.float64"),
        ((hidden, weight, bias[:7]), {}, r"bias must be floating \[50\]"),
        ((hidden, weight, bias), {"prior_V": bias.long()}, "prior must be floating"),
        ((hidden, weight, bias.to("meta")), {}, "bias is on meta and hidden on cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(*arguments, **(good | more))


def test_a_weight_that_is_spread_over_processes_is_refused() -> None:
    class Sharded(Tensor):  # what DTensor is: a subclass whose data lie elsewhere
        pass

    hidden, weight, bias = logits_as_model(torch.zeros(V), 4)
    with pytest.raises(ValueError, match=r"weight is a Sharded, .*gather it"):
        sample(hidden, weight.as_subclass(Sharded), bias, scale=1.0, keys_M=keys(4))


def test_sixteen_bit_logits_are_not_rounded() -> None:
    hidden, weight, bias = (tensor.bfloat16() for tensor in model(20, 300, 64, 3.0))
    exact = hidden.double() @ weight.double().T + bias.double()
    assert torch.allclose(logits(hidden, weight, bias).double(), exact, atol=2e-5)


def test_the_workspace_is_a_small_part_of_the_logits() -> None:
    """At most 1/60 of the logits in 16 bits, for the paper's base model and 64 sequences."""
    positions, vocabulary = 4928, 128_000
    for impl, on_gpu in (("blocked", False), ("triton", True)):
        assert workspace_bytes(positions, vocabulary, impl, on_gpu) * 60 <= 2 * positions * vocabulary


@pytest.mark.parametrize("vocabulary", [128_000, 127_991])  # the last group is not full
@pytest.mark.parametrize("instructions", [True, False])
def test_few_positions_need_a_few_megabytes(
    instructions: bool, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits of 512 positions would take 131 MB."""
    monkeypatch.setattr(blocked, "multiplies_bf16", lambda: instructions)
    hidden, weight, bias = model(512, vocabulary, D, 3.0)
    arguments = [tensor.to(torch.bfloat16 if instructions else torch.float32) for tensor in (hidden, weight)]
    more = {"scale": 0.5, "keys_M": keys(512), "original_M": torch.arange(512)}
    memory = tensor_memory(
        torch.device("cpu"), lambda: None, lambda _: sample_with_statistics(*arguments, bias, **more)
    )
    assert memory.peak < 8e6


@pytest.mark.parametrize("vocabulary", [V, 64, 6016])  # less than a group, whole groups, several blocks
def test_logits_in_memory_give_the_same_draws(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(6)
    hidden, weight = torch.randn(700, D, generator=generator), torch.randn(vocabulary, D, generator=generator)
    logits, original = hidden @ weight.T, torch.arange(700) % vocabulary
    before = logits.clone()
    ids, statistics = sample_logits(logits, keys(700), original)
    expected = sample_with_statistics(hidden, weight, scale=1.0, keys_M=keys(700), original_M=original)
    assert torch.equal(ids, expected[0]) and torch.equal(logits, before)
    assert torch.allclose(statistics.entropy_M, expected[1].entropy_M, atol=1e-5)
    assert [len(part) for part in sample_logits(logits[:0], keys(0), original[:0])[1]] == [0, 0, 0]
