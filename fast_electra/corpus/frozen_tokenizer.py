"""A Hugging Face fast tokenizer, frozen: its whole pipeline in one file, which the `tokenizers` library alone reads.

transformers does not read most pipelines from the file: it builds new ones from the vocabulary. Two versions of it may
build two pipelines from one directory. So the pipeline that made the tokens is kept beside them.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from fast_electra.corpus.pieces import SPACE, printed
from fast_electra.files import read_settings, write_sealed
from fast_electra.settings import Settings, UserError, first_line

FROZEN = "frozen_tokenizer.json"
_REMEDY = "restore it, or build the shards again from the Hugging Face directory"
_UNUSED = re.compile(r"[\[<]unused[_-]?\d+[\]>]|madeupword\d+|.*NOTUSED", re.IGNORECASE)  # names of spare entries
# No vocabulary has all of it, and its ids tell versions of the `tokenizers` library apart.
_PROBE = (
    "I\u2019m 1,024 na\u00efve cafe\u0301s,  don't\t\n\nx\u00b2 \ufb01 "
    "\u0e01 \u4e2d\u6587 \U0001f642 \u2581 \ue000\U0010ffff <0x0A>"
)


class Frozen(Settings):
    """What the file holds."""

    format: Literal[1]
    pipeline: str  # JSON of the `tokenizers` library with sorted keys, and without truncation and padding
    pad_id: int
    unk_id: int | None
    mask_id: int
    probe: list[int] | None = None  # the ids of a text that has a bit of everything
    source: str  # the directory
    versions: dict[str, str]  # of the packages that built the pipeline


class FrozenTokenizer:
    """A pipeline of the `tokenizers` library: see `corpus.tokenizer.Tokenizer` for what it offers."""

    def __init__(self, frozen: Frozen, where: str | Path, remedy: str) -> None:
        """Open a pipeline; `where` and `remedy` begin and end the message if it cannot be used.

        Raises:
            UserError: it cannot be used, or gives other ids than it gave when it was written.
        """
        try:
            import tokenizers
        except ImportError:
            raise UserError(f"{where} needs the package tokenizers: pip install 'fast_electra[hf]'") from None
        here = f"tokenizers {tokenizers.__version__}"
        if (made_by := f"tokenizers {frozen.versions.get('tokenizers')}") != here:
            remedy = f"install {made_by}, by which it was written (here is {here}), or {remedy}"
        self.pad_id, self.unk_id, self.mask_id = frozen.pad_id, frozen.unk_id, frozen.mask_id
        try:
            self._fast = tokenizers.Tokenizer.from_str(frozen.pipeline)
            self._fast.encode_special_tokens = True  # no text can forge a special token; the pipeline does not say so
            self._pieces = _Pieces(json.loads(frozen.pipeline))
            ids = self._fast.get_vocab(with_added_tokens=True)
            self._check_ids(ids)
            self.cls_id, self.sep_id = self._frame(ids)
            probe = self._ids(_PROBE)
        except Exception as error:  # the library has no classes for what a damaged pipeline makes of it
            raise UserError(f"{where} cannot be used: {first_line(error)[:200]}; {remedy}") from None
        if frozen.probe not in (None, probe):
            raise UserError(f"{where} gives other ids than it gave when it was written: {remedy}")
        self.frozen = frozen.model_copy(update={"probe": probe})
        self.hash = _sha256([frozen.pipeline, self.pad_id, self.unk_id, self.mask_id])
        self.vocabulary_size = max(ids.values()) + 1
        added = self._pieces.added
        special = {self.pad_id, self.cls_id, self.sep_id, self.mask_id} | {token for token in added if added[token]}
        self.special_ids = tuple(sorted(special | ({self.unk_id} if self.unk_id is not None else set())))
        unused = {token for text, token in ids.items() if _UNUSED.fullmatch(text)}
        holes = set(range(self.vocabulary_size)).difference(ids.values())
        self.never_drawn = tuple(sorted(unused.union(self.special_ids, added, holes)))
        self._spelt = {token: list(self._by_characters(token)) for token in special - {self.unk_id}}

    @classmethod
    def load(cls, folder: str | Path) -> "FrozenTokenizer":
        """Open a folder written by `save`.

        Raises:
            UserError: the file is missing, altered, or of another version, or cannot be used.
        """
        path = Path(folder) / FROZEN
        return cls(read_settings(path, Frozen, f"{path} is missing; {_REMEDY}", _REMEDY), path, _REMEDY)

    def save(self, folder: Path) -> None:
        """Write the pipeline into a folder, which is made."""
        folder.mkdir(exist_ok=True)
        write_sealed(folder / FROZEN, self.frozen.model_dump())

    def hugging_face_files(self) -> dict[str, bytes]:
        """Return the files by which transformers opens this pipeline, as it is, by name."""
        ids = {"pad": self.pad_id, "unk": self.unk_id, "cls": self.cls_id, "sep": self.sep_id, "mask": self.mask_id}
        named = {f"{name}_token": self._fast.id_to_token(token) for name, token in ids.items() if token is not None}
        described = {"tokenizer_class": "PreTrainedTokenizerFast"} | named
        return {
            "tokenizer.json": self.frozen.pipeline.encode(),
            "tokenizer_config.json": json.dumps(described, indent=1).encode(),
        }

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; see `Tokenizer.encode`."""
        ids = self._ids(text)
        if self._spelt.keys().isdisjoint(ids):
            return ids
        # Some models, such as Unigram, find the name of a special token in the text as if it were a word.
        return list(chain.from_iterable(self._spelt.get(token, (token,)) for token in ids))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, as far as the pipeline keeps it; see `Tokenizer.decode`."""
        return str(self._fast.decode([int(token) for token in ids], skip_special_tokens=True))

    def piece(self, token: int) -> str:
        """Return a token as it is printed; see `Tokenizer.piece`."""
        text = self._fast.id_to_token(int(token))
        return f"[no token {int(token)}]" if text is None else self._pieces(int(token), text)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._fast.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def _check_ids(self, ids: dict[str, int]) -> None:
        """Refuse a vocabulary that is empty, full of holes, or lacks a special token."""
        if not set(ids.values()) - set(self._pieces.added):
            raise ValueError("its vocabulary is empty")
        if wrong := gap(ids.values()):
            raise ValueError(wrong)
        for name, token in (("padding", self.pad_id), ("unknown", self.unk_id), ("mask", self.mask_id)):
            if token is not None and self._fast.id_to_token(token) is None:
                raise ValueError(f"the id {token} of its {name} token is not in its vocabulary")

    def _frame(self, ids: dict[str, int]) -> tuple[int, int]:
        """Return the id before and the id behind each text."""
        for word in ("a", *ids):
            bare, framed = (self._fast.encode(word, add_special_tokens=special).ids for special in (False, True))
            if bare:
                break
        else:
            raise ValueError("it gives no token for any word")
        if len(framed) != len(bare) + 2 or framed[1:-1] != bare:
            before = next((n for n in range(len(framed)) if framed[n : n + len(bare)] == bare), 0)
            numbers = f"{before} and {len(framed) - len(bare) - before}"
            raise ValueError(
                f"it must put one token before a text and one behind it, such as [CLS] and [SEP], not {numbers}"
            )
        frame = (framed[0], framed[-1])
        if self.mask_id in (*frame, self.pad_id, self.unk_id):
            raise ValueError(f"its mask token {self._fast.id_to_token(self.mask_id)} has other uses too")
        return frame

    def _by_characters(self, token: int) -> Iterator[int]:
        """Yield the ids of the characters of a special token's name."""
        for character in self._fast.id_to_token(token) or "":
            found = self._fast.token_to_id(character)
            if (found := self.unk_id if found is None else found) is not None:
                yield found


