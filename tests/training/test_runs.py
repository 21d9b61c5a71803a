"""Whole runs under the real launcher: what several processes, interruptions and bad numbers may not change."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Scenario
from safetensors.torch import load_file

from fast_electra.curriculum import CurriculumSettings
from fast_electra.files import file_hash
from fast_electra.training.checkpoint_files import read_checkpoint_file
from fast_electra.training.metrics import read_metrics

pytestmark = pytest.mark.timeout(600)  # a scenario runs when it is first asked for; machines are busy


def rows(run: Path) -> list[dict[str, Any]]:
    return read_metrics(run)[0]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_one_process_and_two_agree(scenario: Scenario) -> None:
    two_ranks, one_rank = scenario("plain"), scenario("plain", world=1)
    two, one = rows(two_ranks / "plain"), rows(one_rank / "plain")
    assert len(two) == len(one) == 12
    for left, right in zip(two, one, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
        assert left["gradient_norm"] == pytest.approx(right["gradient_norm"], rel=1e-4)
        assert (left["replaced_fraction"], left["tokens"]) == (right["replaced_fraction"], right["tokens"])
    assert largest_difference(weights(two_ranks / "plain"), weights(one_rank / "plain")) < 1e-4


def test_accumulation_changes_nothing(scenario: Scenario) -> None:
    runs = scenario("plain")
    scenario("accumulated")
    for left, right in zip(rows(runs / "plain"), rows(runs / "accumulated"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)


@pytest.mark.parametrize("cut", [3, 6, 9])
def test_resumed_equals_uninterrupted_bit_for_bit(scenario: Scenario, cut: int) -> None:
    """With torch's Adam (optimizer.params.torch_adam): rows, curriculum and weights, with dropout and checkpointing."""
    runs = scenario("resumed", "exact")
    whole, resumed = runs / "exact_whole", runs / f"exact_from_{cut}"
    compared = ("update", "loss", "temperature", "learning_rate", "replaced_fraction", "auc", "gradient_norm")
    for left, right in zip(rows(whole)[cut:], rows(resumed)[cut:], strict=True):
        assert [left[name] for name in compared] == [right[name] for name in compared]
    assert file_hash(whole / "model/model.safetensors") == file_hash(resumed / "model/model.safetensors")


