"""A trained model as a folder: model.safetensors, and model.json with everything that is needed to use it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fast_electra.files import atomic_folder, file_hash, grant, read_settings, write_json
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import Discriminator, MaskedLanguageModel
from fast_electra.settings import Settings, UserError

KINDS: dict[str, Callable[[EncoderSettings, int], nn.Module]] = {"mlm": MaskedLanguageModel, "rtd": Discriminator.new}
DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"


class Description(Settings):
    """Contents of model.json, which may hold other facts too."""

    model_config = ConfigDict(extra="allow")

    kind: str  # a key of KINDS
    encoder: EncoderSettings
    hash: str  # xxh3-128 of model.safetensors
    tokenizer: str = ""  # its hash
    evaluation: dict[str, Any] = {}  # figures of the last one


def build_model(kind: str, settings: EncoderSettings, seed: int = 0) -> nn.Module:
    """Return a new model of a kind of KINDS."""
    return KINDS[kind](settings, seed)


def save_model(folder: Path, kind: str, settings: EncoderSettings, weights: dict[str, Tensor], **facts: Any) -> None:
    """Write the folder in one step; an older one is replaced. Facts are fields of `Description`, or others."""
    with atomic_folder(folder, DESCRIPTION, overwrite=True) as partial:
        save_file(weights, partial / WEIGHTS)
        grant(partial / WEIGHTS)
        description = {"kind": kind, "encoder": settings.model_dump(), "hash": file_hash(partial / WEIGHTS)}
        write_json(partial / DESCRIPTION, description | facts)


def describe(folder: Path, remedy: str = "restore it or train the model again") -> dict[str, Any] | None:
    """Return what model.json says, with the keys of `Description`; None where the folder holds no model.

    Raises:
        UserError: the file is damaged. The message ends with `remedy`.
    """
    if not (folder / DESCRIPTION).exists():
        return None
    return read_settings(folder / DESCRIPTION, Description, f"{folder} holds no trained model", remedy).model_dump()


def load_model(folder: Path, kind: str, remedy: str) -> tuple[Any, dict[str, Any]]:
    """Return the model in fp32 on the CPU, and its description.

    Raises:
        UserError: the folder holds no model of this kind, or a damaged one. The message ends with `remedy`.
    """
    description, weights = describe(folder, remedy), folder / WEIGHTS
    if description is None:
        raise UserError(f"{folder} holds no trained model; {remedy}")
    if description["kind"] != kind:
        raise UserError(f"{folder} holds a model of objective {description['kind']!r}, not {kind!r}; {remedy}")
    try:
        if file_hash(weights) != description["hash"]:
            raise UserError(f"{weights} is not what was written (its hash differs); {remedy}")
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights} cannot be read ({error}); {remedy}") from None
    settings = EncoderSettings(**description["encoder"])
    try:
        model = build_model(kind, settings.model_copy(update={"initialization": "bert"}))  # no profile: weights follow
        model.load_state_dict(tensors)
    except (RuntimeError, TypeError):  # torch raises them where sizes do not fit, or are too large to allocate
        raise UserError(f"{folder / DESCRIPTION} gives other sizes than {weights} has; {remedy}") from None
    return model, description
