"""What a run writes must survive kills and odd numbers, and be read back as what counts."""

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fast_electra.training.metrics import Metrics, absurd_loss, duration, read_metrics


def strict_lines(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl by a parser that refuses NaN, as every JSON parser but Python's does."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (run / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


@pytest.mark.drill("bad number in losses, weights or data")
def test_rows_are_on_disk_at_once_and_hold_no_nan(tmp_path: Path) -> None:
    numbers = {"loss": float("nan"), "gradient_norm": float("inf"), "recall": np.float32(0.25)}
    with closing(Metrics(tmp_path, 3500)) as metrics:
        metrics.rows([{"update": 1, **numbers}])
        metrics.evaluation({"update": 1, "heldout_auc": np.float64("nan"), "heldout_loss": 0.4})
        first, second = strict_lines(tmp_path)  # before close
    assert (first["loss"], first["gradient_norm"], first["recall"]) == (None, None, 0.25)
    assert second == {"update": 1, "heldout_auc": None, "heldout_loss": 0.4, "updates": 3500, "evaluation": True}


def test_a_half_written_line_corrupts_neither_the_next_row_nor_the_reader(tmp_path: Path) -> None:
    with closing(Metrics(tmp_path, 10)) as metrics:
        metrics.rows([{"update": 1, "loss": 0.3}, {"update": 2, "loss": 0.3}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 3, "upda')
    with closing(Metrics(tmp_path, 10, start=2)) as metrics:
        metrics.rows([{"update": 3, "loss": 0.5}])
    updates, _, events = read_metrics(tmp_path)
    assert [(row["update"], row["loss"]) for row in updates] == [(1, 0.3), (2, 0.3), (3, 0.5)]
    assert [event["event"] for event in events] == ["resumed"]


@pytest.mark.drill("process of a run killed or stopped")
def test_a_killed_writer_loses_at_most_its_last_row(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from fast_electra.training.metrics import Metrics\n"
        "metrics = Metrics(pathlib.Path(sys.argv[1]), 10**9)\n"
        "for update in range(1, 10**9):\n"
        "    metrics.rows([{'update': update, 'loss': 0.1 * update, 'seconds': 1.0}]); print(update, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    told = [int(writer.stdout.readline()) for _ in range(200)][-1]
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    updates, _, _ = read_metrics(tmp_path)
    assert [row["update"] for row in updates] == list(range(1, len(updates) + 1))
    assert len(updates) >= told


def test_after_a_resume_the_superseded_rows_are_kept_but_not_read(tmp_path: Path) -> None:
    with closing(Metrics(tmp_path, 100)) as metrics:
        metrics.rows([{"update": update, "loss": 1.0} for update in range(1, 31)])
        metrics.evaluation({"update": 10, "heldout_auc": 0.6})
        metrics.evaluation({"update": 30, "heldout_auc": 0.9})
        metrics.event(25, "skipped", "nonfinite")
    with closing(Metrics(tmp_path, 100, start=20)) as metrics:
        metrics.rows([{"update": 21, "loss": 2.0}, {"update": 22, "loss": 2.0}])
    updates, evaluations, events = read_metrics(tmp_path)
    assert [row["loss"] for row in updates] == [1.0] * 20 + [2.0] * 2
    assert [row["update"] for row in evaluations] == [10]
    assert [(event["update"], event["event"]) for event in events] == [(20, "resumed")]
    assert len(strict_lines(tmp_path)) == 30 + 2 + 1 + 1 + 2


def test_a_run_begun_again_from_zero_supersedes_all_that_the_folder_held(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        with closing(Metrics(tmp_path, 100)) as metrics:
            metrics.rows([{"update": update, "loss": loss} for update in range(1, 4 if loss == 1.0 else 3)])
    updates, _, events = read_metrics(tmp_path)
    assert [row["loss"] for row in updates] == [2.0, 2.0]
    assert [event["event"] for event in events] == ["restarted"]


def test_reader_takes_the_last_row_of_each_update_sorted_and_skips_what_is_no_row(tmp_path: Path) -> None:
    rows = [
        {"update": 2, "loss": 1},
        {"update": 1, "loss": 2},
        {"update": 2, "loss": 3},
        {"update": 2, "evaluation": True},
    ]
    junk = ["", "[1]", '{"loss": 1}', '{"update": "3"}', '{"update": null}', "\0\0\0", "7"]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*map(json.dumps, rows), *junk]))
    updates, evaluations, events = read_metrics(tmp_path)
    assert updates == [{"update": 1, "loss": 2}, {"update": 2, "loss": 3}]
    assert evaluations == [{"update": 2, "evaluation": True}]
    assert events == []
    assert read_metrics(tmp_path / "missing") == ([], [], [])


def test_status_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Metrics(tmp_path, 10)) as metrics:
        metrics.status("running", 3)
        before = (tmp_path / "status.json").stat().st_ino
        metrics.status("completed", 10, "done")
        assert (tmp_path / "status.json").stat().st_ino != before  # a new file took the name: never written in place
        status = json.loads((tmp_path / "status.json").read_text())
        assert (status["state"], status["update"], status["updates"], status["message"]) == (
            "completed",
            10,
            10,
            "done",
        )

        def full_disk(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space"):
            metrics.status("failed", 10)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "completed"


@pytest.mark.drill("full disk, or limit on the size of files")
def test_a_full_disk_is_named_and_the_status_still_says_that_the_run_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    metrics = Metrics(tmp_path, 10)
    metrics.status("running", 3)
    with pytest.raises(OSError, match=r"No space left on device: '.*/metrics\.jsonl'"):
        metrics.rows([{"update": 4, "loss": 1.0}])

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*/status\.json'"):
        metrics.status("running", 4)
    metrics.end("failed", 4, "the disk is full")  # which closes, and fails no second time
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["update"], status["message"]) == ("failed", 4, "the disk is full")


@pytest.mark.drill("bad number in losses, weights or data")
@pytest.mark.parametrize(
    ("losses", "absurd"),
    [
        ([0.7, 0.5, 0.3], False),
        ([8.0, 7.9, 8.4], False),  # noise of a short run
        ([8.0] + [1.5e8] * 20, True),
        ([0.7, 0.3] + [2.0] * 20, True),
        ([0.7] + [None] * 5 + [9.0] * 10 + [None], True),
        ([0.7] + [9.0] * 90 + [0.4] * 10, False),  # it came back
        ([None, None], False),
        ([], False),
    ],
)
def test_a_loss_that_ended_far_above_its_beginning_is_told(
    tmp_path: Path, losses: list[float | None], absurd: bool
) -> None:
    with closing(Metrics(tmp_path, 10)) as metrics:
        metrics.rows([{"update": number, "loss": loss} for number, loss in enumerate(losses, 1)])
    told = absurd_loss(tmp_path)
    assert ("diverged" in told and "lower optimizer.params.lr" in told) if absurd else told == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (130, "2m10s"), (11100, "3h05m"), (187200, "2d04h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
