"""Files of text to documents, one at a time, in constant memory.

Nothing is dropped in silence: what cannot be used is yielded as `Rejected`, with its place and the reason.
"""

import glob
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

from fast_electra.settings import UserError
from fast_electra.text.streams import (
    EXCERPT,
    OPENERS,
    Document,
    Rejected,
    StreamError,
    checked,
    chunks,
    decoded,
    excerpt_of,
    of_value,
)

SAMPLE = Path(__file__).parent / "sample" / "sample_corpus.jsonl.xz"
DEFAULT_MAX_DOCUMENT_BYTES = 16 * 2**20  # no book is longer, and a few of them in flight fit any memory


def expand(inputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the files that are meant by names, each once, in a fixed order.

    Args:
        inputs: files, folders (searched recursively), globs, or the alias `sample`.

    Raises:
        UserError: a name matches nothing, cannot be read, or is of an unknown kind; or a package is missing.
    """
    found: dict[Path, Path] = {}
    for name in map(str, inputs):
        for path in _matches(name):
            if not os.access(path, os.R_OK):
                raise UserError(f"cannot read {path}: permission denied; check the file's owner and mode")
            found.setdefault(path.resolve(), path)
    for suffix, package in ((".parquet", "pyarrow"), (".zst", "zstandard")):  # now, not hours into the build
        if any(path.name.endswith(suffix) for path in found.values()) and importlib.util.find_spec(package) is None:
            raise UserError(f"reading {suffix} needs {package}: pip install {package}")
    if not found:
        raise UserError("no input: name files, folders, globs, or `sample` for the corpus that ships")
    return list(found.values())


def _matches(name: str) -> list[Path]:
    if name == "sample":
        return [SAMPLE]
    path, supported = Path(name), ", ".join(_FORMATS)
    if path.is_dir():
        every = sorted(file for file in path.rglob("*") if file.is_file())
        every = [file for file in every if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        files = [file for file in every if _format(file) is not None]
        if not files:
            raise UserError(f"no {supported} files under {name}")
        if skipped := [file.name for file in every if _format(file) is None]:
            print(f"{name}: {len(skipped)} files of other kinds left out: {', '.join(skipped[:5])}", file=sys.stderr)
        return files
    matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    files = [path] if path.exists() else [file for file in map(Path, matches) if file.is_file()]
    if not files:
        raise UserError(f"no file matches {name}: check the path, or quote the glob")
    for file in files:
        if _format(file) is None:
            raise UserError(f"{file}: unknown kind of file; supported: {supported}, each also .gz, .xz or .zst")
    return files


def _format(path: Path) -> str | None:
    """Return the suffix that names the format, below any suffix of compression; None if it is unknown."""
    suffix = Path(path.stem).suffix if path.suffix in OPENERS else path.suffix
    return suffix if suffix in _FORMATS else None


def read_documents(
    files: Iterable[Path], field: str = "text", max_document_bytes: int = DEFAULT_MAX_DOCUMENT_BYTES
) -> Iterator[Document | Rejected]:
    """Yield what the files hold, in order.

    Args:
        files: as `expand` returns them.
        field: the key (jsonl) or column (parquet) that holds the text.
        max_document_bytes: larger documents are rejected, and never held in memory.
    """
    for path in files:
        suffix = _format(path)
        assert suffix is not None, path
        seen = False
        for item in _FORMATS[suffix](path, field, max_document_bytes):
            seen = True
            yield checked(item, max_document_bytes) if isinstance(item, Document) else item
        if not seen:
            yield Rejected(str(path), "empty file", "")


class _Line(NamedTuple):
    number: int
    data: bytes  # without its line end; only the beginning of a line over the limit
    size: int  # bytes of the whole line


def _lines(path: Path, limit: int) -> Iterator[_Line | Rejected]:
    """Yield the lines of a file, never holding much more than `limit` bytes of one.

    If the stream breaks, the last item is a `Rejected`.
    """
    number, size = 1, 0
    held: list[bytes] = []  # parts of the current line
    try:
        for chunk in chunks(path):
            *ended, rest = chunk.split(b"\n")
            for part in ended:
                yield _line(number, [*held, part], size + len(part), limit)
                number, held, size = number + 1, [], 0
            size += len(rest)
            # A line over the limit is reported by its beginning alone, so the rest of it is let go.
            held = [*held, rest] if size <= limit else [b"".join([*held, rest])[: 4 * EXCERPT]]
    except StreamError as error:
        # The line that was cut short is not a line: it is reported together with the break.
        yield Rejected(f"{path}:{number}", error.reason, excerpt_of(b"".join(held)) or str(error)[:EXCERPT])
        return
    if size:
        yield _line(number, held, size, limit)


def _line(number: int, parts: list[bytes], size: int, limit: int) -> _Line:
    data = b"".join(parts) if size <= limit else b"".join(parts[:2])[: 4 * EXCERPT]
    if number == 1:
        data = data.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
    return _Line(number, data.removesuffix(b"\r"), size)


def _txt(path: Path, field: str, limit: int) -> Iterator[Document | Rejected]:
    """Yield documents that blank lines separate. A document keeps its inner line ends, as plain newlines."""
    start, size = 0, 0
    parts: list[bytes] = []  # lines of the current document
    for line in _lines(path, limit):
        if isinstance(line, Rejected) or not line.data.strip():
            if parts:
                # The document that a broken stream cut short is not a document either.
                if isinstance(line, Rejected):
                    line = line._replace(source=f"{path}:{start}", excerpt=excerpt_of(b"\n".join(parts)))
                else:
                    yield _txt_document(f"{path}:{start}", parts, size, limit)
                parts, size = [], 0
            if isinstance(line, Rejected):
                yield line
            continue
        if not parts:
            start = line.number
        size += line.size + 1
        if size - 1 <= limit:
            parts.append(line.data)
        else:
            parts = [b"\n".join([*parts, line.data])[: 4 * EXCERPT]]
    if parts:
        yield _txt_document(f"{path}:{start}", parts, size, limit)


def _txt_document(source: str, parts: list[bytes], size: int, limit: int) -> Document | Rejected:
    if size - 1 > limit:
        return Rejected(source, "over the size limit", excerpt_of(b"\n".join(parts)))
    return decoded(b"\n".join(parts), source)


def _jsonl(path: Path, field: str, limit: int) -> Iterator[Document | Rejected]:
    """Yield one document for each line. A line may be longer than its text, because of escapes and other fields."""
    line_limit = 2 * limit + 2**20
    for line in _lines(path, line_limit):
        if isinstance(line, Rejected):
            yield line
        elif line.size > line_limit:
            yield Rejected(f"{path}:{line.number}", "over the size limit", excerpt_of(line.data))
        elif line.data.strip():
            item = decoded(line.data, f"{path}:{line.number}")
            yield _json_document(item, field) if isinstance(item, Document) else item


def _json_document(line: Document, field: str) -> Document | Rejected:
    excerpt = line.text[:EXCERPT]
    try:
        value = json.loads(line.text)
    except (ValueError, RecursionError):
        return Rejected(line.source, "malformed JSON", excerpt)
    if not isinstance(value, dict):
        return Rejected(line.source, "not a JSON object", excerpt)
    return of_value(value.get(field), line.source, excerpt)


def _parquet(path: Path, field: str, limit: int) -> Iterator[Document | Rejected]:
    """Yield one document for each row. A row group that cannot be read is rejected; those after it are still read."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: reading parquet needs pyarrow: pip install pyarrow") from None
    broken = (arrow.ArrowException, OSError, ValueError)
    try:
        stream = _seekable(path)
    except StreamError as error:
        yield Rejected(str(path), error.reason, str(error)[:EXCERPT])
        return
    try:
        # By default pyarrow reads a whole row group ahead, and that may be the whole file.
        file = parquet.ParquetFile(stream, buffer_size=2**20, pre_buffer=False)
    except broken as error:
        stream.close()
        yield Rejected(str(path), "unreadable parquet", str(error)[:EXCERPT])
        return
    with stream, file:
        if field not in file.schema_arrow.names:
            columns = ", ".join(file.schema_arrow.names)
            yield Rejected(str(path), "no text field", f"{file.metadata.num_rows} rows; columns: {columns}"[:EXCERPT])
            return
        row = 1
        for group in range(file.num_row_groups):
            next_row = row + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=[field]):
                    yield from _cells(batch.column(0), path, row)
                    row += batch.num_rows
            except broken as error:
                excerpt = f"rows {row} to {next_row - 1}: {error}"
                yield Rejected(f"{path}:{row}", "unreadable parquet", excerpt[:EXCERPT])
            row = next_row


def _seekable(path: Path) -> IO[bytes]:
    """Open a file for reading from its end. If it is compressed, unpack it to a nameless temporary file first."""
    if path.suffix not in OPENERS:
        return path.open("rb")
    with ExitStack() as stack:
        unpacked = stack.enter_context(tempfile.TemporaryFile())
        for chunk in chunks(path):
            unpacked.write(chunk)
        unpacked.seek(0)
        stack.pop_all()
    return unpacked


def _cells(column: Any, path: Path, row: int) -> Iterator[Document | Rejected]:
    """Yield the documents of a column. Strings are read as bytes, so that broken UTF-8 costs one row, not a batch."""
    import pyarrow as arrow

    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type):
        column = column.cast(arrow.large_binary())
    for number, value in enumerate(column.to_pylist(), start=row):
        source = f"{path}:{number}"
        yield decoded(value, source) if isinstance(value, bytes) else of_value(value, source, str(value)[:EXCERPT])


_FORMATS: dict[str, Callable[[Path, str, int], Iterator[Document | Rejected]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
