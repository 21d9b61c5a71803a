"""The pieces are the exact upper envelope and give the tokens that the sampler draws."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fast_electra import randomness
from fast_electra_kernels import NEVER, Pieces, concatenate, envelope, gumbel, row_blocks, sample, winners


def exact(slopes_C: np.ndarray, intercepts_C: np.ndarray, low: float, high: float) -> list[tuple[int, float]]:
    """Return winners and where they begin, in another way: from each winner to the nearest crossing on its right."""
    t, winner = low, int(np.argmax(slopes_C * low + intercepts_C))
    found = [(winner, -np.inf)]
    while True:
        steeper = np.flatnonzero(slopes_C > slopes_C[winner])
        at = (intercepts_C[winner] - intercepts_C[steeper]) / (slopes_C[steeper] - slopes_C[winner])
        ahead = (at > t) & (at <= high)
        if not ahead.any():
            return found
        t = at[ahead].min()
        first = steeper[ahead & (at == t)]
        winner = int(
            first[np.argmax(slopes_C[first])]
        )  # the steepest of the lines that cross there is highest after it
        found.append((winner, float(t)))


def of_position(pieces: Pieces, m: int) -> tuple[list[int], list[float]]:
    stop = int(pieces.counts_M[: m + 1].sum())
    start = stop - int(pieces.counts_M[m])
    return pieces.tokens_P[start:stop].tolist(), pieces.starts_P[start:stop].tolist()


def check(pieces: Pieces, m: int) -> None:
    """Check what must hold for every result, whatever the lines."""
    assert pieces.counts_M.shape == (m,) and bool((pieces.counts_M >= 1).all())
    assert len(pieces.tokens_P) == len(pieces.starts_P) == int(pieces.counts_M.sum())
    assert pieces.counts_M.dtype == pieces.tokens_P.dtype == torch.int64 and pieces.starts_P.dtype == torch.float32
    for position in range(m):
        tokens, starts = of_position(pieces, position)
        assert starts[0] == -np.inf and all(x < y for x, y in pairwise(starts))
        assert all(x != y for x, y in pairwise(tokens))


def random_lines(m: int, c: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    slopes = torch.randn(m, c, generator=generator, dtype=dtype) * 2
    return slopes, gumbel(randomness.key(seed, torch.arange(m)), torch.arange(c, dtype=torch.int32)).to(dtype)


@pytest.mark.parametrize(("low", "high"), [(0.5, 1.0), (0.0, 1.0), (-3.0, 4.0)])
def test_equals_the_exact_envelope(low: float, high: float) -> None:
    slopes, intercepts = random_lines(300, 200, seed=1, dtype=torch.float64)
    pieces = envelope(slopes, intercepts, low, high)
    check(pieces, 300)
    for m in range(300):
        expected = exact(slopes[m].numpy(), intercepts[m].numpy(), low, high)
        tokens, starts = of_position(pieces, m)
        assert tokens == [token for token, _ in expected]
        assert starts[1:] == pytest.approx([start for _, start in expected[1:]], abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-6, 6)), min_size=1, max_size=8),
    st.integers(-4, 4),
    st.integers(0, 4),
)
def test_whole_numbers_with_ties_and_parallel_lines(lines: list[tuple[int, int]], low: int, width: int) -> None:
    """Lines of small whole numbers often coincide or cross at one point; float32 is exact for them."""
    slopes, intercepts = (torch.tensor([column], dtype=torch.float32) for column in zip(*lines, strict=True))
    pieces = envelope(slopes, intercepts, low / 2, (low + width) / 2)
    check(pieces, 1)
    grid = torch.linspace(low / 2, (low + width) / 2, 97, dtype=torch.float64)
    for t in [*grid.tolist(), *pieces.starts_P[1:].tolist()]:
        heights = slopes[0].double() * t + intercepts[0].double()
        assert float(heights[winners(pieces, t)[0]]) >= float(heights.max()) - 1e-5


def test_agrees_with_argmax_on_a_dense_grid() -> None:
    """Equal to an argmax in float32 at both ends, and elsewhere unless two lines are within rounding of each other."""
    slopes, intercepts = random_lines(400, 3000, seed=2)
    pieces = envelope(slopes, intercepts, 0.5, 1.0)
    check(pieces, 400)
    differences = 0
    for t in torch.linspace(0.5, 1.0, 257).tolist():
        scores = slopes * t + intercepts
        found, expected = winners(pieces, t), scores.argmax(1)
        gap = scores.gather(1, expected[:, None]) - scores.gather(1, found[:, None])
        assert float(gap.max()) < 4e-6
        differences += int((found != expected).sum())
        assert differences == 0 or t not in (0.5, 1.0)
    assert differences <= 2  # of 102,800


def test_draws_what_the_sampler_draws_at_every_temperature() -> None:
    """With logits as slopes and noise as intercepts, the winners are the draws of `sample` at scale 1/T."""
    generator = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(200, 16, generator=generator), torch.randn(2000, 16, generator=generator)
    keys_M = randomness.key(9, torch.arange(200))
    pieces = envelope(hidden @ weight.T, gumbel(keys_M, torch.arange(2000, dtype=torch.int32)), 1 / 3, 1.0)
    for temperature in (1.0, 1.1, 1.7, 2.0, 2.9, 3.0):
        drawn = sample(hidden, weight, scale=1 / temperature, keys_M=keys_M)
        assert torch.equal(winners(pieces, 1 / temperature), drawn)


def test_lines_that_must_never_win() -> None:
    """A line with the slope NEVER may win at the coordinate 0, but at none above it."""
    slopes, intercepts = random_lines(100, 50, seed=4)
    slopes[:, ::2] = NEVER
    pieces = envelope(slopes, intercepts, 0.0, 1.0)
    check(pieces, 100)
    assert torch.equal(winners(pieces, 0.0), intercepts.argmax(1)) and bool((winners(pieces, 0.0) % 2 == 0).any())
    for t in (1e-20, 1e-3, 1.0):
        assert torch.equal(winners(pieces, t), (slopes * t + intercepts).argmax(1))
        assert bool((winners(pieces, t) % 2 == 1).all())


def test_smallest_shapes() -> None:
    one = envelope(torch.zeros(3, 1), torch.ones(3, 1), 0.5, 1.0)
    assert one.counts_M.tolist() == [1, 1, 1] and winners(one, 0.7).tolist() == [0, 0, 0]
    none = envelope(torch.zeros(0, 5), torch.zeros(0, 5), 0.5, 1.0)
    check(none, 0)
    assert winners(none, 0.7).shape == (0,)
    empty = [envelope(torch.zeros(0, 5)[rows], torch.zeros(0, 5)[rows], 0.5, 1.0) for rows in row_blocks(0, 5, False)]
    assert concatenate(empty).counts_M.shape == (0,)  # without any position there is still one block to join
    point = envelope(*random_lines(20, 30, seed=5), 0.7, 0.7)  # a constant curriculum
    slopes, intercepts = random_lines(20, 30, seed=5)
    assert point.counts_M.tolist() == [1] * 20 and torch.equal(point.tokens_P, (slopes * 0.7 + intercepts).argmax(1))


def test_blocks_of_positions_join() -> None:
    slopes, intercepts = random_lines(90, 40, seed=6)
    whole = envelope(slopes, intercepts, 0.1, 1.0)
    parts = [envelope(slopes[part], intercepts[part], 0.1, 1.0) for part in (slice(30), slice(30, 31), slice(31, 90))]
    for joined, expected in zip(concatenate(parts), whole, strict=True):
        assert torch.equal(joined, expected)


def test_few_pieces_hold_the_whole_curriculum() -> None:
    """With the paper's vocabulary, T from 2 to 1 and logits like a language model's, stores stay small."""
    logits = torch.randn(100, 128_000, generator=torch.Generator().manual_seed(7)) * 3
    noise = gumbel(randomness.key(7, torch.arange(100)), torch.arange(128_000, dtype=torch.int32))
    pieces = envelope(logits, noise, 0.5, 1.0)
    check(pieces, 100)
    assert 1.5 < float(pieces.counts_M.double().mean()) < 2.5


def test_bad_input_is_refused() -> None:
    lines = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="NaN"):
        envelope(lines * torch.nan, lines, 0.5, 1.0)
    with pytest.raises(ValueError, match=r"\+inf"):
        envelope(lines, lines + torch.inf, 0.5, 1.0)
    for slopes, intercepts in ((lines, lines[:1]), (lines[0], lines[0]), (lines[:, :0], lines[:, :0])):
        with pytest.raises(ValueError, match=r"\[M, C\]"):
            envelope(slopes, intercepts, 0.5, 1.0)
    for low, high in ((1.0, 0.5), (float("nan"), 1.0), (0.0, float("inf"))):
        with pytest.raises(ValueError, match="low at most high"):
            envelope(lines, lines, low, high)
