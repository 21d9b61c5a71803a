"""The data of a task: texts, labels and ids of each split, read from a folder in GLUE's layout or a similar one."""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fast_electra.finetuning.rows import FORMATS, IDS, names_of, read_rows, shown
from fast_electra.finetuning.tasks import Task
from fast_electra.settings import UserError
from fast_electra.streams import COMPRESSED, kind

SHOWN = 3  # malformed rows that a message names
ALLOWED, ALLOWED_SHARE = 10, 0.01  # malformed rows of a split: more than both are an error
LARGEST = 1e30  # a label of a regression is less: no float32 holds much larger ones
_ORIGINAL_MRPC = "msr_paraphrase_train.txt"  # holds train and dev
_MRPC_DEV_IDS = ("dev_ids.tsv", "mrpc_dev_ids.tsv")
_PART = r"%s-\d+-of-\d+\.parquet"  # of a file that Hugging Face's copy has in parts
_BROKEN = re.compile("[\ud800-\udfff]")


@dataclass
class Table:
    """The rows of one split that can be used, and the places of those that cannot."""

    texts: list[tuple[str, ...]] = field(default_factory=list)  # one or two texts a row
    labels: np.ndarray[Any, np.dtype[np.float64]] = field(default_factory=lambda: np.zeros(0))  # [n], or [0] if unknown
    ids: list[str] = field(default_factory=list)  # the index that a row has in its file, or its number from 0
    skipped: list[str] = field(default_factory=list)  # malformed rows: "FILE:LINE: reason"
    source: str = ""  # names of the files

    def __len__(self) -> int:
        return len(self.texts)


class _Malformed(Exception):
    """Why a row cannot be used."""


def read_data(task: Task, folder: Path) -> dict[str, Table]:
    """Read all splits of a task: train, the dev sets (dev, or dev_matched and dev_mismatched), and test sets if there.

    The files are in the folder, or in the one in it that is named after the task.

    Raises:
        UserError: a file is missing or cannot be read, or a split has no usable row or too many malformed ones.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; it must hold {_layout(task)}")
    places = (folder, folder / task.shown, folder / task.name)
    place = next((place for place in places if _find(place, task.files["train"])), folder)
    tables = {}
    for split, names in task.files.items():
        if paths := _find(place, names):
            tables[split] = _read(task, split, paths)
        elif not split.startswith("test"):
            raise UserError(f"{place} has no file of the {split} set: it must hold {_layout(task)}")
    return tables


def summary(data: dict[str, Table]) -> list[str]:
    """Return a line for each split: its files, its rows, and how many rows were skipped, with the first places."""
    lines = []
    for split, table in data.items():
        unlabelled = "" if len(table.labels) else " without labels"
        lines.append(f"{split}: {len(table):,} rows{unlabelled} from {table.source}{_skipped(table.skipped)}")
    return lines


def _skipped(places: list[str]) -> str:
    if not places:
        return ""
    more = f"; and {len(places) - SHOWN:,} more" if len(places) > SHOWN else ""
    return f"; {len(places):,} malformed and skipped: {'; '.join(places[:SHOWN])}{more}"


def _layout(task: Task) -> str:
    """Return the names of all files that are looked for."""
    files = ", ".join(
        f"{' or '.join(names)}{' (optional)' if split.startswith('test') else ''}"
        for split, names in task.files.items()
    )
    return (
        f"{files}; each with {', '.join(FORMATS)} (text also packed: {', '.join(COMPRESSED)}), "
        "or as NAME-00000-of-00001.parquet"
    )


def _find(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Return the files of a split: usually one; parts of a parquet file; none. The first name that is there counts.

    Raises:
        UserError: there are two files of one name, or a part is missing.
    """
    for name in names:
        found = [f"{folder / name}{end}{pack}" for end in ("", *FORMATS) for pack in ("", *COMPRESSED)]
        files = [Path(file) for file in found if kind(Path(file)) in FORMATS and os.path.isfile(file)]  # noqa: PTH113
        parts = [path for path in folder.glob("*.parquet") if re.fullmatch(_PART % re.escape(name), path.name)]
        if len(files) + bool(parts) > 1:
            raise UserError(f"{folder} has {' and '.join(path.name for path in (*files, *parts))}: keep one of them")
        if parts and len(parts) != int(parts[0].stem.split("-")[-1]):
            raise UserError(f"{folder} has only {len(parts)} parts like {parts[0].name}: fetch the others")
        if files or parts:
            return files or sorted(parts)
    return []


