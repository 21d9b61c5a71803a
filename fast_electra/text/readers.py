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
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from fast_electra.settings import UserError
from fast_electra.text.streams import COMPRESSED, StreamError, chunks

SAMPLE = Path(__file__).parent / "sample" / "sample_corpus.jsonl.xz"
DEFAULT_MAX_DOCUMENT_BYTES = 16 * 2**20  # no book is longer, and a few of them in flight fit any memory
_EXCERPT = 200  # characters of a rejected document that are kept
_EXCERPT_BYTES = 4 * _EXCERPT  # enough bytes for them


class Document(NamedTuple):
    """One document. Its source is `file:line` of its first line, or `file:row` in parquet, both counted from 1."""

    text: str
    source: str


class Rejected(NamedTuple):
    """Something that cannot be used: where it is, why (one of a few fixed phrases), and how it begins."""

    source: str
    reason: str
    excerpt: str


def expand(inputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the files that the names mean, each once, in a fixed order.

    A name is a file, a folder, a glob, or `sample` for the corpus that ships.

    Raises:
        UserError: a name matches nothing, cannot be read, or is of an unknown kind; or a package is missing.
    """
    found: dict[Path, Path] = {}
    for path in chain.from_iterable(_matches(str(name)) for name in inputs):
        if not os.access(path, os.R_OK):
            raise UserError(f"cannot read {path}: permission denied; check the file's owner and mode")
        found.setdefault(path.resolve(), path)
    if not found:
        raise UserError("no input: name files, folders, globs, or `sample` for the corpus that ships")
    for suffix, package in ((".parquet", "pyarrow"), (".zst", "zstandard")):  # now, not hours into the build
        needed = any(suffix in (path.suffix, _format(path)) for path in found.values())
        if needed and importlib.util.find_spec(package) is None:
            raise UserError(f"reading {suffix} needs {package}: pip install {package}")
    return list(found.values())


def _matches(name: str) -> list[Path]:
    if name == "sample":
        return [SAMPLE]
    path, supported = Path(name), ", ".join(_FORMATS)
    if path.is_dir():
        every = sorted(file for file in path.rglob("*") if file.is_file())
        every = [file for file in every if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        files = [file for file in every if _format(file) in _FORMATS]
        if not files:
            raise UserError(f"no {supported} files under {name}")
        if skipped := [file.name for file in every if _format(file) not in _FORMATS]:
            print(f"{name}: {len(skipped)} files of other kinds left out: {', '.join(skipped[:5])}", file=sys.stderr)
        return files
    matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    files = [path] if path.exists() else [file for file in map(Path, matches) if file.is_file()]
    if not files:
        raise UserError(f"no file matches {name}: check the path, or quote the glob")
    for file in files:
        if _format(file) not in _FORMATS:
            raise UserError(f"{file}: unknown kind of file; supported: {supported}, each also .gz, .xz or .zst")
    return files


def _format(path: Path) -> str:
    """Return the suffix that names the format, below any suffix of compression."""
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def read_documents(
    files: Iterable[Path], field: str = "text", max_document_bytes: int = DEFAULT_MAX_DOCUMENT_BYTES
) -> Iterator[Document | Rejected]:
    """Yield what the files of `expand` hold, in order.

    `field` is the key (jsonl) or column (parquet) that holds the text. Documents of more than `max_document_bytes` are
    rejected, and never held in memory.
    """
    for path in files:
        seen = False
        for item in _FORMATS[_format(path)](path, field, max_document_bytes):
            seen = True
            yield _checked(item, max_document_bytes) if isinstance(item, Document) else item
        if not seen:
            yield Rejected(str(path), "empty file", "")


def _checked(document: Document, limit: int) -> Document | Rejected:
    """Return the document if its text has at most `limit` bytes and can be tokenised and decoded unchanged."""
    text, source = document
    if not text or text.isspace():
        return _rejected(source, "empty document", text)
    if "\0" in text:
        return _rejected(source, "NUL character", text)
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        return _rejected(source, "lone surrogate", text[:_EXCERPT].encode("utf-8", "surrogatepass"))
    return document if size <= limit else _rejected(source, "over the size limit", text)


def _rejected(source: str, reason: str, content: str | bytes) -> Rejected:
    """Reject content, which may not be text at all. Its beginning is kept in a form that can be printed."""
    if isinstance(content, bytes):
        content = content[:_EXCERPT_BYTES].decode("utf-8", "backslashreplace")
    return Rejected(source, reason, content[:_EXCERPT])


class _Lines(NamedTuple):
    """One line or several joined lines: the number of the first, their bytes, and the number of bytes in the file.

    Line ends are left out. Beyond the limit of bytes, `data` has only the first `_EXCERPT_BYTES` for certain.
    """

    number: int
    data: bytes
    size: int


def _lines(path: Path, limit: int) -> Iterator[_Lines | Rejected]:
    """Yield lines, never holding much more than `limit` bytes of one. A `Rejected` is last if the stream breaks."""
    number, data, size = 1, bytearray(), 0  # of the current line

    def line(rest: bytes) -> _Lines:
        whole = bytes(data) + rest
        if number == 1:
            whole = whole.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
        return _Lines(number, whole.removesuffix(b"\r"), size + len(rest))

    try:
        for chunk in chunks(path):
            *ended, rest = chunk.split(b"\n")
            for end in ended:
                yield line(end)
                number, data, size = number + 1, bytearray(), 0
            size += len(rest)
            data += rest
            if size > limit:
                del data[_EXCERPT_BYTES:]
    except StreamError as error:
        # The line that was cut short is not a line: it is reported together with the break.
        yield _rejected(f"{path}:{number}", error.reason, bytes(data) or str(error))
        return
    if size:
        yield line(b"")


def _decoded(lines: _Lines, path: Path, limit: int) -> Document | Rejected:
    """Return the lines as a document."""
    source = f"{path}:{lines.number}"
    if lines.size > limit:
        return _rejected(source, "over the size limit", lines.data)
    return _text(lines.data, source)


def _text(data: bytes, source: str) -> Document | Rejected:
    """Return the document whose UTF-8 is `data`."""
    try:
        return Document(data.decode(), source)
    except UnicodeDecodeError:
        return _rejected(source, "broken UTF-8", data)


def _value(value: Any, source: str, content: str) -> Document | Rejected:
    """Return the document whose text is the value of a field; `content` is what holds the field."""
    if isinstance(value, str):
        return Document(value, source)
    return _rejected(source, "no text field" if value is None else "text is not a string", content)


def _txt(path: Path, field: str, limit: int) -> Iterator[Document | Rejected]:
    """Yield documents that blank lines separate. A document keeps its inner line ends, as plain newlines."""
    number, data, size = 0, bytearray(), 0  # of the current document
    for line in chain(_lines(path, limit), [_Lines(0, b"", 0)]):  # a blank line ends the last document
        if isinstance(line, Rejected):
            # The document that was cut short is not a document either.
            yield _rejected(f"{path}:{number}", line.reason, bytes(data)) if data else line
            return
        if line.data.strip():
            if data:
                data += b"\n"
                size += 1
            else:
                number = line.number
            data += line.data
            size += line.size
            if size > limit:
                del data[_EXCERPT_BYTES:]
        elif data:
            yield _decoded(_Lines(number, bytes(data), size), path, limit)
            data, size = bytearray(), 0


def _jsonl(path: Path, field: str, limit: int) -> Iterator[Document | Rejected]:
    """Yield one document for each line. A line may be longer than its text, because of escapes and other fields."""
    line_limit = 2 * limit + 2**20
    for line in _lines(path, line_limit):
        if isinstance(line, Rejected):
            yield line
        elif line.data.strip() or line.size > line_limit:
            item = _decoded(line, path, line_limit)
            yield _json_document(item, field) if isinstance(item, Document) else item


def _json_document(line: Document, field: str) -> Document | Rejected:
    try:
        value = json.loads(line.text)
    except (ValueError, RecursionError):
        return _rejected(line.source, "malformed JSON", line.text)
    if not isinstance(value, dict):
        return _rejected(line.source, "not a JSON object", line.text)
    return _value(value.get(field), line.source, line.text)


def _parquet(path: Path, field: str, limit: int) -> Iterator[Document | Rejected]:
    """Yield one document for each row. A row group that cannot be read is rejected; those after it are still read."""
    import pyarrow as arrow
    from pyarrow import parquet

    broken = (arrow.ArrowException, OSError, ValueError)
    packed = path.suffix in COMPRESSED  # unpacked to a nameless file first, because parquet is read from its end
    with tempfile.TemporaryFile() if packed else path.open("rb") as stream:
        try:
            if packed:
                stream.writelines(chunks(path))
                stream.seek(0)
        except StreamError as error:
            yield _rejected(str(path), error.reason, str(error))
            return
        try:
            # By default pyarrow reads a whole row group ahead, and that may be the whole file.
            file = parquet.ParquetFile(stream, buffer_size=2**20, pre_buffer=False)
        except broken as error:
            yield _rejected(str(path), "unreadable parquet", str(error))
            return
        if field not in file.schema_arrow.names:
            columns = ", ".join(file.schema_arrow.names)
            yield _rejected(str(path), "no text field", f"{file.metadata.num_rows} rows; columns: {columns}")
            return
        row = 1
        for group in range(file.num_row_groups):
            next_row = row + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=[field]):
                    yield from _cells(batch.column(0), path, row)
                    row += batch.num_rows
            except broken as error:
                yield _rejected(f"{path}:{row}", "unreadable parquet", f"rows {row} to {next_row - 1}: {error}")
            row = next_row


def _cells(column: Any, path: Path, row: int) -> Iterator[Document | Rejected]:
    """Yield the documents of a column. Strings are read as bytes, so that broken UTF-8 costs one row, not a batch."""
    import pyarrow as arrow

    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type):
        column = column.cast(arrow.large_binary())
    for number, value in enumerate(column.to_pylist(), start=row):
        source = f"{path}:{number}"
        yield _text(value, source) if isinstance(value, bytes) else _value(value, source, str(value))


_Reader = Callable[[Path, str, int], Iterator[Document | Rejected]]
_FORMATS: dict[str, _Reader] = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}
