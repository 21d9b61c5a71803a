"""`report.html`: one page about one or several runs, which needs no other file. `page.html.j2` is its template."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fast_electra.files import read_json, write_text
from fast_electra.report.curves import PANELS, draw_panels
from fast_electra.report.marks import read_sequences
from fast_electra.settings import UserError
from fast_electra.training.metrics import SHOWN, Row, duration, read_metrics

# DeepSpeed's main settings; the others are in the full configuration.
DEEPSPEED_SETTINGS = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("optimizer.type", "optimizer.params.lr", "optimizer.params.weight_decay"),
    *("scheduler.type", "scheduler.params.warmup_num_steps", "zero_optimization.stage", "bf16.enabled", "fp16.enabled"),
)
TRAINING_ROWS = 50  # the line about the training shows medians of this many rows
LARGEST = 1e100  # a larger number is no measurement, and overflows in what is computed from it


def write_report(runs: Sequence[Path], output: Path) -> Path:
    """Write one HTML page about the runs, in their order, and return its path. It refers to nothing outside itself.

    What a run lacks (evaluations, examples, status) or what has an unexpected shape is left out or said to be missing.

    Raises:
        UserError: there is no run, or a run has no update rows.
    """
    if not runs:
        raise UserError("no run folder was given to report on: name at least one")
    strict: Any = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), **strict)
    environment.filters |= {"figure": _figure, "setting": _setting}
    values = [_values(run, f"run{index}") for index, run in enumerate(runs)]
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = environment.get_template("page.html.j2").render(runs=values, written=written)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page.encode("utf-8", errors="replace").decode())  # JSON may hold one half of a surrogate pair
    return output


def _values(run: Path, name: str) -> dict[str, Any]:
    """Return what the template shows of a run; `name` is the id of its section."""
    metrics = read_metrics(run) if run.is_dir() else ([], [], [])
    updates, evaluations, events = ([row for row in map(_scalars, rows) if "update" in row] for rows in metrics)
    if not updates:
        remedy = "give the folder of a run that has trained (`fast_electra.run` in its config)"
        raise UserError(f"{run / 'metrics.jsonl'} is missing or has no update rows: {remedy}")
    unreadable: list[str] = []
    config, status, examples = (_read(run / f"{file}.json", unreadable) for file in ("config", "status", "examples"))
    leaves = dict(_leaves(config))
    objective = leaves.get("fast_electra.objective")
    if isinstance(leaves.get("fast_electra.task"), str):
        objective = "finetuning"
    if not isinstance(objective, str):
        objective = "mlm" if "accuracy" in updates[-1] else "rtd"
    return {
        "id": name,
        "path": run,
        "name": run.resolve().name,
        "objective": objective,
        "state": _scalars(status).get("state") or "unknown",
        "message": _scalars(status).get("message"),
        "last": updates[-1],
        "result": evaluations[-1] if evaluations else {},
        "training": _training(updates),
        "events": events,
        "panels": draw_panels(objective if objective in PANELS else "rtd", updates, evaluations, f"{name}-"),
        "examples": _scalars(examples),
        "confusions": _confusions(_read(run / "scores.json", unreadable)),
        "sequences": read_sequences(examples.get("sequences", []), unreadable),
        "settings": _settings(leaves),
        "config": config and json.dumps(config, indent=2, ensure_ascii=False),
        "unreadable": unreadable,
    }


def _read(path: Path, unreadable: list[str]) -> dict[str, Any]:
    """Return a file's JSON object, or {} if there is no file. A file that holds anything else is unreadable."""
    try:
        content = read_json(path)
        json.dumps(content, indent=2)  # raises RecursionError if it is nested too deeply to be shown
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        return content
    unreadable.append(path.name)
    return {}


def _scalars(row: Row) -> Row:
    """Return the entries of a JSON object that are text, null or finite numbers."""
    numbers = {key: value for key, value in row.items() if type(value) in (int, float) and abs(value) < LARGEST}
    return {key: value for key, value in row.items() if key in numbers or value is None or isinstance(value, str)}


def _confusions(scores: dict[str, Any]) -> list[tuple[str, list[str], list[list[int]]]]:
    """Return name, classes and confusion matrix of each labelled set of a task; [] where they have another shape."""
    labels, found = scores.get("labels"), scores.get("confusion")
    if not (isinstance(labels, list) and isinstance(found, dict)):
        return []

    def fits(matrix: Any) -> bool:
        rows = matrix if isinstance(matrix, list) and len(matrix) == len(labels) else [None]
        return all(
            isinstance(row, list) and len(row) == len(labels) and all(type(n) is int for n in row) for row in rows
        )

    return [(name, [str(label) for label in labels], matrix) for name, matrix in found.items() if fits(matrix)]


def _numbers(rows: list[Row], key: str) -> list[float]:
    return [row[key] for row in rows if isinstance(row.get(key), int | float)]


def _training(updates: list[Row]) -> str:
    """Return a line about the training: medians of its last rows, and what it has cost so far."""
    last, facts = updates[-TRAINING_ROWS:], []
    for key, name, form, _ in (*SHOWN, ("tokens_per_second", "tokens/s", "{:,.0f}", 0)):
        if numbers := _numbers(last, key):
            facts.append(f"{name} {form.format(median(numbers))}")
    line = f"Training (median of the last {len(last)} updates): {', '.join(facts)}."
    timed = [row for row in updates if _numbers([row], "tokens") and any(_numbers([row], "tokens_per_second"))]
    seconds = sum(row["tokens"] / row["tokens_per_second"] for row in timed)
    if not 0 < seconds < LARGEST:
        return line
    return f"{line} So far {sum(_numbers(updates, 'tokens')):,} tokens in {duration(seconds)} of updates."


def _settings(leaves: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return our settings by the object that holds them ("run" for the uppermost), then DeepSpeed's main ones."""
    groups: dict[str, dict[str, Any]] = {}
    for path in leaves:
        section, _, setting = path.partition(".")
        group, _, name = setting.rpartition(".")
        if section == "fast_electra":
            groups.setdefault(group or "run", {})[name or section] = leaves[path]
    main = {key: leaves[f"deepspeed.{key}"] for key in DEEPSPEED_SETTINGS if f"deepspeed.{key}" in leaves}
    return groups | {"deepspeed": main}


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of each leaf that has a value, those of a level before those of lower levels."""
    for key, value in sorted(tree.items(), key=lambda item: isinstance(item[1], dict)):
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:
            yield prefix + key, value


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
