"""The corpus of a run: its tokenizer, the sequences to train on, and those held out."""

from dataclasses import dataclass

from pydantic import Field

from fast_electra.corpus.sequences import Sequences
from fast_electra.corpus.shards import Shards
from fast_electra.corpus.tokenizer import Tokenizer, open_tokenizer
from fast_electra.settings import LocalPath, Settings, UserError


class CorpusSettings(Settings):
    """Folders of the text, and the length to which it is cut."""

    shards: LocalPath = "data/shards"
    tokenizer: LocalPath = "data/tokenizer"
    sequence_length: int = Field(default=512, ge=8, le=32_768)


@dataclass(frozen=True)
class Corpus:
    """The sequences to train on, and those held out (None if the corpus has none)."""

    tokenizer: Tokenizer
    train: Sequences
    heldout: Sequences | None
    hash: str


def open_corpus(settings: CorpusSettings, vocabulary_size: int | None, verify: bool) -> Corpus:
    """Open tokenizer and shards, and check that they fit each other and a model whose vocabulary has V entries.

    V is None for an existing model, which may have more rows than its tokenizer has entries. With `verify`, the
    contents of the shards are hashed; one rank does so for all.

    Raises:
        UserError: something is missing or damaged, or the parts do not fit each other.
    """
    tokenizer = open_tokenizer(settings.tokenizer)
    size = tokenizer.vocabulary_size
    if vocabulary_size is not None and size != vocabulary_size:
        raise UserError(
            f"{settings.tokenizer} has {size} entries and fast_electra.model.vocabulary_size is {vocabulary_size}: "
            f"train a tokenizer with `--vocabulary {vocabulary_size}`, or use "
            f"--set fast_electra.model.vocabulary_size={size}"
        )
    train, heldout, length = Shards.open(settings.shards, "train", verify), None, settings.sequence_length
    if train.manifest.splits.get("heldout"):  # the files of both splits were checked above
        heldout = Sequences(Shards.open(settings.shards, "heldout", verify=False), tokenizer, length)
    return Corpus(tokenizer, Sequences(train, tokenizer, length), heldout, train.hash)
