"""`fast-electra scores`: the dev scores of fine-tuned runs side by side, and the average of Table 5."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from fast_electra.files import read_json
from fast_electra.finetuning.metrics import glue_average
from fast_electra.finetuning.tasks import TASKS
from fast_electra.settings import UserError

SCORES, RESULTS = "scores.json", "results.json"  # of a run, and of a search


class Entry(NamedTuple):
    """A task's best setting."""

    task: str
    metric: str
    scores: tuple[float, ...]  # dev scores of the seeds
    setting: str
    run: Path

    @property
    def score(self) -> float:
        """Median over the seeds."""
        return median(self.scores)


def entries(runs: Sequence[Path]) -> list[Entry]:
    """Return the entry of each run or search. A folder that is neither means all of them in it.

    Raises:
        UserError: a folder holds no fine-tuned run, or a file of one is damaged.
    """
    found = []
    for run in runs:
        inside = [run] if _is_run(run) else sorted(path for path in run.glob("*") if _is_run(path))
        if not inside:
            remedy = "name a run of launch/finetune.py that is complete, or a folder of such runs"
            raise UserError(f"{run} has no {SCORES} or {RESULTS}: {remedy}")
        found += [_entry(path) for path in inside]
    return found


def _is_run(folder: Path) -> bool:
    return (folder / SCORES).is_file() or (folder / RESULTS).is_file()


def _entry(run: Path) -> Entry:
    file = run / (RESULTS if (run / RESULTS).is_file() else SCORES)
    try:
        read: dict[str, Any] = read_json(file)
        if file.name == SCORES:
            best = {"scores": [read["dev"]["heldout_score"]], "setting": ""}
        else:
            best = read["settings"][0]
        scores = tuple(map(float, best["scores"]))
        return Entry(str(read["task"]), str(read["metric"]), scores, str(best["setting"]), run)
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error!r:.200}): fine-tune again") from None


def to_text(found: list[Entry]) -> str:
    """Return aligned lines: task, metric, dev score and its spread, setting, run; then the GLUE average."""
    rows = [("task", "metric", "dev score", "seeds", "setting", "run")]
    for one in found:
        spread = f"{len(one.scores)}: {min(one.scores):.4f} to {max(one.scores):.4f}" if len(one.scores) > 1 else "1"
        shown = TASKS[one.task].shown if one.task in TASKS else one.task
        rows.append((shown, one.metric, f"{one.score:.4f}", spread, one.setting or "-", str(one.run)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    of_glue = [one for one in found if one.task in TASKS]
    if {one.task for one in of_glue} == set(TASKS) and len(of_glue) == len(TASKS):
        average = glue_average({one.task: {"dev": one.score} for one in of_glue})
        lines.append(f"GLUE average, as in Table 5: {100 * average:.1f}")
    elif of_glue:
        missing = [task.shown for name, task in TASKS.items() if name not in {one.task for one in of_glue}]
        why = f"{', '.join(missing)} missing" if missing else "a task is there twice"
        lines.append(f"no GLUE average: {why}")
    return "\n".join(lines)


def to_json(found: list[Entry]) -> str:
    """Return the entries as JSON."""
    return json.dumps([one._asdict() | {"run": str(one.run), "median": one.score} for one in found], indent=2)
