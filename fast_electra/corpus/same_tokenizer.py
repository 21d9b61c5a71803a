"""Whether the tokenizer in a directory of Hugging Face is the one that made a corpus."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fast_electra.corpus.corpus import Corpus
from fast_electra.corpus.freeze import CONFIG
from fast_electra.corpus.pieces import SPACE, data_of
from fast_electra.corpus.tokenizer import Tokenizer, open_tokenizer
from fast_electra.settings import UserError

SAMPLE = 64  # sequences whose text is encoded again
# Text of several kinds, on which tokenizers tend to differ.
ODD_TEXTS = (
    "The Whale's first words, spoken in 1851, were: 'I would prefer not to' -- or so they say.",
    "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m \u4e2d\u6587 \u0440\u0443\u0441",
    "\U0001f433 \u2026 \u201cquoted\u201d",
    "  two  spaces\tand a tab\nnew line  ",
    "def f(x): return x**2 if x != 0 else None  # 3.14159e-10",
    "ANTIDISESTABLISHMENTARIANISM antidisestablishmentarianism",
)
_SPECIAL = ("mask_id", "pad_id", "cls_id", "sep_id")


def check_same_tokenizer(folder: Path, corpus: Corpus) -> str | None:
    """Return None if a model's directory has the corpus's tokenizer, or a note if it has none to compare.

    Equal sizes prove nothing. The pieces must be equal, and so must the ids of some of the corpus's text.

    Raises:
        UserError: it has another one. The message shows the first difference.
    """
    ours = corpus.tokenizer
    if not (folder / CONFIG).is_file():
        return f"{folder} holds no tokenizer, so it is taken for granted that the corpus's is its own"
    its = open_tokenizer(folder)
    if found := difference(ours, its, sample_of(corpus)):
        raise UserError(
            f"{folder} has another tokenizer than the corpus: {found}. Make the corpus with the model's own "
            f"(`fast-electra corpus --tokenizer {folder}`), or use a model that shares the corpus's"
        )
    return None


def sample_of(corpus: Corpus) -> list[str]:
    """Return the text of some training sequences."""
    numbers = torch.arange(min(SAMPLE, len(corpus.train)))
    tokens, ends = corpus.train.tokens(numbers), corpus.train.lengths(numbers)
    return [corpus.tokenizer.decode(part[1:-1].tolist()) for part in tokens.split(ends.tolist())]


def difference(
    ours: Tokenizer, its: Tokenizer, texts: Sequence[str], names: tuple[str, str] = ("the corpus's", "the model's")
) -> str | None:
    """Return the first difference of two tokenizers in words; None if texts are encoded alike by both."""
    if ours.hash == its.hash:
        return None
    one_name, other_name = names
    for name in _SPECIAL:
        if (one := getattr(ours, name)) != (other := getattr(its, name)):
            return f"{name} is {one} in {one_name} and {other} in {other_name}"
    size = min(ours.vocabulary_size, its.vocabulary_size)
    for token in range(size):
        if _bytes_of(piece := ours.piece(token)) != _bytes_of(its_piece := its.piece(token)):
            return f"token {token} is {piece!r} in {one_name} and {its_piece!r} in {other_name}"
    if ours.vocabulary_size > size:
        return f"{one_name} has {ours.vocabulary_size:,} tokens and {other_name} {size:,}"
    for text in texts:
        ids, its_ids = ours.encode(text), its.encode(text)
        for place, (one, other) in enumerate(zip(ids, its_ids, strict=False)):
            if one != other:
                near = ours.decode(ids[max(0, place - 2) : place + 3])
                return f"in {near!r} {one_name} finds {ours.piece(one)!r} and {other_name} {its.piece(other)!r}"
        if len(ids) != len(its_ids):
            return f"{ours.decode(ids[-3:])!r} has other tokens"
    return None


def _bytes_of(piece: str) -> bytes:
    """Return what a piece stands for: only one kind of tokenizer prints a control character as bytes."""
    return data_of(piece) or piece.replace(SPACE, " ").encode()
