"""What a run keeps must survive kills and odd numbers; what it shows must be readable on a terminal and in a log."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fast_electra.training.metrics import Monitor, duration, evaluation_line, read_metrics


def update_row(update: int, updates: int = 3500, **values: Any) -> dict[str, Any]:
    row = {
        "update": update,
        "updates": updates,
        "loss": 0.3012,
        "learning_rate": 1e-3,
        "gradient_norm": 1.0,
        "tokens": 2048,
    }
    row |= {"tokens_per_second": 41203.4, "seconds": update * 0.05, "temperature": 1.368, "replaced_fraction": 0.121}
    return row | {"recall": 0.214, "precision": 0.655, "auc": 0.688} | values


def log(every_seconds: float = 10.0) -> dict[str, Any]:
    """Arguments of a monitor that writes plain lines to a buffer as narrow as a default terminal."""
    return {"console": Console(file=io.StringIO(), width=80), "every_seconds": every_seconds}


def shown(monitor: Monitor) -> list[str]:
    return monitor._console.file.getvalue().splitlines()


def strict_lines(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl by a parser that refuses NaN, as every JSON parser but Python's does."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (run / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_rows_are_on_disk_at_once_and_hold_no_nan(tmp_path: Path) -> None:
    with Monitor(tmp_path, 3500, **log()) as monitor:
        monitor.rows([update_row(1, loss=float("nan"), gradient_norm=float("inf"), recall=np.float32(0.25))])
        monitor.evaluation({"update": 1, "heldout_auc": np.float64("nan"), "heldout_loss": 0.4})
        first, second = strict_lines(tmp_path)  # before close
    assert (first["loss"], first["gradient_norm"], first["recall"]) == (None, None, 0.25)
    assert second == {"update": 1, "heldout_auc": None, "heldout_loss": 0.4, "updates": 3500, "evaluation": True}


def test_a_half_written_line_corrupts_neither_the_next_row_nor_the_reader(tmp_path: Path) -> None:
    with Monitor(tmp_path, 10, **log()) as monitor:
        monitor.rows([update_row(1), update_row(2)])
        assert monitor.update == 2
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 3, "upda')
    with Monitor(tmp_path, 10, start=2, **log()) as monitor:
        monitor.rows([update_row(3, loss=0.5)])
    updates, _, events = read_metrics(tmp_path)
    assert [(row["update"], row["loss"]) for row in updates] == [(1, 0.3012), (2, 0.3012), (3, 0.5)]
    assert [event["event"] for event in events] == ["resumed"]


def test_a_killed_writer_loses_at_most_its_last_row(tmp_path: Path) -> None:
    code = (
        "import io, pathlib, sys; from rich.console import Console; from fast_electra.training.metrics import Monitor\n"
        "monitor = Monitor(pathlib.Path(sys.argv[1]), 10**9, console=Console(file=io.StringIO()))\n"
        "for update in range(1, 10**9):\n"
        "    monitor.rows([{'update': update, 'loss': 0.1 * update, 'seconds': 1.0}]); print(update, flush=True)\n"
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
    with Monitor(tmp_path, 100, **log()) as monitor:
        monitor.rows([update_row(update, loss=1.0) for update in range(1, 31)])
        monitor.evaluation({"update": 10, "heldout_auc": 0.6})
        monitor.evaluation({"update": 30, "heldout_auc": 0.9})
        monitor.event(25, "skipped", "nonfinite")
    with Monitor(tmp_path, 100, start=20, **log()) as monitor:
        monitor.rows([update_row(21, loss=2.0), update_row(22, loss=2.0)])
    updates, evaluations, events = read_metrics(tmp_path)
    assert [row["loss"] for row in updates] == [1.0] * 20 + [2.0] * 2
    assert [row["update"] for row in evaluations] == [10]
    assert [(event["update"], event["event"]) for event in events] == [(20, "resumed")]
    assert len(strict_lines(tmp_path)) == 30 + 2 + 1 + 1 + 2


def test_a_run_begun_again_from_zero_supersedes_all_that_the_folder_held(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        with Monitor(tmp_path, 100, **log()) as monitor:
            monitor.rows([update_row(update, loss=loss) for update in range(1, 4 if loss == 1.0 else 3)])
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


def test_deepspeeds_monitors_get_the_numbers_under_grouped_names(tmp_path: Path) -> None:
    got: list[tuple[str, float, int]] = []
    with Monitor(tmp_path, 10, write_events=got.extend, **log()) as monitor:
        monitor.rows([update_row(7, precision=None, auc=float("nan"))])
        monitor.evaluation({"update": 7, "heldout_auc": 0.7})
    assert ("train/loss", 0.3012, 7) in got
    assert ("heldout/auc", 0.7, 7) in got
    names = [name for name, _, _ in got]
    assert len(names) == len(set(names))
    assert not {"train/precision", "train/auc", "train/update", "train/updates", "heldout/evaluation"} & set(names)


def test_a_dashboard_that_fails_does_not_end_the_run_and_is_reported_once(tmp_path: Path) -> None:
    def broken(events: list[tuple[str, float, int]]) -> None:
        raise ConnectionError("no route")

    with Monitor(tmp_path, 10, write_events=broken, **log()) as monitor:
        for update in (1, 2, 3):
            monitor.rows([update_row(update, 10)])
    updates, _, events = read_metrics(tmp_path)
    assert len(updates) == 3
    assert [event["event"] for event in events] == ["monitor"]
    assert "no route" in events[0]["message"]


def test_status_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Monitor(tmp_path, 10, **log()) as monitor:
        monitor.status("running", 3)
        before = (tmp_path / "status.json").stat().st_ino
        monitor.status("completed", 10, "done")
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
            monitor.status("failed", 10)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "completed"


def test_a_log_gets_the_first_and_the_last_update_and_not_every_one(tmp_path: Path) -> None:
    with Monitor(tmp_path, 3500, **log()) as monitor:
        for update in range(1, 3501):
            monitor.rows([update_row(update, recall=0.0 if update < 500 else 0.5)])
    lines = shown(monitor)
    assert [line.split()[1] for line in lines] == ["1/3,500", "3,500/3,500"]
    assert len({len(line) for line in lines}) == 1  # columns stand under each other
    assert lines[1] == (
        "update 3,500/3,500  loss  0.3012  T 1.368  replaced 12.1%  recall 0.500  precision 0.655  AUC 0.688"
        "   41,203 tokens/s  ETA     0s"
    )


def test_a_log_gets_a_line_for_every_interval(tmp_path: Path) -> None:
    with Monitor(tmp_path, 100, **log(every_seconds=0.0)) as monitor:
        for update in (1, 2, 3):
            monitor.rows([update_row(update, 100, seconds=update * 2.0)])
    assert [line.split()[1:3] for line in shown(monitor)] == [["1/100", "loss"], ["2/100", "loss"], ["3/100", "loss"]]
    assert shown(monitor)[-1].endswith("ETA  3m14s")  # 97 updates of 2 s


def test_the_pace_after_a_resume_counts_only_this_process(tmp_path: Path) -> None:
    with Monitor(tmp_path, 100, start=50, **log()) as monitor:
        monitor.rows([update_row(51, 100, seconds=1.0)])
    assert shown(monitor)[-1].endswith("ETA    49s")


def test_what_stopped_a_run_is_preceded_by_where_it_stood(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Monitor(tmp_path, 100, **log()) as monitor:  # noqa: PT012
        monitor.rows([update_row(1, 100)])
        monitor.rows([update_row(2, 100)])
        raise KeyboardInterrupt
    monitor.close()  # a second time
    assert [line.split()[1] for line in shown(monitor)] == ["1/100", "2/100"]


def test_an_mlm_run_shows_loss_and_accuracy_and_nulls_as_dashes(tmp_path: Path) -> None:
    row = {"update": 1, "updates": 5, "loss": 8.3178, "accuracy": None, "tokens_per_second": None, "seconds": 1.0}
    with Monitor(tmp_path, 5, **log()) as monitor:
        monitor.rows([row])
    assert shown(monitor) == ["update 1/5  loss  8.3178  accuracy     -        - tokens/s  ETA     4s"]


def test_evaluations_and_events_are_lines_of_their_own_unwrapped(tmp_path: Path) -> None:
    message = "gradient [not] finite: " + "x" * 100  # markup-like text stays as it is
    with Monitor(tmp_path, 5, **log()) as monitor:
        monitor.evaluation(
            {"update": 2, "heldout_auc": 0.7312, "heldout_auc_token_identity": 0.6, "heldout_tokens": 12}
        )
        monitor.event(3, "skipped", message)
    assert shown(monitor) == [
        "held-out at update 2: AUC 0.7312  token identity alone 0.6000  tokens 12",
        f"update 3: skipped: {message}",
    ]


def test_evaluation_line_writes_a_missing_number_as_a_dash() -> None:
    assert (
        evaluation_line({"update": 1, "heldout_mlm_accuracy": float("nan")}) == "held-out at update 1: MLM accuracy -"
    )


def test_a_terminal_gets_a_bar_with_the_values_within_its_width(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=80, height=24)
    with Monitor(tmp_path, 3500, console=console) as monitor:
        monitor.rows([update_row(1)])
        monitor.evaluation({"update": 1, "heldout_auc": 0.5})
        monitor.rows([update_row(2)])
    output = console.file.getvalue()  # type: ignore[attr-defined]
    for part in (
        "    2/3,500",
        "━",
        "ETA",
        "41,203 tokens/s",
        "T 1.368",
        "replaced 12.1%",
        "AUC 0.688",
        "held-out at update 1",
    ):
        assert part in output
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l")  # the cursor is visible, also after a kill
    assert "…" not in output


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (130, "2m10s"), (11100, "3h05m"), (187200, "2d04h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
