"""A trained model as a folder: model.safetensors, and model.json with all that is needed to use it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fast_electra.files import atomic_folder, file_hash, grant, write_json
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import Discriminator, MaskedLanguageModel
from fast_electra.settings import UserError

KINDS: dict[str, Callable[[EncoderSettings, int], nn.Module]] = {"mlm": MaskedLanguageModel, "rtd": Discriminator.new}


def build_model(kind: str, settings: EncoderSettings, seed: int = 0) -> nn.Module:
    """Return a new model.

    Args:
        kind: a key of KINDS.
        settings: sizes.
        seed: names the initial weights.
    """
    return KINDS[kind](settings, seed)


def save_model(folder: Path, kind: str, settings: EncoderSettings, weights: dict[str, Tensor], **facts: Any) -> None:
    """Writes the folder in one step; an older one is replaced.

    Args:
        kind: a key of KINDS.
        facts: recorded beside the sizes: the tokenizer's hash, the figures of the last evaluation.
    """
    with atomic_folder(folder, "model.json", overwrite=True) as partial:
        save_file(weights, partial / "model.safetensors")
        grant(partial / "model.safetensors")
        description = {"kind": kind, "encoder": settings.model_dump(), "hash": file_hash(partial / "model.safetensors")}
        write_json(partial / "model.json", description | facts)


def load_model(folder: Path, kind: str, remedy: str) -> tuple[Any, dict[str, Any]]:
    """The model in fp32 on the CPU, and its description.

    Args:
        remedy: what to tell a user whose folder holds no such model.
    """
    try:
        description = json.loads((folder / "model.json").read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} holds no trained model; {remedy}") from None
    if description["kind"] != kind:
        raise UserError(f"{folder} holds a model of objective {description['kind']!r}, not {kind!r}; {remedy}")
    if file_hash(folder / "model.safetensors") != description["hash"]:
        raise UserError(f"{folder / 'model.safetensors'} is not what was written (its hash differs); {remedy}")
    settings = EncoderSettings(**description["encoder"])
    model = build_model(kind, settings.model_copy(update={"initialization": "bert"}))  # no profile: weights follow
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model, description