def _read(task: Task, split: str, paths: list[Path]) -> Table:
    """Read the files of one split."""
    table, labels = Table(source=" ".join(path.name for path in paths)), []
    test = split.startswith("test")
    keep = _mrpc_part(paths[0], split) if paths[0].name == _ORIGINAL_MRPC else None
    for path in paths:
        for number, values in read_rows(path, task, labelled=not test):
            if keep and isinstance(values, dict) and not keep(values):
                continue
            try:
                if isinstance(values, str):
                    raise _Malformed(values)
                label = _label(task, values, optional=test)
                texts = tuple(_text(task, values, name, empty=label is None) for name in task.fields)
            except _Malformed as error:
                table.skipped.append(f"{path}:{number}: {error}")
                continue
            table.texts.append(texts)
            labels.append(label)
            number_from_0 = len(table.ids) + len(table.skipped)
            index = next((values[name] for name in IDS if values.get(name) is not None), number_from_0)
            table.ids.append(" ".join(str(index).split()))
    known = [label for label in labels if label is not None]
    if known and len(known) < len(labels):
        missing = len(labels) - len(known)
        raise UserError(f"{paths[0]} has {len(known):,} rows with a label and {missing:,} without; label all or none")
    table.labels = np.array(known, dtype=np.float64)
    rows, bad = len(table) + len(table.skipped), len(table.skipped)
    if not rows:
        raise UserError(f"{' '.join(map(str, paths))} has no rows for the {split} set; fetch or write the file again")
    if bad == rows or bad > max(ALLOWED, ALLOWED_SHARE * rows):
        which = f"{bad:,} of {rows:,} rows of the {split} set are malformed, the first is {table.skipped[0]}"
        raise UserError(f"{which}; correct these rows, or the columns and labels that the task names")
    return table


def _mrpc_part(path: Path, split: str) -> Callable[[dict[str, Any]], bool]:
    """Return the choice of a split's rows of MRPC's original training file. A list of ids names those of dev."""
    ids = next((path.with_name(name) for name in _MRPC_DEV_IDS if path.with_name(name).is_file()), None)
    if ids is None:
        raise UserError(
            f"{path} holds train and dev: the file {' or '.join(_MRPC_DEV_IDS)} beside it must name the dev set"
        )
    lines = ids.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    dev = {tuple(line.split()) for line in lines}
    return lambda values: ((values.get("#1 ID"), values.get("#2 ID")) in dev) == (split == "dev")


def _text(task: Task, values: dict[str, Any], column: str, empty: bool) -> str:
    text = _value(task, values, column)
    if not isinstance(text, str):
        raise _Malformed(f"{column} is no text")
    text = text.strip()
    if not text and not empty:
        raise _Malformed(f"{column} is empty")
    if "\0" in text:
        raise _Malformed(f"{column} has a NUL character")
    if not text.isascii() and _BROKEN.search(text):
        raise _Malformed(f"{column} is not UTF-8 or has a lone surrogate")
    return text


def _value(task: Task, values: dict[str, Any], column: str) -> Any:
    for name in names_of(task, column):
        if name in values:
            return values[name]
    raise _Malformed(f"has no {column!r}, only {shown(values)}")


def _label(task: Task, values: dict[str, Any], optional: bool) -> float | None:
    """Return the number of the class, or the value. None is for a row of a test set without a label."""
    if optional and not any(name in values for name in names_of(task, task.label)):
        return None
    value = _value(task, values, task.label)
    label = _number(task, value) if task.regression else _class(task, value)
    if label is None and not optional:
        raise _Malformed(f"{task.label} is empty or -1")
    return label


def _class(task: Task, value: Any) -> float | None:
    """Return the number of a class from its name, or from its number if no class is named by a number."""
    if isinstance(value, bool):
        value = str(value).lower()  # as JSON has it
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as pandas writes a column with gaps
    text = "" if value is None else str(value).strip()
    if text in task.labels:
        return float(task.labels.index(text))
    if text in ("", "-1"):
        return None
    named = not any(label.isdecimal() for label in task.labels)
    if named and text in map(str, range(len(task.labels))):
        return float(text)
    raise _Malformed(f"{task.label} {text[:40]!r} is none of {shown(task.labels)}")


def _number(task: Task, value: Any) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    low, high = task.range or (-math.inf, math.inf)
    if number == -1 and low > -1:
        return None  # how Hugging Face's copy of STS-B says that there is none
    if not (abs(number) < LARGEST and low <= number <= high):
        reach = f"from {low:g} to {high:g}" if task.range else f"below {LARGEST:g}"
        raise _Malformed(f"{task.label} {str(value)[:40]!r} is no number {reach}")
    return number
