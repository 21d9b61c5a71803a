"""How a token is printed: a space is U+2581, and a byte that is no character by itself is like `<0x0A>`."""

import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby

SPACE = "\u2581"  # what SentencePiece writes for a space
_BYTES = re.compile("(<0x[0-9A-Fa-f]{2}>)+")
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f]")
Span = tuple[int, int]  # start and end of a part of a text, in characters


def printed(data: bytes) -> str:
    """Return the piece for a part of a text in UTF-8. The part may begin or end within a character."""
    with suppress(UnicodeDecodeError):
        text = data.decode()
        if SPACE not in text and not _CONTROL.search(text):
            return text.replace(" ", SPACE)
    return "".join(f"<0x{byte:02X}>" for byte in data)


def data_of(piece: str) -> bytes:
    """Return the bytes that a piece names; none if it is text."""
    return bytes.fromhex(piece.replace("<0x", "").replace(">", "")) if _BYTES.fullmatch(piece) else b""


def spell(pieces: Sequence[str]) -> tuple[str, list[Span]]:
    """Return the text that pieces spell, and the span of each one in it. A special token spells its name.

    The bytes of one character share its span. Bytes that form no character become U+FFFD, each by itself.
    """
    text, spans, at = list[str](), list[Span](), 0
    for are_bytes, run in groupby(pieces, lambda piece: data_of(piece) != b""):
        if not are_bytes:
            for piece in run:
                text.append(piece.replace(SPACE, " "))
                spans.append((at, at := at + len(piece)))
            continue
        parts = list(map(data_of, run))
        data, characters = b"".join(parts), list[int]()  # the number of the character of each byte
        while (place := len(characters)) < len(data):
            size, character = _character(data[place : place + 4])
            characters += [at] * size
            text.append(character)
            at += 1
        place = 0
        for part in parts:
            spans.append((characters[place], characters[place + len(part) - 1] + 1))
            place += len(part)
    return "".join(text), spans


def _character(data: bytes) -> tuple[int, str]:
    """Return the number of bytes of the character that `data` begins with, and the character."""
    for size in range(1, len(data) + 1):
        with suppress(UnicodeDecodeError):
            return size, data[:size].decode()
    return 1, "\ufffd"
