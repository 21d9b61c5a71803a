"""A trained model as a folder: model.safetensors, and model.json with everything that is needed to use it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fast_electra.files import atomic_folder, file_hash, grant, read_settings, seal, write_sealed
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import Discriminator, MaskedLanguageModel, SequenceClassifier
from fast_electra.settings import Settings, UserError

KINDS: dict[str, Callable[[EncoderSettings, int, int], nn.Module]] = {
    "mlm": lambda settings, seed, outputs: MaskedLanguageModel(settings, seed),
    "rtd": lambda settings, seed, outputs: Discriminator.new(settings, seed),
    "classifier": lambda settings, seed, outputs: SequenceClassifier.new(settings, outputs, seed),
}
DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"


class Description(Settings):
    """Contents of model.json, which may hold other facts too."""

    model_config = ConfigDict(extra="allow")

    kind: str  # a key of KINDS
    encoder: EncoderSettings
    hash: str  # of the model, see `identity`; in files of older versions that of model.safetensors
    weights: str | None = None  # xxh3-128 of model.safetensors
    tokenizer: str = ""  # its hash
    sequence_length: int | None = None  # positions of the longest sequence in training, [CLS] and [SEP] included
    labels: list[str] = []  # of a classifier's outputs; none if it has one output, a number
    evaluation: dict[str, Any] = {}  # figures of the last one

    @property
    def identity(self) -> str:
        """Hash of all that determines what the model computes: its weights, its settings and its tokenizer."""
        return seal(self.model_dump(include={"kind", "encoder", "weights", "tokenizer", "labels"}, exclude_unset=True))


def build_model(kind: str, settings: EncoderSettings, seed: int = 0, outputs: int = 1) -> nn.Module:
    """Return a new model of a kind of KINDS; only a classifier has `outputs`."""
    return KINDS[kind](settings, seed, outputs)


def save_model(folder: Path, kind: str, settings: EncoderSettings, weights: dict[str, Tensor], **facts: Any) -> None:
    """Write the folder in one step; an older one is replaced. Facts are fields of `Description`, or others.

    Raises:
        UserError: a weight is not finite, or the folder cannot be written.
    """
    _check_finite(weights, f"weights for {folder}", "train again from an earlier checkpoint")
    try:
        if not (folder / DESCRIPTION).exists():
            (folder / WEIGHTS).unlink(missing_ok=True)  # of no use alone, and only a described folder is replaced
        with atomic_folder(folder, DESCRIPTION, overwrite=True) as partial:
            save_file(weights, partial / WEIGHTS)
            grant(partial / WEIGHTS)
            found = {
                "kind": kind,
                "encoder": settings.model_dump(),
                "hash": "",
                "weights": file_hash(partial / WEIGHTS),
            }
            described = Description.model_validate(found | facts)
            write_sealed(partial / DESCRIPTION, described.model_dump(exclude_unset=True) | {"hash": described.identity})
    except (OSError, SafetensorError) as error:
        remedy = "make room, and start the same command again: it resumes from its last checkpoint"
        raise UserError(f"{folder} cannot be written ({error}): {remedy}") from None


def describe(folder: Path, remedy: str = "restore it or train the model again") -> dict[str, Any] | None:
    """Return what model.json says, with the keys of `Description`; None where the folder holds no model.

    Raises:
        UserError: the file is damaged. The message ends with `remedy`.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        return None
    found = read_settings(path, Description, f"{folder} holds no trained model", remedy)
    if found.weights is not None and found.identity != found.hash:
        raise UserError(f"{path} was altered (its hash is not that of its settings); {remedy}")
    return found.model_dump() | {"weights": found.weights or found.hash}


def check_model(folder: Path, remedy: str) -> dict[str, Any]:
    """Return the description of a model after checking that its files are those that were written.

    Raises:
        UserError: the folder holds no model, or a damaged one. The message ends with `remedy`.
    """
    description, weights = describe(folder, remedy), folder / WEIGHTS
    if description is None:
        raise UserError(f"{folder} holds no trained model; {remedy}")
    try:
        if file_hash(weights) != description["weights"]:
            raise UserError(f"{weights} is not what was written (its hash differs); {remedy}")
    except OSError as error:
        raise UserError(f"{weights} cannot be read ({error}); {remedy}") from None
    return description


def load_model(folder: Path, kinds: str | tuple[str, ...], remedy: str) -> tuple[Any, dict[str, Any]]:
    """Return the model in fp32 on the CPU, and its description.

    Raises:
        UserError: the folder holds no model of these kinds, or a damaged one. The message ends with `remedy`.
    """
    description, weights = check_model(folder, remedy), folder / WEIGHTS
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    if (kind := description["kind"]) not in kinds:
        raise UserError(f"{folder} holds a model of kind {kind!r}, not {' or '.join(map(repr, kinds))}; {remedy}")
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights} cannot be read ({error}); {remedy}") from None
    _check_finite(tensors, f"weights in {weights}", remedy)
    settings = EncoderSettings(**description["encoder"])
    try:
        outputs = max(1, len(description["labels"]))
        settings = settings.model_copy(update={"initialization": "bert"})  # no profile: weights follow
        model = build_model(kind, settings, outputs=outputs)
        model.load_state_dict(tensors)
    except (RuntimeError, TypeError):  # torch raises them where sizes do not fit, or are too large to allocate
        raise UserError(f"{folder / DESCRIPTION} gives other sizes than {weights} has; {remedy}") from None
    return model, description


def _check_finite(weights: dict[str, Tensor], what: str, remedy: str) -> None:
    if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise UserError(f"{what} are not finite ({bad[0]}); {remedy}")
