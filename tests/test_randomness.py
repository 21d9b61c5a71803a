"""Keys and permutations are pure functions, and statistically sound."""

import pytest
import torch
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

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


class Copies(TorchDispatchMode):
    """Counts copies, which are what moves a tensor to another device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        return function(*args, **(kwargs or {}))


def test_keys_on_a_gpu_are_never_copied_to_the_cpu() -> None:
    """A copy to the CPU would make it wait for the GPU, in every layer."""
    with FakeTensorMode():  # knows shapes and devices, and computes nothing
        keys, scalar = torch.empty(5, 1, dtype=torch.int64, device="cuda"), torch.empty((), device="cuda").long()
        with Copies() as copies:
            found = [randomness.key(3, keys, 4, torch.arange(7, device="cuda"), 5), randomness.key(3, scalar, 4)]
    assert [(tuple(key.shape), key.device.type) for key in found] == [((5, 7), "cuda"), ((), "cuda")]
    assert copies.count == 0


def test_definition_is_pinned() -> None:
    """Offline stores and resumed runs rest on these numbers: a change of them is a change of format."""
    assert int(randomness.key(0, 1, 2)) == PINNED


PINNED = -5001717313810798097
