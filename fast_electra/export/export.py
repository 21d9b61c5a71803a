"""From a run or a model folder to a folder that transformers loads."""

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from fast_electra.corpus.tokenizer import MODEL, Tokenizer
from fast_electra.export.card import RunRecord, model_card
from fast_electra.export.stock import MODELING, convert
from fast_electra.export.tokenizer import MARKER, write_tokenizer
from fast_electra.files import atomic_folder, grant, read_settings, write_json, write_text
from fast_electra.model.files import DESCRIPTION, KINDS, load_model
from fast_electra.settings import UserError

CONFIG, CARD = "config.json", "README.md"
FILES = {CONFIG, CARD, MARKER, "model.safetensors", "tokenizer.json", "special_tokens_map.json", f"{MODELING}.py"}
LEAST = 512  # tokens that every export takes, also if it was trained with shorter sequences


def export(
    run: Path,
    output: Path,
    tokenizer: Path | None = None,
    part: str | None = None,
    licence: str = "unknown",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a trained model for transformers in one step, in fp32, and return what its config.json says.

    Args:
        run: a run folder, or a model folder.
        output: the folder to write.
        tokenizer: its folder (default: the one that the run's config names).
        part: `auxiliary` for that part of a joint run.
        licence: of the corpus, for the model card.
        overwrite: replace an older export.

    Raises:
        UserError: there is no such model, it is damaged, its tokenizer is missing or another, no stock class can hold
            it, or `output` cannot be written.
    """
    folder = _model_folder(run, part)
    model, description = load_model(folder, tuple(KINDS), "restore it, or train the model again")
    record = _run_record(folder)
    length = record.fast_electra.length
    ours = _tokenizer(folder, description, tokenizer, record)
    try:
        config, weights = convert(model, description["labels"], max(length, LEAST))
    except UserError as error:
        raise UserError(f"{folder} cannot be exported: {error}") from None
    _check_removed(output, overwrite)
    try:
        with atomic_folder(output, MARKER, overwrite) as partial:
            write_json(partial / CONFIG, config)
            save_file(weights, partial / "model.safetensors", {"format": "pt"})
            grant(partial / "model.safetensors")
            write_tokenizer(ours, partial, length)
            if "auto_map" in config:
                shutil.copyfile(Path(__file__).with_name(f"{MODELING}.py"), partial / f"{MODELING}.py")
            card = model_card(config, description, record, name=output.resolve().name, licence=licence)
            write_text(partial / CARD, card)
    except SafetensorError as error:  # a full disk, for one
        raise UserError(f"{output} cannot be written ({error}): make room, or choose another output") from None
    return config


def _model_folder(run: Path, part: str | None) -> Path:
    if (run / DESCRIPTION).is_file():
        if part:
            raise UserError(f"{run} is a model folder: leave out --part, or name the run folder")
        return run
    folder = run / (part or "") / "model"
    if (folder / CONFIG).is_file():
        raise UserError(f"{folder} is a folder of transformers already: use it as it is")
    if not (folder / DESCRIPTION).is_file():
        remedy = "--part is for a joint run" if part else "name a run that is complete, or a model folder"
        raise UserError(f"{run} holds no trained model ({folder / DESCRIPTION} is missing): {remedy}")
    return folder


def _run_record(folder: Path) -> RunRecord:
    """Read the config of the run that a model folder belongs to: `RUN/model` or `RUN/auxiliary/model`."""
    folder = folder.resolve()
    path = folder.parent / CONFIG
    if folder.parent.name == "auxiliary" and not path.exists():
        path = folder.parent.parent / CONFIG
    if folder.name != "model" or not path.exists():
        return RunRecord()
    return read_settings(path, RunRecord, "", "restore it, or export a copy of the model folder with --tokenizer DIR")


def _named_tokenizer(record: RunRecord) -> str | None:
    """Return the folder of the tokenizer that a run names, or else the run that it was fine-tuned from."""
    for _ in range(10):  # a fine-tuned model can be fine-tuned again
        run = record.fast_electra
        if run.corpus or run.tokenizer or not run.pretrained:
            return run.corpus.tokenizer if run.corpus else run.tokenizer
        folders = (Path(run.pretrained), Path(run.pretrained) / "model")
        record = next((_run_record(folder) for folder in folders if (folder / DESCRIPTION).is_file()), RunRecord())
    return None


def _tokenizer(folder: Path, description: dict[str, Any], given: Path | None, record: RunRecord) -> Tokenizer:
    remedy, named = "name its folder with --tokenizer DIR", given or _named_tokenizer(record)
    if named is None:
        raise UserError(f"no run says where the tokenizer of {folder} is: {remedy}")
    if given is None and not (Path(named) / MODEL).is_file():
        raise UserError(f"the run's config names the tokenizer {named}, and there is none here: {remedy}")
    found = Tokenizer.load(named)
    if found.hash != description["tokenizer"]:
        hashes = f"sha256 {found.hash[:12]}, and the model's has {description['tokenizer'][:12] or 'none'}"
        raise UserError(f"{named} is not the tokenizer of {folder} ({hashes}): {remedy}")
    if (size := description["encoder"]["vocabulary_size"]) != found.vocabulary_size:
        raise UserError(f"{folder} has {size:,} tokens and its tokenizer {found.vocabulary_size:,}: train it again")
    return found


def _check_removed(output: Path, overwrite: bool) -> None:
    """Refuse to remove what no export has written, such as a .git folder."""
    if overwrite and output.is_dir() and (other := sorted({path.name for path in output.iterdir()} - FILES)):
        raise UserError(f"{output} holds {other[0]}, which --overwrite would remove: move it, or choose another output")
