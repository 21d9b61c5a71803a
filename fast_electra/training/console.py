"""What is shown of a run while it trains: a progress bar or plain lines, and DeepSpeed's monitors."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from fast_electra.training.metrics import SHOWN, SUPERSEDING, Metrics, Row, duration, plain

Events = list[tuple[str, float, int]]

SHOWN_ROWS = 50  # one update's recall or AUC jumps about: the console shows means of the last rows, the file keeps each
REFRESH_SECONDS = 0.25


class Monitor(Metrics):
    """Writes the rows of one run and shows them: a bar on a terminal, plain lines elsewhere."""

    def __init__(
        self,
        run: Path,
        updates: int,
        start: int = 0,
        write_events: Callable[[Events], None] | None = None,
        console: Console | None = None,
        every_seconds: float = 10.0,
    ) -> None:
        """Open the files as `Metrics` does, and show on the terminal or standard output unless a console is given.

        `write_events` takes (name, value, update) tuples of what each row holds, as DeepSpeed's monitors do. Where the
        console is not a terminal, `every_seconds` is the time between plain lines.
        """
        self.start, self.update = start, start  # `update` is the last one whose row was written
        self._write_events = write_events
        self._events_failed = False
        self._console = console or Console()
        self._every_seconds = every_seconds
        self._recent: deque[Row] = deque(maxlen=SHOWN_ROWS)
        self._shown_at = -math.inf  # the monotonic time and the update of the last line or refresh
        self._shown_update = start
        self._bar = _Bar(self._console)
        self._task = self._bar.add_task("", total=updates, completed=start, count="", pace="", values="")
        super().__init__(run, updates, start)  # last, because it may show an event

    def rows(self, rows: list[Row]) -> None:
        """Write and show update rows, in order."""
        if not rows:
            return
        super().rows(rows)
        self.update = rows[-1]["update"]
        self._recent.extend(rows)
        self._hand_over(rows)
        self._show_progress(last=self.update >= self.updates)

    def evaluation(self, row: Row) -> Row:
        """Write an evaluation row and show it on a line of its own."""
        row = super().evaluation(row)
        self._hand_over([row])
        self._say(evaluation_line(row), "bold")
        return row

    def event(self, update: int, kind: str, message: str) -> None:
        """Write and show something that happened: "skipped", "resumed", ..."""
        super().event(update, kind, message)
        self._say(f"update {update:,}: {kind}: {message}", "" if kind in SUPERSEDING else "yellow")

    def close(self) -> None:
        """Show the last row if no line has shown it, and end the progress bar. May be called twice."""
        if self._recent and (self._bar.live.is_started or self.update != self._shown_update):
            self._show_progress(last=True)
        if self._bar.live.is_started:
            self._bar.stop()
        self._recent.clear()
        super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hand_over(self, rows: list[Row]) -> None:
        events = [event for row in rows for event in _events(row)]
        if self._write_events is None or not events:
            return
        try:
            self._write_events(events)
        except Exception as error:  # a lost connection to a dashboard must not end a run of many days
            if not self._events_failed:
                self._events_failed = True
                self.event(events[-1][2], "monitor", f"DeepSpeed's monitor failed, the run continues: {error!r}")

    def _say(self, line: str, style: str = "") -> None:
        # On a terminal this prints above the bar. Elsewhere a line is never wrapped: a log is searched line by line.
        self._console.print(Text(line, style=style), soft_wrap=not self._console.is_interactive)

    def _show_progress(self, last: bool = False) -> None:
        now, on_terminal = time.monotonic(), self._console.is_interactive
        if now - self._shown_at < (REFRESH_SECONDS if on_terminal else self._every_seconds) and not last:
            return
        self._shown_at, self._shown_update = now, self.update
        total = f"{self.updates:,}"
        count = f"update {self.update:>{len(total)},}/{total}"
        values, pace = "  ".join(self._values()), self._pace()
        if not on_terminal:
            self._say(f"{count}  {values}  {pace}")
            return
        self._bar.update(self._task, completed=self.update, count=count, pace=pace, values=values, refresh=True)
        if not self._bar.live.is_started:
            self._bar.start()
            self._console.show_cursor(True)  # a killed process could not bring a hidden cursor back

    def _values(self) -> list[str]:
        """Fields of SHOWN that the rows have, each of constant width: means of the recent rows; T as it is now."""
        latest, fields = self._recent[-1], []
        for key, label, form, width in SHOWN:
            if key in latest:
                value = _mean([latest] if key in ("temperature", "gamma") else self._recent, key, form)
                fields.append(f"{label} {value:>{width}}")
        return fields

    def _pace(self) -> str:
        """Tokens per second, and the time left at this process's mean pace, which counts evaluations in."""
        speed = _mean(self._recent, "tokens_per_second", "{:,.0f}")
        seconds = self._recent[-1].get("seconds") or 0.0
        remaining = (self.updates - self.update) * seconds / max(self.update - self.start, 1)
        return f"{speed:>7} tokens/s  ETA {duration(remaining):>6}"


class _Bar(Progress):
    """A progress bar over a line of values."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.fields[count]}"), BarColumn(None), TextColumn("{task.fields[pace]}"))
        super().__init__(*columns, console=console, auto_refresh=False, expand=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield from (Text(task.fields["values"]) for task in self.tasks)


def _mean(rows: Iterable[Row], key: str, form: str) -> str:
    """Write the mean of the numbers that rows have under a key; "-" if there are none."""
    numbers = [number for row in rows if (number := plain(row.get(key))) is not None]
    return form.format(sum(numbers) / len(numbers)) if numbers else "-"


def evaluation_line(row: Row) -> str:
    """Return an evaluation row in words: `held-out at update 3,500: loss 0.2811  AUC 0.7312 ...`."""
    words = {"auc": "AUC", "auc_token_identity": "token identity alone", "mlm_accuracy": "MLM accuracy"}
    fields = []
    for key, value in row.items():
        if key in ("update", "updates", "evaluation"):
            continue
        number, name = plain(value), key.removeprefix("heldout_")
        shown = f"{number:.4f}" if isinstance(number, float) else "-" if number is None else f"{number}"
        fields.append(f"{words.get(name, name.replace('_', ' '))} {shown}")
    return f"held-out at update {row['update']:,}: " + "  ".join(fields)


def _events(row: Row) -> Events:
    """Return a row's numbers under the names that dashboards group by: `train/loss`, `heldout/auc`."""
    group = "heldout" if row.get("evaluation") else "train"
    numbers = {key: plain(row[key]) for key in row if key not in ("update", "updates", "evaluation", "seconds")}
    return [
        (f"{group}/{key.removeprefix('heldout_')}", float(number), int(row["update"]))
        for key, number in numbers.items()
        if isinstance(number, int | float)
    ]
