"""What a tokenizer offers, and which kind of tokenizer a folder holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from fast_electra.corpus.freeze import CONFIG, freeze
from fast_electra.corpus.frozen_tokenizer import FROZEN, FrozenTokenizer
from fast_electra.corpus.sentencepiece_tokenizer import MODEL, SentencePieceTokenizer
from fast_electra.settings import UserError


class Tokenizer(Protocol):
    """Text <-> token ids.

    Attributes:
        vocabulary_size: all ids lie below it.
        hash: of all that decides the ids of a text. Shards, checkpoints and auxiliary models are checked against it.
        special_ids: ids that mean something else than text.
        pad_id: fills the rows of a batch; it is never part of a sequence.
        cls_id: the one id before each text.
        sep_id: the one id behind each text.
        mask_id: stands at the masked positions.
        never_drawn: ids that no replacement may be, because no text of the corpus holds them.
    """

    vocabulary_size: int
    hash: str
    special_ids: tuple[int, ...]
    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    never_drawn: tuple[int, ...]

    @property
    def unk_id(self) -> int | None:
        """Id that stands for text that has no other token; None if there is none."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text of any length, without the frame. It must hold no NUL and no lone surrogate.

        No text gives a special id, other than `unk_id`.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids. Special tokens are left out; bytes that form no character become U+FFFD."""

    def piece(self, token: int) -> str:
        """Return a token as it is printed: see `corpus/pieces.py`. A special token is like `[CLS]`."""


def open_tokenizer(folder: str | Path) -> Tokenizer:
    """Open the tokenizer in a folder.

    The folder is one that `fast-electra tokenizer` wrote, the folder `tokenizer` of shards (or the shards themselves),
    or a Hugging Face directory. The pipeline of such a directory is the one that the installed transformers builds.

    Raises:
        UserError: there is none, or it is damaged, not safe, or not of use here.
    """
    folder = Path(folder)
    for place in (folder, folder / "tokenizer"):
        if (place / FROZEN).is_file():
            return FrozenTokenizer.load(place)
    if (folder / CONFIG).is_file():
        return freeze(folder)
    if not (folder / MODEL).is_file():
        remedy = "train one with `fast-electra tokenizer`, or name a Hugging Face directory"
        raise UserError(f"no tokenizer in {folder}: neither {MODEL} nor {CONFIG} is there; {remedy}")
    return SentencePieceTokenizer.load(folder)
