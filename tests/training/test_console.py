"""What a run shows must be readable on a terminal and in a log, and reach DeepSpeed's monitors."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fast_electra.training.console import Monitor, evaluation_line
from fast_electra.training.metrics import read_metrics


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


def test_what_is_shown_is_also_written(tmp_path: Path) -> None:
    """A first session, one that resumes it and one that starts again: rows, evaluations, events and status."""
    with Monitor(tmp_path, 10, **log()) as monitor:
        assert monitor.update == 0
        monitor.rows([update_row(1, 10), update_row(2, 10)])
        assert monitor.update == 2
        monitor.evaluation({"update": 2, "heldout_auc": 0.7})
        monitor.event(2, "skipped", "nonfinite")
        monitor.status("running", 2)
    updates, evaluations, events = read_metrics(tmp_path)
    assert [row["update"] for row in updates] == [1, 2]
    assert evaluations == [{"update": 2, "heldout_auc": 0.7, "updates": 10, "evaluation": True}]
    assert [event["event"] for event in events] == ["skipped"]
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"
    for start, event in ((2, "resumed: continues after update 2"), (0, "restarted: starts again from update 0")):
        with Monitor(tmp_path, 10, start=start, **log()) as monitor:
            assert monitor.update == start
        assert len(shown(monitor)) == 1 and shown(monitor)[0].startswith(f"update {start}: {event}")
        assert event.split(":")[0] in [row["event"] for row in read_metrics(tmp_path)[2]]


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


def terminal(width: int) -> dict[str, Any]:
    """Arguments of a monitor that draws on a terminal of this width."""
    return {"console": Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=width, height=24)}


def test_a_terminal_gets_a_bar_with_the_values_within_its_width(tmp_path: Path) -> None:
    with Monitor(tmp_path, 3500, **terminal(80)) as monitor:
        monitor.rows([update_row(1)])
        monitor.evaluation({"update": 1, "heldout_auc": 0.5})
        monitor.rows([update_row(2)])
        output = "\n".join(shown(monitor))
        assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l")  # visible at once: a kill cannot bring it back
    output = "\n".join(shown(monitor))
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
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l")
    assert "…" not in output


def test_a_narrow_terminal_shows_all_of_a_long_run(tmp_path: Path) -> None:
    with Monitor(tmp_path, 1_000_000, **terminal(60)) as monitor:
        monitor.rows([update_row(20_000, 1_000_000, tokens_per_second=1041203.4, seconds=40_000.0)])
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line) for line in shown(monitor)]
    bar, *values = [line for line in lines if line][-3:]
    assert bar.startswith("update    20,000/1,000,000 ") and "━" in bar
    assert bar.endswith(" 1,041,203 tokens/s  ETA 22d16h")
    assert max(map(len, lines)) <= 60
    assert [line.split() for line in values] == [
        ["loss", "0.3012", "T", "1.368", "replaced", "12.1%", "recall", "0.214"],
        ["precision", "0.655", "AUC", "0.688"],
    ]
