"""What rank 0 shows and keeps of a run: console, `metrics.jsonl`, DeepSpeed's monitors, `status.json`."""

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fast_electra.files import write_json

Row = dict[str, Any]
Events = list[tuple[str, float, int]]

# What a progress line shows of a row: the row's key, its label, how a number is written, and the width that holds it.
# A key that the rows lack (an MLM run has no temperature) is left out.
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
SHOWN_ROWS = 50  # one update's recall or AUC jumps about: the console shows means of the last rows, the file keeps each
SUPERSEDING = ("resumed", "restarted")  # events after which earlier rows of later updates no longer count
REFRESH_SECONDS = 0.25


class Monitor:
    """Shows and keeps the rows of one run. One process writes a run folder: rank 0.

    Args:
        run: The run folder; made if it is missing.
        updates: Updates of the whole run.
        start: Updates done before this process began (its checkpoint's). Rows already in `metrics.jsonl` are never
            removed: a "resumed" event, written here (or "restarted", where `start` is 0 and rows are there), marks
            those of later updates as superseded.
        write_events: Takes (name, value, update) tuples, as DeepSpeed's monitors do; called with what each row holds.
        console: Where to show; the terminal or standard output by default.
        every_seconds: Time between plain lines where the console is no terminal.

    Attributes:
        update: The last update of which a row was kept; `start` before the first.
    """

    def __init__(
        self,
        run: Path,
        updates: int,
        start: int = 0,
        write_events: Callable[[Events], None] | None = None,
        console: Console | None = None,
        every_seconds: float = 10.0,
    ) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self.run, self.updates, self.start, self.update = run, updates, start, start
        self._write_events = write_events
        self._events_failed = False
        self._console = console or Console()
        self._every_seconds = every_seconds
        self._recent: deque[Row] = deque(maxlen=SHOWN_ROWS)
        self._shown_at = -math.inf  # the monotonic time and the update of the last line or refresh
        self._shown_update = start
        self._live: Live | None = None
        path = run / "metrics.jsonl"
        self._file = path.open("ab+")
        held = self._end_half_line()
        if start > 0:
            self.event(start, "resumed", f"continues after update {start:,}")
        elif held:
            self.event(0, "restarted", "starts again from update 0; earlier rows of this folder are superseded")

    def rows(self, rows: list[Row]) -> None:
        """Keep and show update rows, in order."""
        if not rows:
            return
        self._keep(rows)
        self.update = rows[-1]["update"]
        self._recent.extend(rows)
        self._hand_over([event for row in rows for event in _events(row)])
        self._show_progress(last=self.update >= self.updates)

    def evaluation(self, row: Row) -> None:
        """Keep an evaluation row and show it on a line of its own."""
        row = {**row, "updates": row.get("updates", self.updates), "evaluation": True}
        self._keep([row])
        self._hand_over(_events(row))
        self._say(evaluation_line(row), "bold")

    def event(self, update: int, kind: str, message: str) -> None:
        """Keep and show something that happened: "skipped", "resumed", ..."""
        self._keep([{"update": update, "updates": self.updates, "event": kind, "message": message}])
        self._say(f"update {update:,}: {kind}: {message}", "yellow" if kind not in SUPERSEDING else "")

    def status(self, state: str, update: int, message: str = "") -> None:
        """Replace `status.json`: state is "running", "completed", "failed" or "interrupted"."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        status = {"state": state, "update": update, "updates": self.updates, "message": message, "written": now}
        write_json(self.run / "status.json", status)

    def close(self) -> None:
        """Show the last row if no line has shown it, and end the progress bar. May be called twice."""
        if self._recent and (self._live is not None or self.update != self._shown_update):
            self._show_progress(last=True)
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._recent.clear()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end_half_line(self) -> bool:
        """End the line that a killed process left unfinished. Returns whether the file held anything."""
        size = self._file.seek(0, os.SEEK_END)
        if size:
            self._file.seek(size - 1)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")
        return size > 0

    def _keep(self, rows: list[Row]) -> None:
        lines = [json.dumps({key: _plain(value) for key, value in row.items()}, allow_nan=False) for row in rows]
        self._file.write(("\n".join(lines) + "\n").encode())
        self._file.flush()

    def _hand_over(self, events: Events) -> None:
        if self._write_events is None or not events:
            return
        try:
            self._write_events(events)
        except Exception as error:  # a lost connection to a dashboard must not end a run of many days
            if not self._events_failed:
                self._events_failed = True
                self.event(events[-1][2], "monitor", f"DeepSpeed's monitor failed, the run goes on: {error!r}")

    def _say(self, line: str, style: str = "") -> None:
        # On a terminal this prints above the bar. Elsewhere a line is never wrapped: a log is searched line by line.
        self._console.print(Text(line, style=style), soft_wrap=not self._console.is_interactive)

    def _show_progress(self, last: bool = False) -> None:
        now = time.monotonic()
        wait = REFRESH_SECONDS if self._console.is_interactive else self._every_seconds
        if now - self._shown_at < wait and not last:
            return
        self._shown_at, self._shown_update = now, self.update
        if not self._console.is_interactive:
            self._say("  ".join([f"update {self._count()}", *self._values(), *self._pace()]))
        elif self._live is None:
            self._live = Live(self._bar(), console=self._console, auto_refresh=False)
            self._live.start(refresh=True)
            self._console.show_cursor(True)  # a killed process could not bring a hidden cursor back
        else:
            self._live.update(self._bar(), refresh=True)

    def _count(self) -> str:
        total = f"{self.updates:,}"
        return f"{self.update:>{len(total)},}/{total}"

    def _values(self) -> list[str]:
        """The fields of SHOWN that the rows have, each of constant width: means of the recent rows; T as it is now."""
        fields = []
        for key, label, form, width in SHOWN:
            if key not in self._recent[-1]:
                continue
            held = [row.get(key) for row in ([self._recent[-1]] if key in ("temperature", "gamma") else self._recent)]
            numbers = [number for number in map(_plain, held) if number is not None]
            value = form.format(sum(numbers) / len(numbers)) if numbers else "-"
            fields.append(f"{label} {value:>{width}}")
        return fields

    def _pace(self) -> list[str]:
        """Tokens per second, and the time left at this process's mean pace, which counts evaluations in."""
        speeds = [speed for row in self._recent if (speed := _plain(row.get("tokens_per_second"))) is not None]
        speed = f"{sum(speeds) / len(speeds):,.0f}" if speeds else "-"
        seconds = self._recent[-1].get("seconds") or 0.0
        remaining = (self.updates - self.update) * seconds / max(self.update - self.start, 1)
        return [f"{speed:>7} tokens/s", f"ETA {duration(remaining):>6}"]

    def _bar(self) -> Group:
        top = Table.grid(padding=(0, 2), expand=True)
        top.add_column(no_wrap=True)
        top.add_column(ratio=1)
        top.add_column(no_wrap=True)
        bar = ProgressBar(total=max(self.updates, 1), completed=self.update)
        top.add_row(f"update {self._count()}", bar, "  ".join(self._pace()))
        return Group(top, Text("  ".join(self._values())))


