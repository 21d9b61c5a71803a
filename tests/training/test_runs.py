"""Whole runs under the real launcher: what several processes, interruptions and bad numbers may not change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Corpus
from safetensors.torch import load_file

from fast_electra.curriculum import CurriculumSettings
from fast_electra.files import file_hash
from fast_electra.training.metrics import read_metrics

SCENARIOS = str(Path(__file__).parent / "scenarios.py")
pytestmark = pytest.mark.timeout(900)  # one launch trains everything; machines are busy
NAMES = ["auxiliary", "plain", "accumulated", "resumed", "checkpointing", "sixteen_bit", "half", "not_finite"]


@pytest.fixture(scope="session")
def runs(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory, launch: Callable[..., Any]) -> Path:
    """Everything with two ranks, then what is compared with it under one."""
    output = tmp_path_factory.mktemp("runs")
    arguments = ["--corpus", str(tiny_corpus.shards.parent), "--output", str(output)]
    launch(SCENARIOS, [*arguments, *NAMES], ranks=2, timeout=600)
    one = output / "one"
    one.mkdir()
    (one / "auxiliary").symlink_to(output / "auxiliary")
    launch(SCENARIOS, ["--corpus", str(tiny_corpus.shards.parent), "--output", str(one), "plain"], ranks=1)
    return output


def rows(run: Path) -> list[dict[str, Any]]:
    return read_metrics(run)[0]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_one_process_and_two_agree(runs: Path) -> None:
    two, one = rows(runs / "plain"), rows(runs / "one" / "plain")
    assert len(two) == len(one) == 12
    for left, right in zip(two, one, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
        assert left["gradient_norm"] == pytest.approx(right["gradient_norm"], rel=1e-4)
        assert (left["replaced_fraction"], left["tokens"]) == (right["replaced_fraction"], right["tokens"])
    assert largest_difference(weights(runs / "plain"), weights(runs / "one" / "plain")) < 1e-4


def test_accumulation_changes_nothing(runs: Path) -> None:
    for left, right in zip(rows(runs / "plain"), rows(runs / "accumulated"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)


@pytest.mark.parametrize("cut", [3, 6, 9])
def test_resumed_equals_uninterrupted_bit_for_bit(runs: Path, cut: int) -> None:
    """With torch's Adam (optimizer.params.torch_adam): rows, curriculum and weights, with dropout and checkpointing."""
    whole, resumed = runs / "exact_whole", runs / f"exact_from_{cut}"
    compared = ("update", "loss", "temperature", "learning_rate", "replaced_fraction", "auc", "gradient_norm")
    for left, right in zip(rows(whole)[cut:], rows(resumed)[cut:], strict=True):
        assert [left[name] for name in compared] == [right[name] for name in compared]
    assert file_hash(whole / "model/model.safetensors") == file_hash(resumed / "model/model.safetensors")


@pytest.mark.parametrize("cut", [3, 6, 9])
def test_fused_adam_resumes_to_rounding(runs: Path, cut: int) -> None:
    """DeepSpeed's CPU FusedAdam computes beta^t otherwise after a load: near, not bit for bit."""
    for left, right in zip(rows(runs / "fused_whole"), rows(runs / f"fused_from_{cut}"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-6)
    assert largest_difference(weights(runs / "fused_whole"), weights(runs / f"fused_from_{cut}")) < 1e-6


def test_fused_and_torch_adam_agree(runs: Path) -> None:
    for left, right in zip(rows(runs / "fused_whole"), rows(runs / "exact_whole"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)


def test_activation_checkpointing_changes_nothing(runs: Path) -> None:
    assert largest_difference(weights(runs / "checkpointing_True"), weights(runs / "checkpointing_False")) == 0.0


def test_temperature_follows_equation_2_at_every_update(runs: Path) -> None:
    for row in rows(runs / "plain"):
        assert row["temperature"] == CurriculumSettings().strength(row["update"] / row["updates"])
    assert [row["update"] for row in rows(runs / "plain")] == list(range(1, 13))


def test_auxiliary_is_frozen_and_outside_the_checkpoints(runs: Path) -> None:
    """The weights that drew the last replacements are bit for bit those that were trained."""
    description = json.loads((runs / "auxiliary/model/model.json").read_text())
    assert json.loads((runs / "plain/config.json").read_text())["auxiliary_hash"] == description["hash"]
    for rank in (0, 1):
        after = json.loads((runs / f"auxiliary_after.{rank}.json").read_text())
        assert after == {"identical": True, "frozen": True, "eval": True}
    for file in (runs / "plain/checkpoints").rglob("*.pt"):
        state = torch.load(file, weights_only=False)  # our own file
        assert not any(key in ("bias", "norm.weight") for key in state.get("module", {}))  # the MLM head's
        if "module" in state:
            assert set(state["module"]) == set(weights(runs / "plain"))


def test_held_out_rows_have_the_figures(runs: Path) -> None:
    _, evaluations, _ = read_metrics(runs / "plain")
    last = evaluations[-1]
    assert last["update"] == 12 and {
        "heldout_loss",
        "heldout_auc",
        "heldout_auc_token_identity",
        "heldout_mlm_accuracy",
    } <= set(last)
    one = read_metrics(runs / "one" / "plain")[1][-1]
    assert last["heldout_loss"] == pytest.approx(one["heldout_loss"], abs=1e-4)


def test_bf16_trains_near_fp32(runs: Path) -> None:
    losses = [row["loss"] for row in rows(runs / "bf16")]
    assert len(losses) == 12 and losses[-1] < losses[0]
    assert json.loads((runs / "bf16/config.json").read_text())["auxiliary_dtype"] == "bf16"


def test_fp16_searches_its_loss_scale_without_harm(runs: Path) -> None:
    """From a scale of 2^24, the first updates overflow: they are skipped, said to be so, and the run goes on."""
    found = rows(runs / "fp16")
    skipped = [row["update"] for row in found if row["skipped"]]
    assert skipped and skipped == list(range(1, len(skipped) + 1)) and len(skipped) < 12
    assert all(tensor.isfinite().all() for tensor in weights(runs / "fp16").values())
    assert all(row["loss"] is not None and row["loss"] < 1.0 for row in found)


@pytest.mark.parametrize("kind", ["loss", "bf16", "gradient", "joint"])
def test_bad_update_never_reaches_the_weights(runs: Path, kind: str) -> None:
    """Poisoned on one rank of two: all skip it, say so, and go on."""
    run = runs / f"not_finite_{kind}"
    found = rows(run)
    assert [row["update"] for row in found if row["skipped"]] == [5]
    assert [event["update"] for event in read_metrics(run)[2] if event["event"] == "skipped"] == [5]
    assert all(tensor.isfinite().all() for tensor in weights(run).values())
    assert found[-1]["rtd_loss" if kind == "joint" else "loss"] < 1.0


def test_ten_bad_updates_in_a_row_stop_the_run(runs: Path) -> None:
    run = runs / "not_finite_forever"
    for rank in (0, 1):
        message = (runs / f"not_finite_forever.{rank}.txt").read_text()
        assert "10 updates in a row" in message and "up to update 14" in message
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "failed" and status["update"] == 14
    assert (run / "checkpoints/latest").read_text().strip() == "update-00000012"
    assert not (run / "model").exists()
