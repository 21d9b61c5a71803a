"""The main model with an encoder of Hugging Face: which head it gets, and how both are saved."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fast_electra.huggingface.main_model import HuggingFaceEncoder, open_encoder
from fast_electra.huggingface.rtd_head import DEBERTA, ELECTRA, OURS, head_of
from fast_electra.huggingface.settings import HuggingFaceSettings
from fast_electra.model.heads import DebertaDiscriminator, Discriminator
from fast_electra.settings import UserError


def open_main_model(
    settings: HuggingFaceSettings, size: int, pad_id: int, length: int, seed: int
) -> tuple[Discriminator, list[str]]:
    """Open an encoder of Hugging Face with its own head for replaced tokens, or a new one if it has none.

    See `open_encoder` for the arguments, the notes that are returned, and what is refused.
    """
    encoder, notes = open_encoder(settings, size, pad_id, length, seed)
    place = Path(settings.huggingface)
    scratch = place.is_file() or settings.initialization == "random"
    found = None if scratch else head_of(place)
    if found and found[0] is DEBERTA:
        model: Discriminator = DebertaDiscriminator(encoder, getattr(encoder.config, "layer_norm_eps", 1e-7))
    else:
        model = Discriminator(encoder, _activation(encoder) if _is_electra(encoder) else F.gelu)
    if found is None:
        if not scratch:
            notes.append(f"{place} has no head for replaced tokens: a new one is trained")
        generator, std = torch.Generator().manual_seed(seed), getattr(encoder.config, "initializer_range", 0.02)
        for layer in (model.transform, model.output):
            torch.nn.init.normal_(layer.weight, 0.0, std, generator=generator)
            torch.nn.init.zeros_(layer.bias)
        return model, notes
    names, head = found
    if wrong := [names[name] for name, tensor in head.items() if tensor.shape != model.get_parameter(name).shape]:
        raise UserError(f"{place}: weights have other sizes than its config says ({wrong[0]}): restore its files")
    model.load_state_dict(head, strict=False)
    notes.append(f"{place} has a head for replaced tokens, whose training goes on ({names['output.weight']})")
    return model, notes


def save_main_model(place: Path, model: Discriminator, weights: dict[str, Tensor], **facts: Any) -> None:
    """Write a directory of Hugging Face from the weights of a main model by name; see `HuggingFaceEncoder.save`."""
    encoder = model.encoder
    assert isinstance(encoder, HuggingFaceEncoder)
    inside = "encoder.model."
    inner = {name.removeprefix(inside): weight for name, weight in weights.items() if name.startswith(inside)}
    head = {name: weight for name, weight in weights.items() if not name.startswith(inside)}
    electra = _is_electra(encoder)
    names = ELECTRA if electra else DEBERTA if isinstance(model, DebertaDiscriminator) else OURS
    auto = "AutoModelForPreTraining" if electra else "AutoModel"
    encoder.save(place, inner, {names[name]: weight for name, weight in head.items()}, auto, **facts)


def _is_electra(encoder: HuggingFaceEncoder) -> bool:
    return bool(encoder.config.model_type == "electra")


def _activation(encoder: HuggingFaceEncoder) -> Any:
    from transformers.activations import ACT2FN

    return ACT2FN[encoder.config.hidden_act]
