"""What is written and read of a run: a row an update in `metrics.jsonl`, and the run's state in `status.json`."""

import errno
import json
import math
import os
from contextlib import suppress
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
ABSURD, LAST_ROWS = 1.5, 10  # times the first loss, in the mean of the last rows
SUPERSEDING = ("resumed", "restarted")  # events after which earlier rows of later updates no longer count


class Metrics:
    """Writer of a run's `metrics.jsonl` and `status.json`. One process writes a run folder: rank 0."""

    def __init__(self, run: Path, updates: int, start: int = 0) -> None:
        """Open the files of the folder `run`, which is made if it is missing, after update `start` of `updates`.

        Rows that `metrics.jsonl` already holds are never removed. An event marks those of later updates as superseded:
        "resumed", or "restarted" where `start` is 0 and rows are there.
        """
        run.mkdir(parents=True, exist_ok=True)
        self.run, self.updates = run, updates
        self._file = (run / "metrics.jsonl").open("ab+", buffering=0)  # a full disk must not fail a second time
        held = self._end_half_line()
        if start > 0:
            self.event(start, "resumed", f"continues after update {start:,}")
        elif held:
            self.event(0, "restarted", "starts again from update 0; earlier rows of this folder are superseded")

    def rows(self, rows: list[Row]) -> None:
        """Write update rows, in order."""
        self._write(rows)

    def evaluation(self, row: Row) -> Row:
        """Write an evaluation row and return it as written."""
        row = {**row, "updates": row.get("updates", self.updates), "evaluation": True}
        self._write([row])
        return row

    def event(self, update: int, kind: str, message: str) -> None:
        """Write something that happened: "skipped", "resumed", ..."""
        self._write([{"update": update, "updates": self.updates, "event": kind, "message": message}])

    def status(self, state: str, update: int, message: str = "") -> None:
        """Replace `status.json`: state is "running", "completed", "failed" or "interrupted"."""
        write_json(self.run / "status.json", self._status(state, update, message))

    def end(self, state: str, update: int, message: str) -> None:
        """Write `status.json` of a run that ends with an error, and close. On a full disk, write into the old file."""
        try:
            self.status(state, update, message)
        except OSError:
            with suppress(OSError):
                (self.run / "status.json").write_text(json.dumps(self._status(state, update, message)))
        self.close()

    def _status(self, state: str, update: int, message: str) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return {"state": state, "update": update, "updates": self.updates, "message": message, "written": now}

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._file.close()

    def _write(self, rows: list[Row]) -> None:
        """Write rows, so that they outlive this process from now on."""
        lines = [json.dumps({key: plain(value) for key, value in row.items()}, allow_nan=False) for row in rows]
        data = "".join(line + "\n" for line in lines).encode()
        try:
            complete = self._file.write(data) == len(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from None
        if not complete:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)

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
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return [], [], []
    kept: dict[tuple[int, str], Row] = {}  # by update and kind
    for row in filter(None, map(_parsed, lines)):
        kind = f"event {row['event']}" if "event" in row else "evaluation" if row.get("evaluation") else "update"
        if row.get("event") in SUPERSEDING:
            kept = {key: held for key, held in kept.items() if key[0] <= row["update"]}
        kept[row["update"], kind] = row
    updates, evaluations, events = (
        [kept[key] for key in sorted(kept) if key[1].startswith(kind)] for kind in ("update", "evaluation", "event")
    )
    return updates, evaluations, events


def absurd_loss(run: Path) -> str:
    """Return a sentence if a run ended with a loss far above that of its untrained model, or ""."""
    losses = [row["loss"] for row in read_metrics(run)[0] if isinstance(row.get("loss"), int | float)]
    first, last = losses[:1], losses[-LAST_ROWS:]
    if not first or sum(last) / len(last) < ABSURD * first[0]:
        return ""
    return (
        f"the loss ended at {sum(last) / len(last):.4g}, far above the {first[0]:.4g} of the untrained model: the run "
        "diverged and its model is of no use; lower optimizer.params.lr"
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
