"""Find out what a path is: the kind of a folder, or of a file in it, shows in the names of its files."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fast_electra.corpus.frozen_tokenizer import CONFIG as TOKENIZER_CONFIG
from fast_electra.corpus.frozen_tokenizer import FROZEN
from fast_electra.corpus.sentencepiece_tokenizer import CARD, MODEL
from fast_electra.corpus.shards import MANIFEST
from fast_electra.inspection.facts import COMPLETE, LATEST, METRICS, STATUS, Facts, Inspection
from fast_electra.model.files import DESCRIPTION
from fast_electra.run_folder import CONFIG
from fast_electra.settings import UserError
from fast_electra.store.format import PLAN


class Inspected(NamedTuple):
    """What a path is."""

    kind: str  # a key of KINDS, "metrics" or "config"
    facts: Facts  # values that JSON can hold
    problems: list[str]  # a line for each thing that is damaged, or not the one that was meant


# Files by which a folder of each kind is known, and what looks at it.
KINDS: dict[str, tuple[tuple[str, ...], Callable[[Inspection, Path], Facts]]] = {
    "checkpoint": ((COMPLETE,), Inspection.checkpoint),
    "model": ((DESCRIPTION,), Inspection.model),
    "store": ((PLAN,), Inspection.store),
    "shards": ((MANIFEST,), Inspection.shards),
    "export": ((TOKENIZER_CONFIG,), Inspection.export),  # before the tokenizer: both have a tokenizer.json
    "tokenizer": ((MODEL, CARD, FROZEN), Inspection.tokenizer),
    "run": ((CONFIG, STATUS, METRICS), Inspection.run),
    "checkpoints": ((LATEST,), Inspection.checkpoints),
}
_PARTS = (".safetensors", ".pt", ".bin", ".idx")  # files that a folder's JSON describes


def inspect(path: Path, verify: bool = False) -> Inspected:
    """Find out what a file or folder is. With `verify` all contents are hashed; without it, sizes and seals count.

    Raises:
        UserError: it is nothing that is known here, or it is damaged.
        OSError: it cannot be read.
    """
    try:
        path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a file or folder that exists") from None
    look, folder = Inspection(verify), path if path.is_dir() else path.parent
    kind = next((kind for kind, (names, _) in KINDS.items() if any((folder / name).is_file() for name in names)), "")
    if kind == "export" and not (folder / CONFIG).is_file():
        kind = "tokenizer"  # of Hugging Face, without a model
    if folder != path:
        if path.name == METRICS:
            return Inspected("metrics", look.metrics(folder), look.problems)
        if path.suffix == ".json" and path.name not in (name for names, _ in KINDS.values() for name in names):
            return Inspected("config", look.config(path), look.problems)
        if path.suffix not in _PARTS and (not kind or path.name not in KINDS[kind][0]):
            kind = ""
    if not kind:
        names = ", ".join(f"{' or '.join(names)} ({kind})" for kind, (names, _) in KINDS.items())
        what = f"holds none of {names}" if folder == path else "is no file of a known folder, no config and no metrics"
        raise UserError(f"{path} is nothing that is known here: it {what}{_inside(path)}")
    return Inspected(kind, KINDS[kind][1](look, folder), look.problems)


def _inside(folder: Path) -> str:
    """Return the end of a message: the known folders in an unknown one."""
    inside = sorted(
        path.parent.name for names, _ in KINDS.values() for name in names for path in folder.glob(f"*/{name}")
    )
    return f"; look at {', '.join(dict.fromkeys(inside))} in it" if inside else ""
