"""Discriminators and auxiliaries in directories of Hugging Face: a run's own model, an export, or ELECTRA's."""

from pathlib import Path

from fast_electra.corpus.freeze import CONFIG
from fast_electra.corpus.same_tokenizer import ODD_TEXTS, difference
from fast_electra.corpus.tokenizer import Tokenizer, open_tokenizer
from fast_electra.files import read_json
from fast_electra.huggingface.folder import check_safe, holds_model
from fast_electra.huggingface.masked_lm import HuggingFaceMaskedLM, open_masked_lm
from fast_electra.huggingface.rtd_head import head_of
from fast_electra.huggingface.saved import saved_facts
from fast_electra.huggingface.settings import HuggingFaceSettings
from fast_electra.model.files import DESCRIPTION
from fast_electra.model.heads import Discriminator
from fast_electra.model.huggingface import open_main_model
from fast_electra.settings import UserError

LENGTH = 512  # of a model that nothing is said of


def existing_model(path: Path) -> Path | None:
    """Return the directory of Hugging Face that a path names, itself or as a run folder; None if it is none."""
    places = (place for place in (path, path / "model") if holds_model(place))
    return next((place for place in places if not (place / DESCRIPTION).exists()), None)


def open_discriminator(
    folder: Path, tokenizer: str | Path | None, length: int | None
) -> tuple[Discriminator, Tokenizer, int]:
    """Open the model of a directory, with its tokenizer and the length of its sequences.

    Raises:
        UserError: it is damaged, or has no head for replaced tokens.
    """
    check_safe(folder)
    if head_of(folder) is None:
        raise UserError(f"{folder} has no head for replaced tokens: name a run of objective rtd, or its model")
    if tokenizer is None and not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no tokenizer: name it, or the shards that hold it, with --tokenizer")
    opened = open_tokenizer(tokenizer or folder)
    if length is None:
        most = LENGTH if tokenizer is not None else _most_tokens(folder)
        length = saved_facts(folder, "restore it").get("sequence_length") or most
    settings = HuggingFaceSettings(huggingface=str(folder))
    model, _ = open_main_model(settings, opened.vocabulary_size, opened.pad_id, length, 0)
    return model, opened, length


def _most_tokens(folder: Path) -> int:
    """Return how many tokens the tokenizer of a directory allows, 512 at most."""
    most = read_json(folder / CONFIG).get("model_max_length")
    return min(most, LENGTH) if isinstance(most, int) and most > 2 else LENGTH


def open_auxiliary(folder: Path, tokenizer: Tokenizer, length: int) -> HuggingFaceMaskedLM:
    """Open a masked language model that draws for a discriminator with this tokenizer.

    Raises:
        UserError: it is damaged, has another tokenizer, or cannot be an auxiliary.
    """
    check_safe(folder)
    if found := difference(tokenizer, open_tokenizer(folder), ODD_TEXTS, ("the discriminator's", "the auxiliary's")):
        raise UserError(f"{folder} has another tokenizer than the discriminator: {found}; name another auxiliary")
    size, pad_id, never_drawn = tokenizer.vocabulary_size, tokenizer.pad_id, tokenizer.never_drawn
    return open_masked_lm(folder, size, pad_id, never_drawn, length)[0]
