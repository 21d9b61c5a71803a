"""`blocked` with a CPU's bf16 instructions: the same draws as in float32, and statistics within a stated error.

All cases run on every CPU. Without such instructions, PyTorch computes the same products, but slowly.
"""

import math

import pytest
import torch
from draws import V, assert_equal_up_to_ties, chi_square, keys, logits_as_model, model
from torch import Tensor

from fast_electra_kernels import NEVER, blocked, sample, sample_with_statistics
from fast_electra_kernels.workspace import block_shape

ROWS, VOCABULARY, HIDDEN = 300, 9001, 64  # three blocks, and a last group that is not full
BLOCK = block_shape(ROWS, VOCABULARY, on_gpu=False, rounded=True)[1]
assert VOCABULARY > 2 * BLOCK and VOCABULARY % 32


@pytest.fixture(autouse=True)
def with_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "multiplies_bf16", lambda: True)


def rounded_model(spread: float) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight, bias = model(ROWS, VOCABULARY, HIDDEN, spread)
    return hidden.bfloat16(), weight.bfloat16(), bias


def banned(size: float) -> Tensor:
    """Return a bias that bans every third token, and the whole first block."""
    bias = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(2))
    bias[::3] = -size
    bias[: BLOCK + 100] = -size
    return bias


def prior(strength: float) -> Tensor:
    return strength * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(3)).mul(2).log_softmax(0)


CASES = {  # spread of the logits, scale, bias, prior
    "plain": (3.0, 0.5, None, None),
    "cold": (6.0, 1.0, None, None),
    "bias": (3.0, 1.0, prior(0.5), None),
    "prior": (3.0, 0.7, None, prior(0.3)),
    "mostly the prior": (3.0, 0.01, None, prior(1.0)),
    "the prior alone": (3.0, 0.0, banned(math.inf), prior(1.0)),
    "large logits": (300.0, 1.0, None, None),
    "far from zero": (3.0, 1.0, torch.full((VOCABULARY,), -300.0), prior(0.5) + 1000.0),
    "banned by -inf": (3.0, 0.5, banned(math.inf), None),
    "banned by 10,000": (3.0, 0.5, banned(1e4), None),
    "banned by NEVER": (3.0, 0.5, None, banned(-NEVER)),
}


@pytest.mark.parametrize("case", CASES)
def test_draws_are_those_of_float64(case: str) -> None:
    """Rounded products must not lose the winner. The statistics are within the error that the page states."""
    spread, scale, bias, prior_V = CASES[case]
    hidden, weight, _ = rounded_model(spread)
    original = torch.arange(ROWS) * 30 + 1
    more = {"scale": scale, "prior_V": prior_V, "keys_M": keys(ROWS)}
    ids, statistics = sample_with_statistics(hidden, weight, bias, **more, original_M=original)
    assert torch.equal(ids, sample(hidden, weight, bias, **more))
    logits = hidden.double() @ weight.double().T + (0.0 if bias is None else bias.double())
    scores = logits.mul(scale).nan_to_num(nan=-math.inf) + (0.0 if prior_V is None else prior_V.double())
    if case == "large logits":  # float32 has rounding ties of another size here
        assert (ids == sample(hidden, weight, bias, **more, impl="reference")).all()
    else:
        assert_equal_up_to_ties(ids, scores, keys(ROWS))
    log_p = scores.log_softmax(1)
    entropy = -(log_p.exp() * log_p.clamp(min=NEVER)).sum(1)
    possible = log_p.gather(1, original[:, None])[:, 0] > -1e3
    errors = (
        statistics.drawn_M - log_p.gather(1, ids[:, None])[:, 0],
        (statistics.original_M - log_p.gather(1, original[:, None])[:, 0])[possible],
        statistics.entropy_M - entropy,
    )
    for error, most in zip(errors, (3e-3, 3e-3, 8e-3), strict=True):
        assert len(error) and float(error.abs().max()) < most and float(error.square().mean().sqrt()) < most / 3


