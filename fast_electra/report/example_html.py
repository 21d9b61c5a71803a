"""The example sequences of `report.html`: corrupted text with the replaced tokens marked, true and predicted."""

import re
from collections.abc import Iterator
from html import escape
from itertools import groupby
from typing import Any

Token = dict[str, Any]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
WORD_MARK = "▁"

LEGEND = """<p class="legend">
<span><ruby><span class="found">token</span><rt>original</rt></ruby> replaced, and found</span>
<span><ruby><span class="missed">token</span><rt>original</rt></ruby> replaced, but missed</span>
<span><span class="alarm">token</span> original, but called replaced (a false alarm)</span>
</p>"""


def examples_html(examples: dict[str, Any]) -> str:
    """The content of `examples.json` as HTML: a legend and a list of sequences."""
    items = []
    for sequence in examples.get("sequences", []):
        tokens = [token for token in sequence["tokens"] if token["piece"] != "[PAD]"]
        marks = [mark(token) for token in tokens]
        replaced = marks.count("found") + marks.count("missed")
        count = (
            f"{replaced} of {len(tokens)} tokens replaced: {marks.count('found')} found, "
            f"{marks.count('missed')} missed; false alarms: {marks.count('alarm')}"
        )
        items.append(f'<li><p class="count">{count}</p><p class="sequence">{"".join(_runs(tokens)).strip()}</p></li>')
    return f'{LEGEND}\n<ol class="examples">\n' + "\n".join(items) + "\n</ol>"


def mark(token: Token) -> str:
    """How a token is marked: "found", "missed", "alarm" (original, yet called replaced) or "" (rightly not called)."""
    called = (token.get("probability") or 0.0) >= 0.5
    return {(True, True): "found", (True, False): "missed", (False, True): "alarm"}.get((token["replaced"], called), "")


def readable(pieces: list[str]) -> str:
    """Pieces as text: word marks become spaces, and runs of byte pieces the characters that they spell."""
    text = ""
    for is_bytes, run in groupby(pieces, key=lambda piece: BYTE.fullmatch(piece) is not None):
        joined = "".join(run)
        if is_bytes:
            text += bytes(int(byte, 16) for byte in BYTE.findall(joined)).decode("utf-8", errors="replace")
        else:
            text += joined.replace(WORD_MARK, " ")
    return text


def _runs(tokens: list[Token]) -> Iterator[str]:
    """HTML of one sequence, run by run: bytes are joined across unmarked tokens, marked tokens stand alone."""
    for kind, run in groupby(tokens, key=lambda token: mark(token) or ("special" if token["piece"] in SPECIAL else "")):
        if not kind:
            yield _dim(readable([token["piece"] for token in run]))
        elif kind == "special":
            yield "".join(f' <span class="special">{escape(token["piece"])}</span> ' for token in run)
        else:
            yield "".join(_marked(token, kind) for token in run)


def _marked(token: Token, kind: str) -> str:
    piece, original = token["piece"], token["original"]
    text, was = _alone(piece), _alone(original)
    if kind != "alarm" and text == was:  # the two differ by the word mark alone
        text, was = piece, original
    space = " " if piece.startswith(WORD_MARK) else ""
    probability = "unknown" if token.get("probability") is None else f"{token['probability']:.1%}"
    title = f"probability of being replaced: {probability}"
    if kind != "alarm":
        title = f"original {original!r}, shown {piece!r}; {title}"
    body = f'<span class="{kind}">{_dim(text)}</span>'
    if kind == "alarm":
        return f'{space}<span title="{escape(title)}">{body}</span>'
    # The inline block keeps a wide original from hanging over the neighbouring words.
    return f'{space}<span class="pair" title="{escape(title)}"><ruby>{body}<rt>{_dim(was)}</rt></ruby></span>'


def _alone(piece: str) -> str:
    """A piece that stands by itself: without its word mark; a space or a byte that spells nothing alone as a symbol."""
    byte = BYTE.fullmatch(piece)
    if byte and int(byte[1], 16) >= 0x80:
        return f"⟨{byte[1].upper()}⟩"
    return readable([piece]).removeprefix(" ") or "␣"


def _dim(text: str) -> str:
    """Escaped text, with the characters that cannot be seen shown as dim symbols."""
    symbols = {
        "\n": '<span class="dim">¶</span> ',
        "\t": '<span class="dim">⇥</span> ',
        "\ufffd": '<span class="dim">\ufffd</span>',
    }
    return "".join(symbols.get(character) or escape(character) for character in text)