class _Pieces:
    """From a token of a pipeline to the piece that is printed."""

    def __init__(self, pipeline: dict[str, Any]) -> None:
        """Read how the pipeline marks spaces."""
        model = pipeline["model"]
        self.added = {token["id"]: token["special"] for token in pipeline["added_tokens"]}  # whether it is special
        steps = json.dumps([pipeline["normalizer"], pipeline["pre_tokenizer"], pipeline["decoder"]])
        self._bytes = _byte_letters() if '"ByteLevel"' in steps else {}
        self._inner, self._end = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
        words = model["type"] == "WordLevel" and '"Metaspace"' not in steps
        self._marks_inner = bool(self._inner) or words  # what has no mark begins a word

    def __call__(self, token: int, text: str) -> str:
        """Return the piece of a token, whose text in the pipeline is given."""
        if token in self.added:
            return text if self.added[token] else printed(text.encode())
        if self._end:
            text = text.removesuffix(self._end) + " " * text.endswith(self._end)
        if self._bytes and set(text) <= self._bytes.keys() | {" "}:
            return printed(bytes(self._bytes.get(letter, 32) for letter in text))
        if self._marks_inner:
            inner = self._inner and text.startswith(self._inner)
            return printed((text.removeprefix(self._inner) if inner else f" {text}").encode())
        return printed(text.replace(SPACE, " ").encode())


def gap(ids: Collection[int]) -> str:
    """Return what is wrong if most ids up to the last one are those of no token, and "" if not."""
    most = max(ids, default=0)
    return f"its ids reach {most:,}, and it has only {len(ids):,} tokens" if most > 2 * len(ids) else ""


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _byte_letters() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for.

    Printable bytes stand for themselves, the others, in order, for the letters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
