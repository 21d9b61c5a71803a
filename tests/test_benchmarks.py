"""Small runs of the benchmarks, as `make bench` starts them: they must not break unseen."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Corpus

from fast_electra_kernels.processor import multiplies_bf16

OURS = ("fast_electra", "fast_electra, DeepSpeed")


def bench(script: str, folder: Path, dtype: str, *arguments: str) -> Any:
    """Run a benchmark in `folder` and return what it writes."""
    repeats = "--updates" if script == "step.py" else "--rounds"
    command = [sys.executable, str(ROOT / "benchmarks" / script), repeats, "1", "--json", "result.json", *arguments]
    environment = os.environ | {"FAST_ELECTRA_DTYPE": dtype}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_our_steps_train_in_plain_pytorch_and_in_the_engine(tmp_path: Path, tiny_corpus: Corpus, dtype: str) -> None:
    pytest.importorskip("transformers")
    folders = ["--shards", str(tiny_corpus.shards), "--tokenizer", str(tiny_corpus.tokenizer)]
    choice = ["--recipe", "tiny", "--length", "128", "--engine", "--attention", "eager"]
    (recipe,) = bench("step_vs_huggingface.py", tmp_path, dtype, *choice, *folders)["recipes"]
    assert recipe["settings"]["dtype"] == dtype
    assert recipe["settings"]["length"] == 128 and 64 < recipe["settings"]["mean_length"] < 128
    losses = recipe["last_losses"]
    assert set(OURS) < set(losses) and len(losses) == 4
    assert all(0.1 < loss < 0.8 for loss in losses.values()), losses
    # Weights, batches, noise and optimizer are the same, so both of our contenders do the same work.
    assert losses[OURS[1]] == pytest.approx(losses[OURS[0]], rel={"fp32": 1e-4, "bf16": 1e-2}[dtype])


@pytest.mark.slow
def test_existing_models_are_timed_beside_plain_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    choice = ["--tiny", "--vocabulary", "2000", "--batch", "4", "--length", "64", "--dtype", "fp32"]
    ragged, full = bench("existing_models.py", tmp_path, "fp32", *choice)["settings"]
    assert ragged["mean_length"] < full["mean_length"] == 64
    for row in (ragged, full):
        (seconds,) = row["rounds"]
        ours = seconds[OURS[1]]["cpu"]
        rows, quick, all_logits = (
            seconds[f"transformers, {what}"]["cpu"] for what in ("masked rows", "masked rows, quick draw", "all logits")
        )
        assert row["ours_over_masked_rows"]["cpu"]["median"] == pytest.approx(ours / rows)
        assert row["ours_over_quick_draw"]["cpu"]["median"] == pytest.approx(ours / quick)
        assert row["all_logits_over_ours"]["cpu"]["median"] == pytest.approx(all_logits / ours)


def test_the_sampler_is_timed(tmp_path: Path) -> None:
    result = bench("sampler.py", tmp_path, "bf16", "--positions", "40", "--vocabulary", "512", "--hidden", "32")
    assert len(result["contenders"]) == 6 + multiplies_bf16()  # one more converts to float32 where that is not needed
    assert all(figures["seconds"]["median"] > 0 for figures in result["contenders"].values())


@pytest.mark.slow
def test_the_cross_entropy_is_timed(tmp_path: Path) -> None:
    (row,) = bench("cross_entropy.py", tmp_path, "bf16", "--positions", "64", "--vocabulary", "50000")["settings"]
    assert row["peak_mb"]["in blocks"] < row["peak_mb"]["PyTorch"] / 2
    assert all(ms > 0 for rounds in row["ms"].values() for ms in rounds)


@pytest.mark.slow
def test_the_engine_is_timed_beside_plain_pytorch(tmp_path: Path, tiny_corpus: Corpus) -> None:
    folders = ["--shards", str(tiny_corpus.shards), "--tokenizer", str(tiny_corpus.tokenizer)]
    (row,) = bench("engine.py", tmp_path, "fp32", "--recipe", "tiny", *folders)["settings"]
    assert len(row["ratio"]) == 4 and row["metrics_ms"] > 0
    assert all(ms > 0 for parts in row["ms"].values() for ms in parts.values())


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone: there is no commit to compare with")
def test_a_step_is_timed_in_two_trees(tmp_path: Path, tiny_corpus: Corpus) -> None:
    folders = ["--shards", str(tiny_corpus.shards), "--tokenizer", str(tiny_corpus.tokenizer)]
    (result,) = bench("before_after.py", tmp_path, "fp32", "HEAD", "--recipe", "tiny", "--full", *folders)
    assert result["settings"]["mean_length"] == 64
    (row,) = result["rounds"]
    assert row["before"]["loss"] == pytest.approx(row["after"]["loss"], rel=1e-4)  # the same work
    assert all(0.2 < ratio["median"] < 5 for ratio in result["before_over_after"].values())


def test_first_contact_says_what_the_machine_has() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_smoke.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("smoke passed")


@pytest.mark.slow
def test_every_setting_of_a_step_trains(tmp_path: Path) -> None:
    settings = ["checkpointing", "default", "plain", "stored", "full"]
    command = ["--recipe", "tiny", "--sequences", "4", "--no-parts", "--profile", "default", "--settings", *settings]
    rows = bench("step.py", tmp_path, "fp32", *command)["settings"]
    losses = {row["setting"]: row["losses"] for row in rows}
    assert list(losses) == settings
    for name in settings[:-1]:  # the same weights, batches and noise
        assert losses[name] == pytest.approx(losses["default"], rel=1e-4)
    (default,) = [row for row in rows if row["setting"] == "default"]
    assert 0 < default["kernels"]["busy_ms"] <= 1.05 * default["kernels"]["wall_ms"]
