"""Everything that the paper trains with runs under the real launcher with two processes, online and from a store."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Scenario
from safetensors.torch import load_file
from scenarios import METHODS

from fast_electra.model.files import load_model
from fast_electra.training.metrics import read_metrics

pytestmark = pytest.mark.timeout(600)  # a scenario runs when it is first asked for; machines are busy


def rows(run: Path) -> list[dict[str, Any]]:
    return read_metrics(run)[0]


def largest_difference(one: Path, other: Path) -> float:
    """Between the weights of two runs' models."""
    weights = [load_file(run / "model" / "model.safetensors") for run in (one, other)]
    return max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])


def test_joint_training_is_the_same_with_one_process_and_two(scenario: Scenario) -> None:
    two, one = scenario("joint") / "joint", scenario("joint", world=1) / "joint"
    for left, right in zip(rows(two), rows(one), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-6)
        assert left["gradient_norm"] == pytest.approx(right["gradient_norm"], rel=1e-4)
        assert left["replaced_fraction"] == right["replaced_fraction"]
    assert largest_difference(two, one) < 1e-4


@pytest.mark.parametrize("schedule", ["exponential", "stepwise", "per_epoch"])
def test_training_from_a_store_equals_training_online(scenario: Scenario, schedule: str) -> None:
    """Bit for bit, with no auxiliary model to be found: the first two schedules come from one store."""
    methods = scenario("offline")
    online, offline = (methods / "offline" / f"{schedule}_{kind}" for kind in ("online", "offline"))
    compared = ("update", "loss", "replaced_fraction", "recall", "auc", "gradient_norm")
    for left, right in zip(rows(online), rows(offline), strict=True):
        assert [left[name] for name in compared] == [right[name] for name in compared]
        assert left["replacement_entropy"] > 0 and right["replacement_entropy"] is None
    assert largest_difference(online, offline) == 0.0
    evaluations = [read_metrics(run)[1][-1] for run in (online, offline)]
    assert evaluations[0]["heldout_auc"] == evaluations[1]["heldout_auc"]
    assert evaluations[0]["heldout_auc_token_identity"] == evaluations[1]["heldout_auc_token_identity"]
    assert evaluations[0]["heldout_mlm_accuracy"] == evaluations[1]["heldout_mlm_accuracy"]


def test_one_store_serves_two_schedules(scenario: Scenario) -> None:
    methods = scenario("offline")
    stores = {
        json.loads((methods / "offline" / f"{name}_offline/config.json").read_text())["fast_electra"]["replacement"][
            "store"
        ]
        for name in ("exponential", "stepwise")
    }
    assert len(stores) == 1
    first, second = (
        [row["temperature"] for row in rows(methods / "offline" / f"{name}_offline")]
        for name in ("exponential", "stepwise")
    )
    assert first != second


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_paper_trains_with_two_processes(scenario: Scenario, name: str) -> None:
    run = scenario("method", name) / name
    found = rows(run)
    assert [row["update"] for row in found] == [1, 2, 3, 4] and not any(row["skipped"] for row in found)
    assert all(row["original_probability"] > 0 and row["replacement_entropy"] > 0 for row in found)
    assert json.loads((run / "status.json").read_text())["state"] == "completed"
    parameters = {"temperature", "gamma"} & set(found[0])
    if name.startswith("joint"):
        assert not parameters and found[0]["mlm_loss"] > 0
    else:
        temperature = name in ("temperature", "polynomial", "stepwise", "constant", "fixed")
        without = name in ("uniform", "term_frequency", "smoothed_one_hot")
        assert parameters == (set() if without else {"temperature" if temperature else "gamma"})
    assert "report.html" in {path.name for path in run.iterdir()}


def test_a_jointly_trained_auxiliary_can_be_frozen_and_used(scenario: Scenario) -> None:
    """`auxiliary.run=RUN/auxiliary`: its folder is that of any auxiliary model, with its own accuracy."""
    methods = scenario("joint")
    description = json.loads((methods / "joint/auxiliary/model/model.json").read_text())
    assert description["kind"] == "mlm" and description["encoder"]["layers"] == 1
    assert description["evaluation"]["heldout_mlm_accuracy"] is not None
    model, _ = load_model(methods / "joint/auxiliary/model", "mlm", "")
    main, _ = load_model(methods / "joint/model", "rtd", "")
    assert torch.equal(model.encoder.embedding.weight, main.encoder.embedding.weight)  # shared, and both whole
