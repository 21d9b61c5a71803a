"""From a run or a model folder to a folder that transformers loads."""

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from fast_electra.export.card import model_card
from fast_electra.export.stock import MODELING, convert
from fast_electra.export.tokenizer import MARKER, write_tokenizer
from fast_electra.files import atomic_folder, grant, write_json, write_text
from fast_electra.model.files import DESCRIPTION, KINDS
from fast_electra.run_folder import CONFIG, model_in, open_trained
from fast_electra.settings import UserError

CARD = "README.md"
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
    trained = open_trained(folder, tuple(KINDS), "restore it, or train the model again", tokenizer, "--tokenizer DIR")
    length = trained.sequence_length or LEAST
    try:
        config, weights = convert(trained.model, trained.description["labels"], max(length, LEAST))
    except UserError as error:
        raise UserError(f"{folder} cannot be exported: {error}") from None
    _check_removed(output, overwrite)
    try:
        with atomic_folder(output, MARKER, overwrite) as partial:
            write_json(partial / CONFIG, config)
            save_file(weights, partial / "model.safetensors", {"format": "pt"})
            grant(partial / "model.safetensors")
            write_tokenizer(trained.tokenizer, partial, length)
            if "auto_map" in config:
                shutil.copyfile(Path(__file__).with_name(f"{MODELING}.py"), partial / f"{MODELING}.py")
            write_text(partial / CARD, model_card(config, trained, output.resolve().name, licence))
    except SafetensorError as error:  # a full disk, for one
        raise UserError(f"{output} cannot be written ({error}): make room, or choose another output") from None
    return config


def _model_folder(run: Path, part: str | None) -> Path:
    folder = model_in(run)
    if part and folder == run:
        raise UserError(f"{run} is a model folder: leave out --part, or name the run folder")
    if part:
        folder = run / part / "model"
    if not (folder / DESCRIPTION).is_file():
        if (folder / CONFIG).is_file():
            raise UserError(f"{folder} is a folder of transformers already: use it as it is")
        remedy = "--part is for a joint run" if part else "name a run that is complete, or a model folder"
        raise UserError(f"{run} holds no trained model ({folder / DESCRIPTION} is missing): {remedy}")
    return folder


def _check_removed(output: Path, overwrite: bool) -> None:
    """Refuse to remove what no export has written, such as a .git folder."""
    if overwrite and output.is_dir() and (other := sorted({path.name for path in output.iterdir()} - FILES)):
        raise UserError(f"{output} holds {other[0]}, which --overwrite would remove: move it, or choose another output")
