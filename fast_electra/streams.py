"""The bytes of a file, unpacked in bounded chunks, and as UTF-8. What comes before the first broken byte is read."""

import bz2
import codecs
import lzma
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from fast_electra.settings import UserError

_CHUNK = 2**20
_PACKED_CHUNK = 2**11  # packed bytes: zstd can unpack 4 bytes to a block of 128 KiB, and takes no limit
_ZSTD_WINDOW = 2**31  # the largest of `zstd --long`, which public dumps use; a frame takes no more memory than it needs


class StreamError(Exception):
    """The rest of a file cannot be read. `reason` is one of a few fixed phrases, and the message says more.

    `unread` is the number of bytes on disk that are left, as far as known; what a truncated file lacks is not.
    """

    def __init__(self, reason: str, message: object, hint: str, unread: int = 0):
        super().__init__(str(message))
        self.reason, self.hint, self.unread = reason, hint, unread


def _zstd() -> Any:
    try:
        import zstandard
    except ImportError:
        raise UserError("reading .zst needs zstandard: pip install 'fast_electra[zstd]'") from None
    return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()


# Each makes an object that unpacks one stream of a file, because the libraries' own file readers take a truncated file
# for a complete one (zstandard), or overlook what follows a stream and is damaged (bz2, lzma).
_UNPACKERS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".xz": lzma.LZMADecompressor,
    ".zst": _zstd,
    ".bz2": bz2.BZ2Decompressor,
}
COMPRESSED = tuple(_UNPACKERS)


def packing(path: Path) -> str:
    """Return the suffix of compression in lower case, or "" if the file is not packed."""
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSED else ""


def kind(path: Path) -> str:
    """Return the suffix that names the format, in lower case, below any suffix of compression."""
    return Path(path.stem if packing(path) else path.name).suffix.lower()


def chunks(path: Path) -> Iterator[bytes]:
    """Yield the unpacked bytes of a file, in bounded chunks.

    Raises:
        StreamError: after the last good bytes, if the file is cut short, damaged or unreadable.
    """
    try:
        with path.open("rb") as stream:
            if unpacker := _UNPACKERS.get(packing(path)):
                yield from _unpacked(stream, unpacker, path.stat().st_size)
            while chunk := stream.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise StreamError("unreadable file", error, "check the disk and the network") from None


def _unpacked(stream: BinaryIO, unpacker: Callable[[], Any], size: int) -> Iterator[bytes]:
    """Yield the contents of all packed streams in a file of `size` bytes. Zeros between them are padding."""
    again = "what comes before was read; fetch the file again"
    part, unread = None, size
    while data := stream.read(_PACKED_CHUNK):
        while data:
            if part is None or part.eof:
                if not (data := data.lstrip(b"\0")):
                    break
                part = unpacker()
            try:
                chunk = part.decompress(data)
            except Exception as error:  # each library has errors of its own
                if "memory" in f"{error!r}".lower():
                    hint = "unpack the file where there is more memory"
                    raise StreamError("archive that needs too much memory", error, hint, unread) from None
                raise StreamError("damaged archive", error, again, unread) from None
            if chunk:
                yield chunk
            data = part.unused_data if part.eof else b""
        unread = size - stream.tell()
    if part is not None and not part.eof:
        raise StreamError("truncated archive", "the file ends within a packed stream", again)


def utf8(parts: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Yield the bytes of text in UTF-8, without a byte order mark. UTF-16 with its mark is converted.

    So are the line ends of old Macs, a carriage return alone: the first bytes have some, and no newline.

    Raises:
        StreamError: the text is in UTF-32, or ends within a character of UTF-16. `size` is that of the file.
    """
    start = b""
    while len(start) < 4 and (part := next(parts, b"")):
        start += part
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise StreamError("UTF-32 text", "", "convert the file: iconv -f utf-32 -t utf-8", size)
    if not start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        old_mac = b"\r" in start[:-1] and b"\n" not in start
        for part in chain([start.removeprefix(codecs.BOM_UTF8)], parts):
            yield part.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if old_mac else part
        return
    decoder = codecs.getincrementaldecoder("utf-16")("surrogatepass")  # the readers name surrogates that are alone
    for part in chain([start], parts):
        yield decoder.decode(part).encode("utf-8", "surrogatepass")
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise StreamError("truncated UTF-16", error, "fetch the file again") from None
