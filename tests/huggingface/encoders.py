"""Small encoders of transformers, saved to disk and opened as main models."""

from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface.zoo import FAMILIES, V, config_of, shaken

from fast_electra.huggingface.settings import HuggingFaceSettings
from fast_electra.model.heads import Discriminator
from fast_electra.model.huggingface import open_main_model

LENGTH, PAD = 40, 0
KINDS = ("bert", "roberta", "deberta-v2", "modernbert", "electra", "mpnet")


def write(folder: Path, family: str, auto: str = "AutoModel", **changes: Any) -> Path:
    """Write a directory whose every weight is shaken."""
    if family in FAMILIES:
        config = config_of(family, **changes)
    else:
        config = transformers.AutoConfig.for_model(family, **{"vocab_size": V, "pad_token_id": PAD} | changes)
    torch.manual_seed(0)
    shaken(getattr(transformers, auto).from_config(config)).save_pretrained(folder)
    return folder


def opened(place: Path, seed: int = 3, size: int = V, length: int = LENGTH, **settings: Any) -> Discriminator:
    """Open a directory as a main model."""
    return notes_of(place, seed, size, length, **settings)[0]


def notes_of(
    place: Path, seed: int = 3, size: int = V, length: int = LENGTH, **settings: Any
) -> tuple[Discriminator, list[str]]:
    """Open a directory as a main model, and return what a user is told of it too."""
    chosen = HuggingFaceSettings(huggingface=str(place), **settings)
    return open_main_model(chosen, size, PAD, length, seed)
