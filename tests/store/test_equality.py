"""A run that reads an offline store sees the tokens of training online, whoever wrote and reads the store."""

import json
from pathlib import Path
from typing import Any

import conftest
import pytest
import torch
from lab import BATCH, UPDATES, Lab
from torch import Tensor

from fast_electra.config import Config
from fast_electra.corpus.loader import read_batch
from fast_electra.replacement.distribution import Distribution
from fast_electra.store.format import MANIFEST
from fast_electra.store.reader import Stored
from fast_electra.training.loop import evaluation_batch


@pytest.fixture(scope="module")
def lab(tiny_corpus: conftest.Corpus, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tiny_corpus, tmp_path_factory.mktemp("lab"))


def assert_same(online: list[Tensor], offline: list[Tensor]) -> None:
    assert len(online) == len(offline)
    for n, (one, other) in enumerate(zip(online, offline, strict=True), start=1):
        assert torch.equal(one, other), f"update {n}"


AXES: dict[str, dict[str, Any]] = {
    "temperature": {},
    "interpolation": {"replacement__augmentation": "term_frequency_interpolation", "curriculum__initial": 0.9},
    "uniform to one-hot": {"replacement__distribution": "uniform_to_smoothed_one_hot"},
    # 0.9 is not a float32 number; the range of the store must include it all the same
    "frequency to one-hot": {
        "replacement__distribution": "term_frequency_to_smoothed_one_hot",
        "curriculum__initial": 0.9,
    },
    "no curriculum": {"replacement__distribution": "term_frequency"},
}


@pytest.mark.parametrize("name", AXES)
def test_one_store_serves_every_schedule(name: str, lab: Lab, tmp_path: Path) -> None:
    """Written by 2 ranks, read by 1 and by 3: at every update the corrupted tokens are those of training online."""
    whole = lab.settings(**AXES[name])
    folder = lab.write(whole, tmp_path / "store")
    draws = lab.distribution(whole)
    initial = whole.run.curriculum.initial
    for keys in (
        {},
        {"curriculum__schedule": "polynomial", "curriculum__rate": 2.0, "updates": UPDATES - 3},
        {"curriculum__schedule": "constant"},
        {"curriculum__schedule": "stepwise", "curriculum__rate": 3.0, "curriculum__initial": draws.floor + 0.4},
        {"curriculum__per": "epoch"},
    ):
        settings = lab.settings(**{**AXES[name], "curriculum__initial": initial, **keys})
        online = lab.seen(settings, draws)
        assert_same(online, lab.seen(settings, lab.read(settings, folder), world=3))
    assert_same(lab.seen(whole, draws), lab.seen(whole, lab.read(whole, folder), world=1, steps=2))


def test_the_curriculum_is_in_the_store(lab: Lab, tmp_path: Path) -> None:
    """What the tests above compare does change with the schedule."""
    stored = lab.read(lab.settings(), lab.write(lab.settings(), tmp_path / "store"))
    easy, hard = (
        lab.seen(lab.settings(curriculum__schedule="constant", curriculum__initial=value), stored)
        for value in (2.0, 1.0)
    )
    share = sum(float((one != other).float().mean()) for one, other in zip(easy, hard, strict=True)) / UPDATES
    assert 0.01 < share < 0.12


@pytest.mark.parametrize("augmentation", ["temperature", "dropout", "attention_dropout", "drop_token"])
def test_fixed_store_has_one_strength_in_each_epoch(augmentation: str, lab: Lab, tmp_path: Path) -> None:
    settings = lab.settings(replacement__augmentation=augmentation, curriculum__per="epoch", curriculum__rate=0.5)
    draws = lab.distribution(settings)
    stored = lab.read(settings, lab.write(settings, tmp_path / "store"))
    online = lab.seen(settings, draws)
    assert_same(online, lab.seen(settings, stored, world=2, steps=3))
    values = {record.value for record in stored.plan.sets} - {None}
    assert len(values) == -(-UPDATES * BATCH // len(lab.corpus.train)) > 2
    assert_same_evaluations(lab, settings, draws, stored, [value for value in values if value is not None])


def test_a_constant_curriculum_has_one_piece(lab: Lab, tmp_path: Path) -> None:
    """The fixed auxiliary of D.2: constant at 1."""
    settings = lab.settings(curriculum__schedule="constant", curriculum__initial=1.0)
    folder = lab.write(settings, tmp_path / "store")
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["pieces"] == manifest["positions"] > 1000
    online = lab.seen(settings, lab.distribution(settings))
    assert_same(online, lab.seen(settings, lab.read(settings, folder)))


def test_evaluations_are_in_the_store(lab: Lab, tmp_path: Path) -> None:
    stored = lab.read(lab.settings(), lab.write(lab.settings(), tmp_path / "store"))
    draws = lab.distribution(lab.settings())
    assert_same_evaluations(lab, lab.settings(), draws, stored, [2.0, 1.37, 1.0])


def assert_same_evaluations(
    lab: Lab, settings: Config, draws: Distribution, stored: Stored, values: list[float]
) -> None:
    for source, sequences, count in (("heldout", lab.corpus.heldout, 12), ("reference", lab.corpus.train, 48)):
        assert sequences is not None
        for value in values:
            batch = evaluation_batch(sequences, source, torch.arange(count), settings.run.seed)
            one, other = (lab.corrupted(settings, which, batch, value) for which in (draws, stored))
            assert torch.equal(one.tokens_T, other.tokens_T)
            assert other.draws.entropy_M is None and other.draws.original_probability_M is None


def test_samples_are_found_in_any_order(lab: Lab, tmp_path: Path) -> None:
    settings = lab.settings()
    stored = lab.read(settings, lab.write(settings, tmp_path / "store", world=1, part=16))
    which, epochs = lab.corpus.train.order(settings.run.seed, 0, UPDATES * BATCH)
    samples = torch.randperm(UPDATES * BATCH, generator=torch.Generator().manual_seed(1))[:100]
    batch = read_batch(lab.corpus.train, settings.run.seed, samples, which[samples], epochs[samples])
    one, other = (lab.corrupted(settings, draws, batch, 1.3) for draws in (lab.distribution(settings), stored))
    assert torch.equal(one.tokens_T, other.tokens_T)


def test_ranks_and_parts_do_not_change_the_contents(lab: Lab, tmp_path: Path) -> None:
    """The same bytes from 1 rank and from 5."""
    one, five = (lab.write(lab.settings(), tmp_path / f"{world}", world=world) for world in (1, 5))
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in five.iterdir()) and len(names) > 10
    assert all((one / name).read_bytes() == (five / name).read_bytes() for name in names)
