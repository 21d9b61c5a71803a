"""The bytes of a file, unpacked on the way, in bounded chunks; all that comes before a break is given out first."""

import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple

from fast_electra.settings import UserError

_CHUNK = 2**20
_ZSTD_CHUNK = 2**11  # compressed bytes: zstd unpacks a block of 4 bytes to 128 KiB, and cannot be told to stop


class StreamError(Exception):
    """The rest of a file cannot be read; `reason` is a fixed phrase, the message says more."""

    def __init__(self, reason: str, message: object):
        super().__init__(str(message))
        self.reason = reason


def chunks(path: Path) -> Iterator[bytes]:
    """Yields the unpacked bytes of `path`, never many at once.

    Raises:
        StreamError: after the last good bytes, when the file is cut short, damaged or unreadable.
        UserError: when a .zst needs a package that is not installed.
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
    # read1, for read() would lose the good bytes before a break.
    while chunk := stream.read1(_CHUNK):
        yield chunk


def _zst(path: Path) -> Iterator[bytes]:
    """Frame by frame: zstandard's own stream reader takes a file that is cut short for a complete one."""
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
