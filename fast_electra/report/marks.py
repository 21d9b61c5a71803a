"""The sequences of `examples.json` as the report shows them: which tokens are marked, how, and with which text."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from fast_electra.corpus.pieces import data_of, spell
from fast_electra.corpus.sentencepiece_tokenizer import SPECIAL_PIECES


class Token(BaseModel):
    """A token of a corrupted sequence, the token that it was, and the predicted probability that it was replaced."""

    piece: str
    original: str
    replaced: bool
    probability: float | None = Field(None, ge=0, le=1)

    @property
    def mark(self) -> str:
        """Kind of mark: "found", "missed", "alarm" (original, but called replaced) or "" (original, and called so)."""
        called = self.probability is not None and self.probability >= 0.5
        return {(True, True): "found", (True, False): "missed", (False, True): "alarm"}.get((self.replaced, called), "")

    @property
    def texts(self) -> tuple[str, str]:
        """Texts of the piece and of the original, each as it is shown alone."""
        texts = _alone(self.piece), _alone(self.original)
        # A replaced token may differ from its original by the word mark alone.
        return (self.piece, self.original) if self.replaced and texts[0] == texts[1] else texts


_OTHER_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")  # names in many tokenizers of Hugging Face
_TOKENS = TypeAdapter(list[Token])
Sequence = tuple[str, list[tuple[str, str | Token]]]


def read_sequences(entries: Any, unreadable: list[str]) -> list[Sequence]:
    """Return each sequence of `examples.json` as (its counts in words, its parts).

    A part is ("", text), ("special", piece) or (mark, token). An entry of an unexpected shape is left out; `unreadable`
    gets their number.
    """
    entries = entries if isinstance(entries, list) else [entries]
    read = []
    for entry in entries:
        try:
            tokens = [token for token in _TOKENS.validate_python(entry["tokens"]) if token.piece != "[PAD]"]
        except (KeyError, TypeError, ValidationError):
            continue
        found, missed, alarms = (sum(token.mark == mark for token in tokens) for mark in ("found", "missed", "alarm"))
        replaced = f"{found + missed} of {len(tokens)} tokens replaced: {found} found, {missed} missed"
        read.append((f"{replaced}; false alarms: {alarms}", list(_parts(tokens))))
    if odd := len(entries) - len(read):
        unreadable.append(f"{odd} of {len(entries)} sequences in examples.json")
    return read


def _parts(tokens: list[Token]) -> Iterator[tuple[str, str | Token]]:
    """Yield the parts of a sequence. Unmarked tokens are joined, so that bytes spell characters."""
    special = dict.fromkeys((*SPECIAL_PIECES, *_OTHER_SPECIAL), "special")
    for kind, run in groupby(tokens, key=lambda token: token.mark or special.get(token.piece, "")):
        if kind:
            yield from ((kind, token.piece if kind == "special" else token) for token in run)
        else:
            yield kind, spell([token.piece for token in run])[0]


def _alone(piece: str) -> str:
    """Return a piece as text, without its word mark; a space or a byte that spells nothing becomes a symbol."""
    text, data = spell([piece])[0], data_of(piece)
    if data and "\ufffd" in text:
        return f"⟨{data.hex(' ').upper()}⟩"
    return text.removeprefix(" ") or "␣"
