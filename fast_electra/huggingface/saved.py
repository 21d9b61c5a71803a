"""Directories of Hugging Face that are written here: whole or not there, with facts and a hash beside the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fast_electra.files import atomic_folder, file_hash, grant, read_json, write_sealed
from fast_electra.huggingface.folder import WEIGHTS
from fast_electra.settings import UserError, first_line

FACTS = "fast_electra.json"
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*", "*.model", "*.codes")


@contextmanager
def saved_folder(place: Path, facts: dict[str, Any]) -> Iterator[Path]:
    """Give a folder to write a model into, with its weights in one file. It replaces one that was written before.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        with atomic_folder(place, FACTS, overwrite=True) as partial:
            yield partial
            for file in partial.iterdir():
                grant(file)
            write_sealed(partial / FACTS, facts | {"weights": file_hash(partial / WEIGHTS)})
    except (OSError, SafetensorError) as error:
        remedy = "make room, and start the same command again: it resumes from its last checkpoint"
        raise UserError(f"{place} cannot be written ({error}): {remedy}") from None


def saved_facts(folder: Path, remedy: str) -> dict[str, Any]:
    """Return the facts beside a model; none if it was not written here.

    Raises:
        UserError: they are damaged.
    """
    try:
        facts = read_json(folder / FACTS)
        if isinstance(facts, dict):
            return facts
        raise ValueError("it holds no facts")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / FACTS} cannot be read ({first_line(error)}); {remedy}") from None


def check_saved(folder: Path, remedy: str) -> None:
    """Raise a UserError if a folder that was written here is not whole."""
    try:
        whole = saved_facts(folder, remedy).get("weights") == file_hash(folder / WEIGHTS)
    except OSError:
        whole = False
    if not whole:
        raise UserError(f"{folder} holds no whole model; {remedy}")


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Return the files of a directory's tokenizer, as they are: transformers would write others."""
    paths = {path for pattern in TOKENIZER for path in folder.glob(pattern) if path.is_file() and path.suffix != ".py"}
    return {path.name: path.read_bytes() for path in sorted(paths)}
