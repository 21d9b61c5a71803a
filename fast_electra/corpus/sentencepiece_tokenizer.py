"""SentencePiece BPE over cased text. Decoding returns every text unchanged, and no text can forge a special token."""

import hashlib
import json
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import sentencepiece

from fast_electra.corpus.pieces import SPACE
from fast_electra.settings import UserError

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MODEL, CARD = "tokenizer.model", "tokenizer.json"

# A word with the spaces before it, or one newline. No piece crosses such a border, because training sees no newline and
# allows a space only before a word or among spaces. So encoding word by word gives the ids of the whole text.
_WORD = re.compile(r"\n| *[^ \n]+| +")


class SentencePieceTokenizer:
    """Text <-> token ids: [PAD] [UNK] [CLS] [SEP] [MASK] are 0 to 4, the bytes 5 to 260; pieces of text follow.

    Attributes:
        vocabulary_size: number of ids.
        hash: sha256 of the model file. Shards, checkpoints and auxiliary models are checked against it.
        special_ids: of [PAD] [UNK] [CLS] [SEP] [MASK]; each also has an attribute of its own, such as `pad_id`.
    """

    never_drawn: tuple[int, ...] = ()

    def __init__(self, model: bytes):
        """Open the bytes of a SentencePiece model; `load` reads a folder."""
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocabulary_size: int = self._processor.vocab_size()
        self.hash = hashlib.sha256(model).hexdigest()
        self.special_ids = tuple(map(self._processor.piece_to_id, SPECIAL_PIECES))
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = self.special_ids
        self._words = _Words(self._processor)

    @classmethod
    def load(cls, folder: str | Path) -> "SentencePieceTokenizer":
        """Open a folder written by `train_tokenizer`.

        Raises:
            UserError: the folder is missing, incomplete or altered, or holds another kind of tokenizer.
        """
        file, card = Path(folder) / MODEL, Path(folder) / CARD
        train_one = "train one with `fast-electra tokenizer`"
        try:
            model = file.read_bytes()
            described = json.loads(card.read_text())
            expected, version = described["sha256"], described["format"]
        except FileNotFoundError as error:
            raise UserError(f"no tokenizer in {folder}: {error.filename} is missing; {train_one}") from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{card} cannot be read ({error}): train the tokenizer again") from None
        if version != 1:
            raise UserError(f"{card} has format {version!r:.20}, and this version of fast_electra reads 1: {train_one}")
        if hashlib.sha256(model).hexdigest() != expected:
            raise UserError(f"{file} was altered (its sha256 is not that of {CARD}): restore or train it again")
        try:
            tokenizer = cls(model)
        except RuntimeError as error:
            raise UserError(f"{file} is not a SentencePiece model ({error}): train it again") from None
        if tokenizer.special_ids != (0, 1, 2, 3, 4) or tokenizer.piece(5) != "<0x00>":
            raise UserError(f"{file} has other special tokens than {' '.join(SPECIAL_PIECES)}: {train_one}")
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without [CLS] and [SEP]. The text must hold no NUL and no lone surrogate."""
        return list(chain.from_iterable(map(self._words.__getitem__, _WORD.findall(text))))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids. Special tokens are left out; bytes that form no character become U+FFFD."""
        return str(self._processor.decode([int(i) for i in ids if i not in self.special_ids]))

    def piece(self, token: int) -> str:
        """Return a token as it is printed: a space is U+2581, a byte is like `<0x0A>`, a special token like `[CLS]`."""
        return str(self._processor.id_to_piece(int(token)))


class _Words(dict[str, list[int]]):
    """Token ids by word. SentencePiece is asked for each word once, which makes encoding about four times as fast."""

    _LIMIT, _LENGTH = 2**19, 64  # number of words kept, and characters of the longest one

    def __init__(self, processor: sentencepiece.SentencePieceProcessor):
        super().__init__()
        self._processor = processor
        self._space = [5 + byte for byte in SPACE.encode()]

    def __missing__(self, word: str) -> list[int]:
        # SentencePiece would read its own sign for a space as a space, so that sign is spelt in bytes.
        first, *others = word.split(SPACE)
        ids: list[int] = self._processor.encode(first)
        for part in others:
            ids += self._space + self._processor.encode(part)
        if len(word) <= self._LENGTH:
            if len(self) >= self._LIMIT:
                self.clear()
            self[word] = ids
        return ids
