"""`deepspeed launch/pretrain.py` as users start it: the run folder it leaves, and the messages that mistakes get."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Corpus

from fast_electra import config
from fast_electra.jobs import pretrain
from fast_electra.settings import UserError
from fast_electra.training.metrics import read_metrics

Launch = Callable[..., Any]


def overrides(corpus: Corpus, run: Path, **more: Any) -> list[str]:
    values: dict[str, Any] = {
        "fast_electra.run": str(run),
        "fast_electra.updates": 4,
        "fast_electra.corpus.shards": str(corpus.shards),
        "fast_electra.corpus.tokenizer": str(corpus.tokenizer),
        "fast_electra.model.vocabulary_size": corpus.vocabulary_size,
        "fast_electra.evaluation.sequences": 20,
        **more,
    }
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def auxiliary(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory, launch: Launch) -> Path:
    run = tmp_path_factory.mktemp("pretrain") / "auxiliary"
    arguments = ["--deepspeed_config", "ds_configs/tiny_auxiliary.json", *overrides(tiny_corpus, run)]
    run.with_name("auxiliary.txt").write_text(launch("launch/pretrain.py", arguments, ranks=1).stdout)
    return run


@pytest.fixture(scope="module")
def discriminator(tiny_corpus: Corpus, auxiliary: Path, launch: Launch) -> Path:
    run = auxiliary.with_name("discriminator")
    monitors = {"csv_monitor.enabled": "true", "csv_monitor.output_path": str(run.with_name("csv"))}
    checkpointing = {"fast_electra.model.activation_checkpointing": "true"}
    more = {"fast_electra.auxiliary.run": str(auxiliary), **monitors, **checkpointing}
    arguments = ["--deepspeed_config", "ds_configs/tiny.json", *overrides(tiny_corpus, run, **more)]
    result = launch("launch/pretrain.py", arguments, ranks=2)
    run.with_name("output.txt").write_text(result.stdout)
    return run


def test_run_folder_is_complete(discriminator: Path) -> None:
    names = {path.name for path in discriminator.iterdir()}
    expected = {"config.json", "metrics.jsonl", "checkpoints", "report.html", "status.json", "examples.json", "model"}
    assert names == expected
    assert json.loads((discriminator / "status.json").read_text())["state"] == "completed"
    settled = json.loads((discriminator / "config.json").read_text())
    curriculum = {"schedule": "exponential", "initial": 2.0, "rate": 0.1, "per": "update"}
    assert settled["fast_electra"]["curriculum"] == curriculum
    assert settled["deepspeed"]["train_micro_batch_size_per_gpu"] == 32
    assert not list((discriminator / "checkpoints").glob("partial-*"))


def test_rows_have_what_the_design_promises(discriminator: Path) -> None:
    updates, evaluations, _ = read_metrics(discriminator)
    keys = {"update", "updates", "loss", "temperature", "replaced_fraction", "recall", "precision", "auc"}
    assert len(updates) == 4 and all(keys | {"tokens_per_second"} <= set(row) for row in updates)
    assert {"heldout_auc", "heldout_auc_token_identity", "heldout_mlm_accuracy"} <= set(evaluations[-1])
    sequences = json.loads((discriminator / "examples.json").read_text())["sequences"]
    assert len(sequences) == 10
    for token in (token for sequence in sequences for token in sequence["tokens"]):
        assert token["replaced"] == (token["piece"] != token["original"]) and 0 <= token["probability"] <= 1


def test_plain_lines_and_deepspeeds_monitors_show_the_run(discriminator: Path) -> None:
    output = discriminator.with_name("output.txt").read_text()
    assert "rtd tiny:" in output and "update 4/4" in output and str(discriminator / "report.html") in output
    (file,) = discriminator.with_name("csv").rglob("train_loss.csv")
    losses = [float(row[1]) for row in list(csv.reader(file.open()))[1:]]
    assert losses == pytest.approx([row["loss"] for row in read_metrics(discriminator)[0]], rel=1e-4)


def test_headline_says_that_the_run_would_fit_without_checkpointing(auxiliary: Path, discriminator: Path) -> None:
    """Each of the two processes may use half of the machine's memory. The auxiliary trains without checkpointing."""
    lines = discriminator.with_name("output.txt").read_text().splitlines()
    headline = next(number for number, line in enumerate(lines) if line.startswith("rtd tiny:"))
    note = lines[headline + 1]
    assert note.startswith("note: activation checkpointing can be off")
    assert f"of its {psutil.virtual_memory().total / 2 / 1e9:,.1f} GB" in note and "fewer FLOPs" in note
    assert note.endswith("--set fast_electra.model.activation_checkpointing=false")
    assert "activation checkpointing" not in auxiliary.with_name("auxiliary.txt").read_text()


def test_a_complete_run_is_left_alone(
    discriminator: Path, auxiliary: Path, tiny_corpus: Corpus, launch: Launch
) -> None:
    """Also by a config without activation checkpointing, which may change between the sessions of a run."""
    before = (discriminator / "metrics.jsonl").read_bytes()
    more = {"fast_electra.auxiliary.run": str(auxiliary)}
    arguments = ["--deepspeed_config", "ds_configs/tiny.json", *overrides(tiny_corpus, discriminator, **more)]
    result = launch("launch/pretrain.py", arguments, ranks=2)
    assert "is complete" in result.stdout
    assert (discriminator / "metrics.jsonl").read_bytes() == before


def refused(launch: Launch, arguments: list[str], ranks: int = 1) -> str:
    """The one line of the error."""
    result = launch("launch/pretrain.py", arguments, ranks=ranks, check=False)
    assert result.returncode != 0 and "Traceback" not in result.stdout, result.stdout[-3000:]
    (line,) = [line for line in result.stdout.splitlines() if "error:" in line]
    return line


def test_a_changed_config_does_not_continue_a_run(
    discriminator: Path, auxiliary: Path, tiny_corpus: Corpus, launch: Launch
) -> None:
    more = {"fast_electra.auxiliary.run": str(auxiliary), "fast_electra.curriculum.rate": 0.3}
    arguments = ["--deepspeed_config", "ds_configs/tiny.json", *overrides(tiny_corpus, discriminator, **more)]
    assert "fast_electra.curriculum.rate was 0.1 when this run began" in refused(launch, arguments, ranks=2)


def test_a_folder_in_the_place_of_a_file_is_refused_at_once(tmp_path: Path) -> None:
    settled = config.load("ds_configs/tiny_auxiliary.json", [f"fast_electra.run={tmp_path}"])
    for name in ("config.json", "status.json", "metrics.jsonl", "examples.json", "report.html"):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=f"{name} is a folder, and the run writes a file there: move it away"):
            pretrain.main(settled)
        (tmp_path / name).rmdir()
    for name in ("checkpoints", "model"):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match=f"{name} is a file, and the run writes a folder there: move it away"):
            pretrain.main(settled)
        (tmp_path / name).unlink()
    assert not list(tmp_path.iterdir())


def test_misspelt_key_is_refused_once_for_all_ranks(launch: Launch) -> None:
    arguments = ["--deepspeed_config", "ds_configs/tiny.json", "--set", "fast_electra.curriculum.rat=1"]
    assert "fast_electra.curriculum.rat; did you mean rate?" in refused(launch, arguments, ranks=2)
