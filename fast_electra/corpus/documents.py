"""What a reader yields: a document, or what was rejected and why; and the checks between them."""

from typing import Any, NamedTuple

EXCERPT = 200  # characters of a rejected document that are kept


class Document(NamedTuple):
    """One document; `source` is `file:line` of its first line (`file:row` in parquet), both counted from 1."""

    text: str
    source: str


class Rejected(NamedTuple):
    """What could not be used: where it stood, why (one of a few fixed phrases), and how it begins."""

    source: str
    reason: str
    excerpt: str


def decoded(data: bytes, source: str) -> Document | Rejected:
    """The document whose UTF-8 is `data`."""
    try:
        return Document(data.decode(), source)
    except UnicodeDecodeError:
        return Rejected(source, "broken UTF-8", excerpt_of(data))


def excerpt_of(data: bytes) -> str:
    """The beginning of what may be no text at all, fit to be printed and written as UTF-8."""
    return data[: 4 * EXCERPT].decode("utf-8", "backslashreplace")[:EXCERPT]


def of_value(text: Any, source: str, excerpt: str) -> Document | Rejected:
    """The document whose text stood in a field; `excerpt` is what stood around it."""
    if text is None:
        return Rejected(source, "no text field", excerpt)
    if not isinstance(text, str):
        return Rejected(source, "text is not a string", excerpt)
    return Document(text, source)


def checked(document: Document, limit: int) -> Document | Rejected:
    """The document, or the reason why its text cannot be tokenised and given back unchanged."""
    text, source = document
    if not text or text.isspace():
        return Rejected(source, "empty document", text[:EXCERPT])
    if "\0" in text:
        return Rejected(source, "NUL character", text[:EXCERPT])
    size = len(text)
    if not text.isascii():
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            return Rejected(source, "lone surrogate", excerpt_of(text[:EXCERPT].encode("utf-8", "surrogatepass")))
    return document if size <= limit else Rejected(source, "over the size limit", text[:EXCERPT])
