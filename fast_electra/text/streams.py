"""The bytes of a file, unpacked in bounded chunks; and what a document is.

Everything before the first broken byte is still read.
"""

import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple

from fast_electra.settings import UserError

_CHUNK = 2**20
_ZSTD_CHUNK = 2**11  # compressed bytes: zstd can unpack 4 bytes to a block of 128 KiB, and takes no limit
EXCERPT = 200  # characters of a rejected document that are kept


class StreamError(Exception):
    """The rest of a file cannot be read.

    Attributes:
        reason: one of a few fixed phrases; the message says more.
    """

    def __init__(self, reason: str, message: object):
        """Say why, and what the library that reads the file says.

        Args:
            reason: the fixed phrase.
            message: the details.
        """
        super().__init__(str(message))
        self.reason = reason


def chunks(path: Path) -> Iterator[bytes]:
    """Yield the unpacked bytes of a file, in bounded chunks.

    Raises:
        StreamError: after the last good bytes, if the file is cut short, damaged or unreadable.
        UserError: a .zst needs a package that is not installed.
    """
    try:
        yield from OPENERS.get(path.suffix, _plain)(path)
    except EOFError as error:
        raise StreamError("truncated archive", error) from None
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise StreamError("damaged archive", error) from None
    except OSError as error:
        raise StreamError("unreadable file", error) from None


def _plain(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        yield from _read(stream)


def _gz(path: Path) -> Iterator[bytes]:
    with gzip.open(path) as stream:
        yield from _read(stream)


def _xz(path: Path) -> Iterator[bytes]:
    with lzma.open(path) as stream:
        yield from _read(stream)


def _read(stream: BufferedIOBase) -> Iterator[bytes]:
    # read1, because read() would lose the good bytes before a break.
    while chunk := stream.read1(_CHUNK):
        yield chunk


def _zst(path: Path) -> Iterator[bytes]:
    """Unpack frame by frame, because zstandard's own stream reader takes a truncated file for a complete one."""
    try:
        import zstandard
    except ImportError:
        raise UserError(f"{path}: reading .zst needs zstandard: pip install zstandard") from None
    with path.open("rb") as stream:
        frame, started = zstandard.ZstdDecompressor().decompressobj(), False
        while data := stream.read(_ZSTD_CHUNK):
            while data:
                try:
                    chunk, started = frame.decompress(data), True
                except zstandard.ZstdError as error:
                    raise StreamError("damaged archive", error) from None
                if chunk:
                    yield chunk
                data = b""
                if frame.eof:
                    data, started = frame.unused_data, False
                    frame = zstandard.ZstdDecompressor().decompressobj()
        if started:
            raise EOFError("the file ends within a zstd frame")


OPENERS: dict[str, Callable[[Path], Iterator[bytes]]] = {".gz": _gz, ".xz": _xz, ".zst": _zst}


class Document(NamedTuple):
    """One document. Its source is `file:line` of its first line, or `file:row` in parquet, both counted from 1."""

    text: str
    source: str


class Rejected(NamedTuple):
    """Something that cannot be used: where it is, why (one of a few fixed phrases), and how it begins."""

    source: str
    reason: str
    excerpt: str


def decoded(data: bytes, source: str) -> Document | Rejected:
    """Return the document whose UTF-8 is `data`."""
    try:
        return Document(data.decode(), source)
    except UnicodeDecodeError:
        return Rejected(source, "broken UTF-8", excerpt_of(data))


def of_value(value: Any, source: str, excerpt: str) -> Document | Rejected:
    """Return the document whose text is the value of a field; `excerpt` is the beginning of what holds the field."""
    if value is None:
        return Rejected(source, "no text field", excerpt)
    if not isinstance(value, str):
        return Rejected(source, "text is not a string", excerpt)
    return Document(value, source)


def checked(document: Document, limit: int) -> Document | Rejected:
    """Return the document if its text has at most `limit` bytes and can be tokenised and decoded unchanged."""
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


def excerpt_of(data: bytes) -> str:
    """Return the beginning of bytes that may be no text at all, as text that can be printed and encoded."""
    return data[: 4 * EXCERPT].decode("utf-8", "backslashreplace")[:EXCERPT]
