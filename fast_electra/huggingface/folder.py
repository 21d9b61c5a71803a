"""A directory of Hugging Face: how it is read, and what is refused. No pickle, no remote code, no network."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from fast_electra.files import file_hash, seal
from fast_electra.settings import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SAFE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
DROPOUTS = (  # names that configs of transformers have for a rate
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_dropout", "attention_dropout", "dropout"),
    *("embedding_dropout", "mlp_dropout", "classifier_dropout", "classifier_dropout_prob"),
)
_UNREAD = {"_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"}  # of a config


def holds_model(folder: Path) -> bool:
    """Return whether a folder's config.json is one of Hugging Face."""
    try:
        return "model_type" in json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def quiet_transformers(folder: Path) -> Any:
    """Return the package transformers, which then prints neither warnings nor progress.

    Raises:
        UserError: it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(f"{folder} needs the package transformers: pip install 'fast_electra[hf]'") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def check_safe(folder: Path, weights: bool = True) -> None:
    """Refuse a directory whose model is not whole, and one without weights in safetensors if they are wanted.

    Raises:
        UserError: the message names what is there instead.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: download the model, and name its directory")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is no model of Hugging Face ({CONFIG} is missing): name the directory of one")
    if "model_type" not in read_config(folder):
        if holds_model(folder / "model"):
            raise UserError(f"{folder} is a run folder: name the model in it, {folder / 'model'}")
        raise UserError(f"{folder} is no model of Hugging Face ({CONFIG} has no model_type): name the directory of one")
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} holds an adapter and no whole model: merge it into its model first")
    if weights and not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        which = f"only {pickles[0]}, a pickle, which is never loaded" if pickles else "no weights"
        remedy = "save the model with transformers' save_pretrained, which writes safetensors"
        raise UserError(f"{folder} holds {which}; it needs {WEIGHTS}: {remedy}")


def read_config(place: Path) -> dict[str, Any]:
    """Return what config.json of a directory says, or a file like it.

    Raises:
        UserError: it cannot be read, or is that of a quantized model.
    """
    path = place / CONFIG if place.is_dir() else place
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): restore it") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} cannot be read (it is no object of JSON): restore it")
    if config.get("quantization_config"):
        raise UserError(f"{place} holds a quantized model, which cannot be used here: name the original one")
    return config


def open_config(place: Path) -> "PreTrainedConfig":
    """Return the config of a directory, or of a file like its config.json.

    Raises:
        UserError: transformers cannot read it, or knows no such model.
    """
    transformers = quiet_transformers(place)
    try:
        config: PreTrainedConfig = transformers.AutoConfig.from_pretrained(place, **SAFE)
    except Exception as error:  # whatever a damaged file makes of transformers' code
        raise _not_loaded(place, error) from None
    return config


def load(auto: str, folder: Path, config: "PreTrainedConfig") -> tuple["PreTrainedModel", dict[str, Any]]:
    """Return a model in fp32 on the CPU, in eval mode, and what transformers says of its keys.

    Args:
        auto: name of a class of transformers, such as `AutoModel`.
        folder: a directory that `check_safe` let pass.
        config: its config.

    Raises:
        UserError: transformers cannot load it, or a weight has another size or is not finite.
    """
    transformers = quiet_transformers(folder)
    try:
        model, info = getattr(transformers, auto).from_pretrained(
            folder, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **SAFE
        )
    except Exception as error:  # whatever a damaged file makes of transformers' code
        raise _not_loaded(folder, error) from None
    if mismatched := sorted(map(str, info["mismatched_keys"])):
        raise UserError(f"{folder}: weights have other sizes than its config says ({mismatched[0]}): restore its files")
    check_finite(folder, model)
    return model.eval(), info


def new_model(auto: str, place: Path, config: "PreTrainedConfig") -> "PreTrainedModel":
    """Return a model of new weights in fp32, which torch's generator determines; see `load` for the arguments."""
    transformers = quiet_transformers(place)
    try:
        model: PreTrainedModel = getattr(transformers, auto).from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever a config makes of transformers' code
        raise _not_loaded(place, error) from None
    return model.float()


def set_dropout(config: "PreTrainedConfig", rate: float) -> None:
    """Give all rates of dropout in a config one value."""
    for name in DROPOUTS:
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, rate)


def check_encoder(folder: Path, model: "PreTrainedModel", info: dict[str, Any]) -> None:
    """Refuse an encoder whose files lack weights. A new head lacks them rightly, and so does a pooler.

    Args:
        folder: where the model is from.
        model: an encoder, alone or below a head.
        info: what transformers said of its keys.
    """
    inside = "" if model.base_model is model else model.base_model_prefix + "."
    for what, names in (("lacks weights of", info["missing_keys"]), ("has other sizes of", info["mismatched_keys"])):
        keys = [name if isinstance(name, str) else name[0] for name in names]
        if found := sorted(key for key in keys if key.startswith(inside) and "pooler." not in key):
            raise UserError(f"{folder} {what} its encoder ({len(found)}, e.g. {found[0]}): restore its files")


def check_padding(folder: Path, config: "PreTrainedConfig", pad_id: int) -> None:
    """Refuse a trained model that pads with another token than the corpus's tokenizer, whose id is given.

    Some models count positions by the tokens that are not this one.
    """
    if (its := getattr(config, "pad_token_id", None)) not in (None, pad_id):
        raise UserError(
            f"{folder} pads with token {its}, and the tokenizer of the corpus with {pad_id}: {own_tokenizer(folder)}"
        )


def own_tokenizer(folder: Path) -> str:
    """Return the remedy for a corpus whose tokenizer is not that of a model."""
    return f"use the corpus with the model's own tokenizer (`fast-electra corpus --tokenizer {folder}`)"


def check_finite(folder: Path, model: "PreTrainedModel") -> None:
    """Refuse weights that are not finite."""
    bad = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if bad:
        raise UserError(f"weights in {folder} are not finite ({bad[0]}): restore its files")


def tensors_of(folder: Path, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return those tensors of a directory's safetensors whose names end with one of `names`, in fp32."""
    found = dict[str, torch.Tensor]()
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as weights:
                found |= {key: weights.get_tensor(key).float() for key in weights.keys() if key.endswith(names)}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} cannot be read ({first_line(error)}): restore it") from None
    return found


def identity(place: Path) -> str:
    """Return the hash of all that determines what a model computes: its config, and the files of its weights."""
    read = {key: value for key, value in read_config(place).items() if key not in _UNREAD}
    return seal({"config": read, "weights": [file_hash(file) for file in sorted(place.glob("*.safetensors"))]})


def _not_loaded(place: Path, error: Exception) -> UserError:
    import transformers

    what = f"{type(error).__name__}: {first_line(error)[:200]}"
    version, remedy = transformers.__version__, "restore its files, or name another model"
    return UserError(f"{place} cannot be loaded by transformers {version} ({what}): {remedy}")
