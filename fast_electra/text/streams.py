"""The bytes of a file, unpacked in bounded chunks. Everything before the first broken byte is still read."""

import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

COMPRESSED = (".gz", ".xz", ".zst")
_CHUNK = 2**20
_ZSTD_CHUNK = 2**11  # compressed bytes: zstd can unpack 4 bytes to a block of 128 KiB, and takes no limit


class StreamError(Exception):
    """The rest of a file cannot be read. `reason` is one of a few fixed phrases, and the message says more."""

    def __init__(self, reason: str, message: object):
        super().__init__(str(message))
        self.reason = reason


def chunks(path: Path) -> Iterator[bytes]:
    """Yield the unpacked bytes of a file, in bounded chunks.

    Raises:
        StreamError: after the last good bytes, if the file is cut short, damaged or unreadable.
    """
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
    try:
        if path.suffix == ".zst":
            yield from _zst(path)
            return
        with openers.get(path.suffix, open)(path, "rb") as stream:
            while chunk := stream.read1(_CHUNK):  # read() would lose the good bytes before a break
                yield chunk
    except EOFError as error:
        raise StreamError("truncated archive", error) from None
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise StreamError("damaged archive", error) from None
    except OSError as error:
        raise StreamError("unreadable file", error) from None


def _zst(path: Path) -> Iterator[bytes]:
    """Unpack frame by frame, because zstandard's own stream reader takes a truncated file for a complete one."""
    import zstandard

    frame = None
    with path.open("rb") as stream:
        while data := (frame.unused_data if frame else b"") or stream.read(_ZSTD_CHUNK):
            if frame is None or frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
            try:
                chunk = frame.decompress(data)
            except zstandard.ZstdError as error:
                raise StreamError("damaged archive", error) from None
            if chunk:
                yield chunk
    if frame and not frame.eof:
        raise EOFError("the file ends within a zstd frame")
