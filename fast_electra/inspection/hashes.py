"""The hash of each kind of thing that something else is made from, from its description alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fast_electra.corpus.shards import MANIFEST, Manifest
from fast_electra.corpus.tokenizer import open_tokenizer
from fast_electra.files import read_json, read_settings, seal
from fast_electra.huggingface.folder import holds_model, identity
from fast_electra.model.files import describe
from fast_electra.run_folder import model_in
from fast_electra.settings import Settings, UserError

REMEDY = "restore it, or write it again"
S = TypeVar("S", bound=Settings)


def read(path: Path, kind: type[S]) -> S:
    """Read a JSON file of a known kind.

    Raises:
        UserError: it is missing or damaged.
    """
    return read_settings(path, kind, f"{path} is missing; {REMEDY}", REMEDY)


def described_in(folder: Path) -> dict[str, Any]:
    """Return the description of one of our models.

    Raises:
        UserError: it is missing or damaged.
    """
    if (described := describe(folder, REMEDY)) is None:
        raise UserError(f"{folder} holds no trained model; {REMEDY}")
    return described


def corpus_hash(folder: Path) -> str:
    """Return the hash of a folder of token shards."""
    read(folder / MANIFEST, Manifest)
    return seal(read_json(folder / MANIFEST))


def model_hash(place: Path) -> str:
    """Return the hash of a model of ours, or of Hugging Face, from its folder, its run, or its config alone."""
    if place.is_file() or holds_model(place):  # of Hugging Face
        return identity(place)
    return str(described_in(model_in(place))["hash"])


HASHES: dict[str, Callable[[Path], str]] = {
    "tokenizer": lambda folder: open_tokenizer(folder).hash,
    "corpus": corpus_hash,
    "auxiliary": model_hash,
    "model": model_hash,
}