@pytest.mark.parametrize("place", [5, BLOCK + 5, VOCABULARY - 1])
@pytest.mark.parametrize("above", [8.0, 12.0, 40.0])
def test_a_token_far_above_the_others_in_any_block(above: float, place: int) -> None:
    """Its rounding would move all log-probabilities by up to a tenth; a few rows of a block have such a token."""
    logits_V = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(4))
    hidden, weight, bias = (tensor.bfloat16() for tensor in logits_as_model(logits_V, ROWS))
    weight[place, 1], hidden[::7, 1] = above, 1.0
    original = torch.full((ROWS,), place)
    ids, statistics = sample_with_statistics(hidden, weight, bias, scale=1.0, keys_M=keys(ROWS), original_M=original)
    scores = hidden.double() @ weight.double().T
    assert_equal_up_to_ties(ids, scores, keys(ROWS))
    log_p = scores.log_softmax(1)
    assert torch.allclose(statistics.original_M.double(), log_p[:, place], atol=1e-3)
    assert float(statistics.original_M.max()) <= 0.0
    assert torch.allclose(statistics.entropy_M.double(), -(log_p.exp() * log_p).sum(1), atol=3e-3)


def test_follows_the_smoothed_softmax() -> None:
    """Error rate: one of a thousand correct implementations fails. 200,000 draws see an error of 1%."""
    logits = (torch.randn(V, generator=torch.Generator().manual_seed(3)) * 1.5).bfloat16()
    hidden, weight, bias = (tensor.bfloat16() for tensor in logits_as_model(logits.float(), 200_000))
    ids = sample(hidden, weight, bias, scale=0.5, keys_M=keys(200_000))
    assert chi_square(ids, torch.softmax(logits.double() / 2, 0)) > 1e-3


def test_same_keys_give_same_tokens_in_any_batch() -> None:
    """Blocks have other sizes in other batches."""
    hidden, weight, bias = rounded_model(3.0)
    whole = sample(hidden, weight, bias, scale=0.7, keys_M=keys(ROWS))
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(5))
    shuffled = sample(hidden[order], weight, bias, scale=0.7, keys_M=keys(ROWS)[order])
    pieces = [slice(0, 1), slice(1, 40), slice(40, ROWS)]
    parts = [sample(hidden[part], weight, bias, scale=0.7, keys_M=keys(ROWS)[part]) for part in pieces]
    assert torch.equal(whole[order], shuffled) and torch.equal(whole, torch.cat(parts))
    none = sample(hidden[:0], weight, bias, scale=0.7, keys_M=keys(0))
    assert none.shape == (0,) and none.dtype == torch.int64


@pytest.mark.parametrize(("value", "message"), [(math.nan, "4 of 4"), (math.inf, "4 of 4"), (-math.inf, "all -inf")])
def test_scores_that_nothing_can_be_drawn_from_are_refused(value: float, message: str) -> None:
    hidden, weight, bias = (tensor.bfloat16() for tensor in logits_as_model(torch.zeros(V), 4))
    weight[33 if message == "4 of 4" else slice(None), 0] = value
    for more in ({}, {"original_M": torch.zeros(4, dtype=torch.int64)}):
        with pytest.raises(ValueError, match=message):
            (sample_with_statistics if more else sample)(hidden, weight, bias, scale=1.0, keys_M=keys(4), **more)


def test_without_the_instructions_numbers_are_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "multiplies_bf16", lambda: False)
    hidden, weight, bias = rounded_model(3.0)
    more = {"scale": 0.7, "keys_M": keys(ROWS), "original_M": torch.arange(ROWS)}
    ids, statistics = sample_with_statistics(hidden, weight, bias, **more)
    expected_ids, expected = sample_with_statistics(hidden.float(), weight.float(), bias, **more)
    assert torch.equal(ids, expected_ids)
    assert all(torch.equal(found, exact) for found, exact in zip(statistics, expected, strict=True))
