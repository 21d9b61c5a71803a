"""Keys and permutations are pure functions, and good ones."""

import pytest
import torch
from scipy import stats

from fast_electra import randomness


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100, 1023, 1024, 1025, 30_001])
def test_permutation_is_one(size: int) -> None:
    rounds = randomness.key(5, torch.arange(4))[None]
    image = randomness.permute(torch.arange(size), size, rounds)
    assert torch.equal(image.sort().values, torch.arange(size))


def test_permutation_of_an_index_does_not_depend_on_the_others() -> None:
    rounds = randomness.key(5, torch.arange(4))[None]
    whole = randomness.permute(torch.arange(1000), 1000, rounds)
    assert torch.equal(whole[[17, 3, 999]], randomness.permute(torch.tensor([17, 3, 999]), 1000, rounds))


def test_permutations_of_different_epochs_are_unrelated() -> None:
    size = 5000
    images = [randomness.permute(torch.arange(size), size, randomness.key(e, torch.arange(4))[None]) for e in (0, 1)]
    assert stats.pearsonr(images[0].numpy(), images[1].numpy()).pvalue > 1e-3
    assert stats.pearsonr(images[0].numpy(), range(size)).pvalue > 1e-3


def test_keys_broadcast_and_separate_every_counter() -> None:
    grid = randomness.key(1, torch.arange(40)[:, None], torch.arange(50))
    assert grid.shape == (40, 50) and grid.unique().numel() == 2000
    assert grid[7, 9] == randomness.key(1, 7, 9)
    assert randomness.key(1, 7, 9) != randomness.key(1, 9, 7)
    assert randomness.key(2, 7, 9) != randomness.key(1, 7, 9)


def test_definition_is_pinned() -> None:
    """Offline stores and resumed runs rest on these numbers: a change of them is a change of format."""
    assert int(randomness.key(0, 1, 2)) == PINNED


PINNED = -5001717313810798097
