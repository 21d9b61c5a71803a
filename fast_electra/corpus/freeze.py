"""Freeze the fast tokenizer of a Hugging Face directory: the only file that loads a tokenizer by transformers."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from fast_electra.corpus.frozen_tokenizer import Frozen, FrozenTokenizer, gap
from fast_electra.huggingface.folder import SAFE, quiet_transformers
from fast_electra.settings import UserError, first_line

CONFIG = "tokenizer_config.json"  # marks a Hugging Face directory
_REMEDY = "name the directory of another tokenizer"


def freeze(folder: str | Path) -> FrozenTokenizer:
    """Freeze the pipeline that the installed transformers builds from a Hugging Face directory.

    Raises:
        UserError: the directory is damaged, needs code of its own, or holds no fast tokenizer that is of use here; or a
            package is missing.
    """
    folder = Path(folder)
    _refuse(folder)
    transformers = quiet_transformers(folder)
    import tokenizers  # on which transformers builds its own

    try:
        loaded: Any = transformers.AutoTokenizer.from_pretrained(folder, use_fast=True, **SAFE)
    except Exception as error:  # whatever a damaged file makes of transformers' code
        where = f"transformers {transformers.__version__} cannot load the tokenizer in {folder}"
        raise UserError(f"{where} ({type(error).__name__}: {first_line(error)[:200]}): restore its files") from None
    if not getattr(loaded, "is_fast", False):
        raise UserError(
            f"{folder} holds a slow tokenizer ({type(loaded).__name__}); only fast ones are read: {_REMEDY}"
        )
    backend, named = (
        loaded.backend_tokenizer,
        {name: getattr(loaded, f"{name}_token") for name in ("mask", "pad", "unk")},
    )
    # Not by transformers, which gives the id of the unknown token for what is not in the vocabulary.
    special: dict[str, Any] = {name: backend.token_to_id(token) if token else None for name, token in named.items()}
    for name in ("mask", "pad"):
        if special[name] is None:
            raise UserError(f"{folder}: its tokenizer has no {name} token ({name}_token in {CONFIG}): {_REMEDY}")
    pipeline = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    if "dropout" in pipeline["model"]:  # which would draw the ids of a text
        pipeline["model"]["dropout"] = None
    frozen = Frozen(
        format=1,
        pipeline=json.dumps(pipeline, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
        pad_id=special["pad"],
        unk_id=special["unk"],
        mask_id=special["mask"],
        source=str(folder),
        versions={"transformers": transformers.__version__, "tokenizers": tokenizers.__version__},
    )
    return FrozenTokenizer(frozen, f"the tokenizer in {folder}", _REMEDY)


def _refuse(folder: Path) -> None:
    """Refuse what transformers would load without its own code, or with a message about something else."""
    path = folder / CONFIG
    try:
        own_code = json.loads(path.read_text(encoding="utf-8")).get("auto_map")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)[:200]}): restore it") from None
    if own_code:
        raise UserError(f"{folder}: its tokenizer needs code of its own (auto_map), which is never run: {_REMEDY}")
    try:  # now, because transformers would count up to the last id
        wrong = gap(json.loads((folder / "tokenizer.json").read_bytes())["model"]["vocab"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        wrong = ""  # there is none, it has no ids, or it is damaged, of which transformers says more
    if wrong:
        raise UserError(f"the tokenizer in {folder} cannot be used: {wrong}: {_REMEDY}")
    models = sorted(path.name for path in folder.glob("*.model"))
    if models and not (folder / "tokenizer.json").exists():
        found = importlib.util.find_spec("google") and importlib.util.find_spec("google.protobuf")
        if not found:
            raise UserError(f"{folder}: reading {models[0]} needs the package protobuf: pip install protobuf")
