"""What comes out of a file: documents, and what cannot be used. How a field is found by its name."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

EXCERPT = 200  # characters of a rejected document that are kept
EXCERPT_BYTES = 4 * EXCERPT  # enough bytes for them
_NAMED, _DEPTH = 20, 4  # fields that a message names at most, and sections into which it looks


class Document(NamedTuple):
    """One document. Its source is `file:line` of its first line, or `file:row` in parquet, both counted from 1."""

    text: str
    source: str


class Rejected(NamedTuple):
    """What cannot be used: where it is, why (one of a few fixed phrases), how it begins, and how much is lost."""

    source: str
    reason: str
    excerpt: str
    documents: int = 1  # as far as known: a damaged archive counts as one
    bytes: int = 0  # of the file, as far as known
    hint: str = ""  # the likely cause, or the remedy


def reject(
    source: str, reason: str, content: str | bytes, hint: str = "", documents: int = 1, size: int | None = None
) -> Rejected:
    """Reject content, which may not be text at all. Its beginning is kept in a form that can be printed."""
    if size is None:
        size = len(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    if isinstance(content, bytes):
        content = content[:EXCERPT_BYTES].decode("utf-8", "backslashreplace")
    excerpt = content[:EXCERPT].encode("utf-8", "backslashreplace").decode()  # lone surrogates become longer
    return Rejected(source, reason, excerpt[:EXCERPT], documents, size, hint)


def decoded(data: bytes, source: str) -> Document | Rejected:
    """Return the document whose UTF-8 is `data`. Surrogates that are alone are named later, with the whole text."""
    try:
        return Document(data.decode("utf-8", "surrogatepass"), source)
    except UnicodeDecodeError:
        return reject(source, "broken UTF-8", data, "convert the file, e.g. iconv -f latin1 -t utf-8")


def of_value(value: Any, source: str, field: str, content: str) -> Document | Rejected:
    """Return the document whose text is the value of a field; `content` is what holds the field."""
    if isinstance(value, str):
        return Document(value, source)
    if value is None:
        return reject(source, f"no {field} field", content, "it is null there")
    return reject(source, f"{field} is not a string", content)


def printable(text: object) -> str:
    """Return a name as one line of text that has a UTF-8: all else is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


class Losses:
    """All that was rejected: documents and bytes by reason, and the first of each."""

    def __init__(self) -> None:
        self.documents: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._first: dict[str, Rejected] = {}

    def add(self, item: Rejected) -> None:
        """Count one more."""
        self.documents[item.reason] += item.documents
        self._bytes[item.reason] += item.bytes
        first = self._first.setdefault(item.reason, item)
        if item.hint and not first.hint:
            self._first[item.reason] = item

    def lines(self) -> list[str]:
        """Return a line for each reason: what is lost, the first of it, and the remedy."""
        firsts = ((count, self._first[reason]) for reason, count in sorted(self.documents.items()))
        return [
            f"{count:,} x {first.reason}, {self._bytes[first.reason]:,} bytes: {_place(first)}"
            for count, first in firsts
        ]

    def summary(self) -> str:
        """Return one line: all reasons with their counts, and the place and the remedy of the most frequent one."""
        counts = ", ".join(f"{count:,} x {reason}" for reason, count in sorted(self.documents.items()))
        first = self._first[self.documents.most_common(1)[0][0]]
        return f"{counts}, {self._bytes.total():,} bytes in all; see {_place(first)}"


def _place(first: Rejected) -> str:
    return printable(first.source) + (f" ({first.hint})" if first.hint else "")


def find(section: Mapping[str, Any], name: str) -> list[str] | None:
    """Return the keys that lead to a field, or None. `a.b` is a key of that name, or else `b` in the section `a`."""
    if name in section:
        return [name]
    for dot in (position for position, character in enumerate(name) if character == "."):
        inner = section.get(name[:dot])
        if isinstance(inner, dict) and (keys := find(inner, name[dot + 1 :])):
            return [name[:dot], *keys]
    return None


def missing(source: str, field: str, section: Mapping[str, Any], content: str, **lost: int) -> Rejected:
    """Reject what has no such field; the hint names the fields that are there."""
    names = list(_names(section))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    shown = ", ".join(printable(name[:EXCERPT]) for name in names[:_NAMED])
    hint = f"--field can name one that is there: {shown}{more}" if names else "no field is there"
    return reject(source, f"no {field} field", content, hint, **lost)


def _names(section: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, dict) and value and depth < _DEPTH:
            yield from _names(value, f"{prefix}{key}.", depth + 1)
        else:
            yield prefix + key