@pytest.mark.parametrize("cut", [3, 6, 9])
def test_fused_adam_resumes_to_rounding(scenario: Scenario, cut: int) -> None:
    """DeepSpeed's CPU FusedAdam computes beta^t otherwise after a load: near, not bit for bit."""
    runs = scenario("resumed", "fused")
    for left, right in zip(rows(runs / "fused_whole"), rows(runs / f"fused_from_{cut}"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-6)
    assert largest_difference(weights(runs / "fused_whole"), weights(runs / f"fused_from_{cut}")) < 1e-6


def test_fused_and_torch_adam_agree(scenario: Scenario) -> None:
    runs = scenario("resumed", "fused")
    scenario("resumed", "exact")
    for left, right in zip(rows(runs / "fused_whole"), rows(runs / "exact_whole"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)


def test_activation_checkpointing_changes_nothing(scenario: Scenario) -> None:
    runs = scenario("checkpointing")
    assert largest_difference(weights(runs / "checkpointing_True"), weights(runs / "checkpointing_False")) == 0.0


def test_temperature_follows_equation_2_at_every_update(scenario: Scenario) -> None:
    runs = scenario("plain")
    for row in rows(runs / "plain"):
        assert row["temperature"] == CurriculumSettings().strength(row["update"] / row["updates"])
    assert [row["update"] for row in rows(runs / "plain")] == list(range(1, 13))


def test_auxiliary_is_frozen_and_outside_the_checkpoints(scenario: Scenario) -> None:
    """The weights that drew the last replacements are bit for bit those that were trained."""
    runs = scenario("plain")
    description = json.loads((runs / "auxiliary/model/model.json").read_text())
    assert json.loads((runs / "plain/config.json").read_text())["auxiliary_hash"] == description["hash"]
    for rank in (0, 1):
        after = json.loads((runs / f"auxiliary_after.{rank}.json").read_text())
        assert after == {"identical": True, "frozen": True, "eval": True}
    for file in (runs / "plain/checkpoints").rglob("*.pt"):
        state = read_checkpoint_file(file)
        assert not any(key in ("bias", "norm.weight") for key in state.get("module", {}))  # the MLM head's
        if "module" in state:
            assert set(state["module"]) == set(weights(runs / "plain"))


def test_held_out_rows_have_the_figures(scenario: Scenario) -> None:
    runs = scenario("plain")
    _, evaluations, _ = read_metrics(runs / "plain")
    last = evaluations[-1]
    assert last["update"] == 12 and {
        "heldout_loss",
        "heldout_auc",
        "heldout_auc_token_identity",
        "heldout_mlm_accuracy",
    } <= set(last)
    one = read_metrics(scenario("plain", world=1) / "plain")[1][-1]
    assert last["heldout_loss"] == pytest.approx(one["heldout_loss"], abs=1e-4)


def test_bf16_trains_near_fp32(scenario: Scenario) -> None:
    runs = scenario("sixteen_bit")
    losses = [row["loss"] for row in rows(runs / "bf16")]
    assert len(losses) == 12 and losses[-1] < losses[0]
    assert json.loads((runs / "bf16/config.json").read_text())["auxiliary_dtype"] == "bf16"


def test_fp16_searches_its_loss_scale_without_harm(scenario: Scenario) -> None:
    """From a scale of 2^24, the first updates overflow: they are skipped, said to be so, and the run goes on."""
    runs = scenario("half")
    found = rows(runs / "fp16")
    skipped = [row["update"] for row in found if row["skipped"]]
    assert skipped and skipped == list(range(1, len(skipped) + 1)) and len(skipped) < 12
    assert all(tensor.isfinite().all() for tensor in weights(runs / "fp16").values())
    assert all(row["loss"] is not None and row["loss"] < 1.0 for row in found)


@pytest.mark.drill("bad number in losses, weights or data")
@pytest.mark.parametrize("kind", ["loss", "bf16", "gradient", "joint"])
def test_bad_update_never_reaches_the_weights(scenario: Scenario, kind: str) -> None:
    """Poisoned on one rank of two: all skip it, say so, and go on."""
    runs = scenario("not_finite", kind)
    run = runs / f"not_finite_{kind}"
    found = rows(run)
    assert [row["update"] for row in found if row["skipped"]] == [5]
    assert [event["update"] for event in read_metrics(run)[2] if event["event"] == "skipped"] == [5]
    assert all(tensor.isfinite().all() for tensor in weights(run).values())
    assert found[-1]["rtd_loss" if kind == "joint" else "loss"] < 1.0


@pytest.mark.drill("bad number in losses, weights or data")
def test_ten_bad_updates_in_a_row_stop_the_run(scenario: Scenario) -> None:
    runs = scenario("not_finite", "forever")
    run = runs / "not_finite_forever"
    for rank in (0, 1):
        message = (runs / f"not_finite_forever.{rank}.txt").read_text()
        assert "10 updates in a row" in message and "up to update 14" in message
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "failed" and status["update"] == 14
    assert (run / "checkpoints/latest").read_text().strip() == "update-00000012"
    assert not (run / "model").exists()


def test_the_learning_rate_rises_from_the_first_update_and_is_not_0_at_the_last(scenario: Scenario) -> None:
    """DeepSpeed would give the first two updates a rate of 0. It warms up for 3 of 10 updates."""
    found = [row["learning_rate"] for row in rows(scenario("golden", world=1) / "golden")]
    assert len(found) == 10
    expected = [0.004 * min(n / 3, (11 - n) / 8) for n in range(1, 11)]
    assert found == pytest.approx(expected, rel=1e-6)


GOLDEN = Path(__file__).parent.parent / "golden" / "tiny.json"


def test_ten_losses_of_tiny_are_the_pinned_ones(scenario: Scenario) -> None:
    """Integers exactly; losses to what other CPUs may round otherwise. A change of these figures must be on purpose."""
    found, pinned = rows(scenario("golden", world=1) / "golden"), json.loads(GOLDEN.read_text())["rows"]
    counts = [[row["tokens"], round(row["replaced_fraction"] * row["tokens"])] for row in found]
    assert counts == [[row["tokens"], row["replaced"]] for row in pinned]
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in pinned], abs=2e-5)
    assert [row["gradient_norm"] for row in found] == pytest.approx([row["gradient_norm"] for row in pinned], rel=2e-3)