def evaluation_line(row: Row) -> str:
    """An evaluation row in words: `held-out at update 3,500: loss 0.2811  AUC 0.7312 ...`."""
    words = {"auc": "AUC", "auc_token_identity": "token identity alone", "mlm_accuracy": "MLM accuracy"}
    fields = []
    for key, value in row.items():
        if key in ("update", "updates", "evaluation"):
            continue
        number, name = _plain(value), key.removeprefix("heldout_")
        shown = f"{number:.4f}" if isinstance(number, float) else "-" if number is None else f"{number}"
        fields.append(f"{words.get(name, name.replace('_', ' '))} {shown}")
    return f"held-out at update {row['update']:,}: " + "  ".join(fields)


def duration(seconds: float) -> str:
    """Seconds for a reader: 45s, 2m10s, 3h05m, 2d04h."""
    whole = max(round(seconds), 0)
    for size, unit, part, part_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02d}{part_unit}"
    return f"{whole}s"


def read_metrics(run: Path) -> tuple[list[Row], list[Row], list[Row]]:
    """Read a run's `metrics.jsonl`: (update rows, evaluation rows, events), each sorted by update.

    The last row for each update (and each kind of event) wins; rows of updates beyond that of a "resumed" or
    "restarted" event that follows them are superseded; a line that is no whole row (its process was killed) is skipped.
    Three empty lists if there is no file.
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


def _parsed(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, or nested too deeply
        return None
    return row if isinstance(row, dict) and type(row.get("update")) is int else None


def _events(row: Row) -> Events:
    """A row's numbers under the names that dashboards group by: `train/loss`, `heldout/auc`."""
    group = "heldout" if row.get("evaluation") else "train"
    events = []
    for key, value in row.items():
        number = _plain(value)
        if key not in ("update", "updates", "evaluation", "seconds") and isinstance(number, int | float):
            events.append((f"{group}/{key.removeprefix('heldout_')}", float(number), int(row["update"])))
    return events


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: NaN and infinities become null, NumPy's and torch's scalars plain numbers."""
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
