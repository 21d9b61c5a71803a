"""What is written and read of a run: a row an update in `metrics.jsonl`, and the run's state in `status.json`."""

import json
import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fast_electra.files import write_json

Row = dict[str, Any]

# What a reader sees of a row, on the console and in the report: the row's key, its label, how a number is written, and
# the width that holds it. A key that the rows lack (an MLM run has no temperature) is left out.
SHOWN = (
    ("loss", "loss", "{:.4f}", 7),
    ("accuracy", "accuracy", "{:.3f}", 5),
    ("temperature", "T", "{:.3f}", 5),
    ("gamma", "gamma", "{:.3f}", 5),
    ("replaced_fraction", "replaced", "{:.1%}", 5),
    ("recall", "recall", "{:.3f}", 5),
    ("precision", "precision", "{:.3f}", 5),
    ("auc", "AUC", "{:.3f}", 5),
)
SUPERSEDING = ("resumed", "restarted")  # events after which earlier rows of later updates no longer count


class Metrics:
    """Writer of a run's `metrics.jsonl` and `status.json`. One process writes a run folder: rank 0.

    Args:
        run: The run folder; made if it is missing.
        updates: Updates of the whole run.
        start: Updates done before this process began (its checkpoint's). Rows that `metrics.jsonl` already holds are
            never removed. An event marks those of later updates as superseded: "resumed", or "restarted" where `start`
            is 0 and rows are there.

    Attributes:
        opening: That event, or None if the file held no rows.
    """

    def __init__(self, run: Path, updates: int, start: int = 0) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self.run, self.updates = run, updates
        self._file = (run / "metrics.jsonl").open("ab+")
        held = self._end_half_line()
        self.opening: Row | None = None
        if start > 0:
            self.opening = self.event(start, "resumed", f"continues after update {start:,}")
        elif held:
            message = "starts again from update 0; earlier rows of this folder are superseded"
            self.opening = self.event(0, "restarted", message)

    def rows(self, rows: list[Row]) -> None:
        """Write rows, so that they outlive this process from now on."""
        lines = [json.dumps({key: plain(value) for key, value in row.items()}, allow_nan=False) for row in rows]
        self._file.write("".join(line + "\n" for line in lines).encode())
        self._file.flush()

    def evaluation(self, row: Row) -> Row:
        """Write an evaluation row and return it as written."""
        row = {**row, "updates": row.get("updates", self.updates), "evaluation": True}
        self.rows([row])
        return row

    def event(self, update: int, kind: str, message: str) -> Row:
        """Write something that happened ("skipped", "resumed", ...) and return it as a row."""
        row = {"update": update, "updates": self.updates, "event": kind, "message": message}
        self.rows([row])
        return row

    def status(self, state: str, update: int, message: str = "") -> None:
        """Replace `status.json`: state is "running", "completed", "failed" or "interrupted"."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        status = {"state": state, "update": update, "updates": self.updates, "message": message, "written": now}
        write_json(self.run / "status.json", status)

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._file.close()

    def _end_half_line(self) -> bool:
        """End the line that a killed process left unfinished. Return whether the file held anything."""
        size = self._file.seek(0, os.SEEK_END)
        if size:
            self._file.seek(size - 1)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")
        return size > 0


def read_metrics(run: Path) -> tuple[list[Row], list[Row], list[Row]]:
    """Read a run's `metrics.jsonl`.

    The last row of each update (and of each kind of event) counts. A "resumed" or "restarted" event supersedes the rows
    before it that belong to later updates. A line that is not a whole row is skipped: its process was killed.

    Returns:
        Update rows, evaluation rows and events, each sorted by update; three empty lists if there is no file.
    """
    kept: dict[tuple[int, str], Row] = {}
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return [], [], []
    for line in lines:
        row = _parsed(line)
        if row is None:
            continue
        kind = f"event {row['event']}" if "event" in row else "evaluation" if row.get("evaluation") else "update"
        if row.get("event") in SUPERSEDING:
            kept = {key: held for key, held in kept.items() if key[0] <= row["update"]}
        kept[row["update"], kind] = row
    ordered = [(kind, kept[update, kind]) for update, kind in sorted(kept)]
    return (
        [row for kind, row in ordered if kind == "update"],
        [row for kind, row in ordered if kind == "evaluation"],
        [row for kind, row in ordered if kind.startswith("event")],
    )


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: NaN and infinities become None, NumPy's and torch's scalars plain numbers."""
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def duration(seconds: float) -> str:
    """Write seconds for a reader: 45s, 2m10s, 3h05m, 2d04h."""
    whole = max(round(seconds), 0)
    for size, unit, part, part_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02d}{part_unit}"
    return f"{whole}s"


def _parsed(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, or nested too deeply
        return None
    return row if isinstance(row, dict) and type(row.get("update")) is int else None
