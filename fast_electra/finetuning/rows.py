"""The rows of a task's file: tab- or comma-separated text, JSON lines, or parquet, as values by their column's name.

A row that cannot be read is yielded too, with the reason. Nothing is dropped in silence.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from fast_electra.finetuning.tasks import Task
from fast_electra.settings import UserError
from fast_electra.streams import StreamError, chunks, kind, utf8

LONGEST = 200  # characters of a list of names in a message


class Row(NamedTuple):
    """A row of a file: the number of its line (of its row in parquet), and its values or why it has none."""

    number: int
    values: dict[str, Any] | str


def names_of(task: Task, column: str) -> list[str]:
    """Return the names under which a file may have a column of the task, the task's own first."""
    return [column, *(alias for alias, meant in task.aliases.items() if meant == column)]


def read_rows(path: Path, task: Task, labelled: bool) -> Iterator[Row]:
    """Return the rows of a file, in order.

    Args:
        path: the file; its suffix names the format.
        task: says which columns the file must have.
        labelled: whether the label must be among them.

    Raises:
        UserError: the file as a whole cannot be read, or lacks a column.
    """
    return FORMATS[kind(path)](path, task, labelled)


def _text(path: Path) -> str:
    """Return the text of a file, unpacked, with plain line ends. Broken bytes become lone surrogates."""
    try:
        text = b"".join(utf8(chunks(path), 0)).decode("utf-8", "surrogateescape")
    except StreamError as error:
        remedy = "fetch the file again, or save it as UTF-8"
        raise UserError(f"{path} cannot be read ({error.reason}: {error}); {remedy}") from None
    # A carriage return alone ended lines on old Macs. In other files it is a stray one within a text.
    text = text.replace("\r\n", "\n").replace("\r", " " if "\n" in text else "\n")
    if not text.strip():
        raise UserError(f"{path} is empty; fetch or write the file again")
    return text.rstrip("\n")


def _tsv(path: Path, task: Task, labelled: bool) -> Iterator[Row]:
    """Yield the rows of tab-separated text. A quote is a character like any other, as in GLUE's files."""
    lines = _text(path).split("\n")
    yield from _cells(path, task, labelled, ((number, line.split("\t")) for number, line in enumerate(lines, 1)))


def _csv(path: Path, task: Task, labelled: bool) -> Iterator[Row]:
    """Yield the rows of comma-separated text, in which a text may be in quotes and have line ends."""
    yield from _cells(path, task, labelled, _records(path))


def _records(path: Path) -> Iterator[tuple[int, list[str] | str]]:
    csv.field_size_limit(sys.maxsize)  # of this process; the default refuses texts over 131,072 characters
    reader = csv.reader(StringIO(_text(path), newline="\n"), strict=True)
    while True:
        first = reader.line_num + 1
        try:
            yield first, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error):
                raise UserError(f"{path}:{first}: a quote opens here and is never closed; close or double it") from None
            for number in range(first, reader.line_num + 1):
                yield number, f"the quotes do not match ({error})"


def _cells(path: Path, task: Task, labelled: bool, records: Iterator[tuple[int, list[str] | str]]) -> Iterator[Row]:
    """Yield rows from records of cells. The first one has the names of the columns, or `task.header` is used."""
    first, cells = next(records)
    columns = [name.strip() for name in cells] if isinstance(cells, list) else []
    if task.header and not all(set(names_of(task, field)) & set(columns) for field in task.fields):
        columns = list(task.header)
        yield _row(first, cells, columns)
    _check_columns(path, task, labelled, columns)
    for number, cells in records:
        yield _row(number, cells, columns)


def _check_columns(path: Path, task: Task, labelled: bool, columns: list[str]) -> None:
    for column in (*task.fields, task.label):
        found = [name for name in columns if name in names_of(task, column)]
        if not found and (labelled or column != task.label):
            raise UserError(f"{path} has no column {column!r}, only {shown(columns)}; rename one or correct the task")
        if len(set(found)) < len(found):
            raise UserError(f"{path} has two columns {found[0]!r}; rename one of them")


def shown(names: Iterable[str]) -> str:
    """Return names as a message has them: quoted, on one line, and not too long."""
    text = ", ".join(map(repr, names))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _row(number: int, cells: list[str] | str, columns: list[str]) -> Row:
    if isinstance(cells, str):
        return Row(number, cells)
    if len(cells) != len(columns):
        return Row(number, f"the number of columns is {len(cells)}, not {len(columns)}" if any(cells) else "is blank")
    return Row(number, dict(zip(columns, cells, strict=True)))


def _json_lines(path: Path, task: Task, labelled: bool) -> Iterator[Row]:
    """Yield the rows of JSON lines, one object each."""
    for number, line in enumerate(_text(path).split("\n"), 1):
        if number == 1 and line.lstrip().startswith("["):
            raise UserError(f"{path} is one JSON array; write one object a line: jq -c '.[]'")
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            yield Row(number, "is no JSON" if line.strip() else "is blank")
            continue
        yield Row(number, value if isinstance(value, dict) else "is no JSON object")


def _parquet(path: Path, task: Task, labelled: bool) -> Iterator[Row]:
    """Yield the rows of a parquet file. Strings are read as bytes, so that broken UTF-8 costs one row only."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise UserError("reading parquet needs pyarrow: pip install 'fast_electra[parquet]'") from None
    wanted = {name for column in (*task.fields, task.label, *IDS) for name in names_of(task, column)}
    try:
        file = parquet.ParquetFile(path)
        _check_columns(path, task, labelled, file.schema_arrow.names)
        number = 1
        for batch in file.iter_batches(columns=[name for name in file.schema_arrow.names if name in wanted]):
            columns = [_values(arrow, column) for column in batch.columns]
            for values in zip(*columns, strict=True):
                yield Row(number, dict(zip(batch.schema.names, values, strict=True)))
                number += 1
    except UserError:
        raise
    except (arrow.ArrowException, OSError, ValueError) as error:
        reason = "".join(character if character.isprintable() else " " for character in str(error)).strip()
        raise UserError(f"{path} is no readable parquet file ({reason}); fetch or write the file again") from None


def _values(arrow: Any, column: Any) -> list[Any]:
    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type):
        values = column.cast(arrow.large_binary()).to_pylist()
        return [value if value is None else value.decode("utf-8", "surrogateescape") for value in values]
    return list(column.to_pylist())


IDS = ("index", "id", "idx")  # columns that name a row
FORMATS: dict[str, Callable[[Path, Task, bool], Iterator[Row]]] = {
    ".tsv": _tsv,
    ".txt": _tsv,
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_lines,
    ".parquet": _parquet,
}
