"""Files of text to documents, one at a time, in constant memory.

Nothing is dropped in silence: what cannot be used is yielded as `Rejected`, with its place and the reason.
"""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from fast_electra.streams import StreamError, chunks, kind, utf8
from fast_electra.text.documents import (
    EXCERPT_BYTES,
    Document,
    Rejected,
    decoded,
    find,
    missing,
    of_value,
    reject,
)
from fast_electra.text.inputs import DEFAULT_MAX_DOCUMENT_BYTES, JSON_LINES
from fast_electra.text.rows import read_rows

_SPACES = [character.encode() for character in map(chr, range(0x3001)) if character.isspace()]
_BLANK = re.compile(b"(?:%b)*" % b"|".join(map(re.escape, _SPACES)))
_ONE_VALUE = re.compile(r"\s*([\[{]\s*$|\[\s*\{)")  # begins JSON that is not one object a line
_ONE_VALUE_HINT = "if the file is one JSON array, write one object a line: jq -c '.[]'"
_LARGER = "raise --max-document-bytes"


def read_documents(
    files: Iterable[Path],
    field: str = "text",
    max_document_bytes: int = DEFAULT_MAX_DOCUMENT_BYTES,
    document_per_line: bool = False,
) -> Iterator[Document | Rejected]:
    """Yield what the files of `expand` hold, in order.

    Args:
        files: the files.
        field: the key (JSON lines) or column (parquet) that holds the text; `a.b` may be the field b in a.
        max_document_bytes: larger documents are rejected, and never held in memory.
        document_per_line: each line of a .txt file is a document; if False, blank lines separate them.
    """
    for path in files:
        if kind(path) == ".parquet":
            items = read_rows(path, field)
        elif kind(path) in JSON_LINES:
            items = _json_lines(path, field, max_document_bytes)
        else:
            items = _txt(path, max_document_bytes, document_per_line)
        seen = False
        try:
            for item in items:
                seen = True
                yield _checked(item, max_document_bytes) if isinstance(item, Document) else item
        except OSError as error:  # it was there a moment ago
            yield reject(str(path), "unreadable file", str(error))
            continue
        if not seen:
            yield reject(str(path), "empty file", "")


def _checked(document: Document, limit: int) -> Document | Rejected:
    """Return the document if its text has at most `limit` bytes and can be tokenised and decoded unchanged."""
    text, source = document
    if not text or text.isspace():
        return reject(source, "empty document", text)
    if nuls := text.count("\0"):
        unmarked = "UTF-16 without a byte order mark? convert it: iconv -f utf-16le -t utf-8"
        return reject(source, "NUL character", text, unmarked if nuls > len(text) // 3 else "")
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        return reject(source, "lone surrogate", text)
    return document if size <= limit else reject(source, "over the size limit", text, _LARGER)


class _Lines(NamedTuple):
    """One line or several joined lines: the number of the first, their bytes, and the number of bytes in the file.

    Line ends are left out. Beyond the limit of bytes, `data` has only the first `EXCERPT_BYTES` for certain.
    """

    number: int
    data: bytes
    size: int


def _lines(path: Path, limit: int) -> Iterator[_Lines | Rejected]:
    """Yield lines, never holding much more than `limit` bytes of one. A `Rejected` is last if the stream breaks."""
    number, data, size = 1, bytearray(), 0  # of the current line

    def line(rest: bytes) -> _Lines:
        return _Lines(number, (bytes(data) + rest).removesuffix(b"\r"), size + len(rest))

    try:
        for chunk in utf8(chunks(path), path.stat().st_size):
            *ended, rest = chunk.split(b"\n")
            for end in ended:
                yield line(end)
                number, data, size = number + 1, bytearray(), 0
            size += len(rest)
            data += rest
            if size > limit:
                del data[EXCERPT_BYTES:]
    except StreamError as error:
        # The line that was cut short is not a line: it is reported together with the break.
        lost = size + error.unread
        yield reject(f"{path}:{number}", error.reason, bytes(data) or str(error), error.hint, size=lost)
        return
    if size:
        yield line(b"")


def _within(lines: _Lines, path: Path, limit: int, hint: str) -> Document | Rejected:
    """Return the lines as a document, if they are not larger than the limit."""
    source = f"{path}:{lines.number}"
    if lines.size > limit:
        return reject(source, "over the size limit", lines.data, hint, size=lines.size)
    return decoded(lines.data, source)


def _txt(path: Path, limit: int, document_per_line: bool) -> Iterator[Document | Rejected]:
    """Yield documents that blank lines separate. A document keeps its inner line ends, as plain newlines."""
    hint = _LARGER if document_per_line else f"if each line is a document, use --document-per-line; if not, {_LARGER}"
    number, data, size = 0, bytearray(), 0  # of the current document
    for line in chain(_lines(path, limit), [_Lines(0, b"", 0)]):  # a blank line ends the last document
        if isinstance(line, Rejected):
            # The document that was cut short is not a document either.
            cut = reject(f"{path}:{number}", line.reason, bytes(data), line.hint, size=size + line.bytes)
            yield cut if data else line
            return
        blank = line.size <= limit and _BLANK.fullmatch(line.data)
        if not blank:
            if data:
                data += b"\n"
                size += 1
            else:
                number = line.number
            data += line.data
            size += line.size
            if size > limit:
                del data[EXCERPT_BYTES:]
        if data and (blank or document_per_line):
            yield _within(_Lines(number, bytes(data), size), path, limit, hint)
            data, size = bytearray(), 0


def _json_lines(path: Path, field: str, limit: int) -> Iterator[Document | Rejected]:
    """Yield one document for each line. A line may be longer than its text, because of escapes and other fields."""
    line_limit = 2 * limit + 2**20
    first = True
    for line in _lines(path, line_limit):
        if isinstance(line, Rejected):
            yield line
        elif line.size > line_limit or not _BLANK.fullmatch(line.data):
            one_value = _ONE_VALUE.match(line.data[:EXCERPT_BYTES].decode("utf-8", "replace")) is not None
            if first and one_value:  # and nothing of it could be read line by line
                size, hint = path.stat().st_size, _ONE_VALUE_HINT
                yield reject(f"{path}:{line.number}", "not one JSON object a line", line.data, hint, size=size)
                return
            first = False
            item = _within(line, path, line_limit, _LARGER)
            yield _json_document(item, field) if isinstance(item, Document) else item


def _json_document(line: Document, field: str) -> Document | Rejected:
    text, source = line.text.removeprefix("\ufeff"), line.source  # a byte order mark, where files were joined
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return reject(source, "malformed JSON", text)
    if not isinstance(value, dict):
        return reject(source, "not a JSON object", text)
    keys = find(value, field)
    if keys is None:
        return missing(source, field, value, text)
    for key in keys:
        value = value[key]
    return of_value(value, source, field, text)
