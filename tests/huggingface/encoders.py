"""Small encoders of transformers with weights that no training has seen, saved to disk."""

from pathlib import Path
from typing import Any

import torch

from fast_electra.huggingface.settings import HuggingFaceSettings
from fast_electra.model.heads import Discriminator
from fast_electra.model.huggingface import open_main_model

V, LENGTH, PAD = 120, 40, 0
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
DEBERTA = SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
DEBERTA |= {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True, "type_vocab_size": 0}
IDS = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
KINDS: dict[str, dict[str, Any]] = {  # the six that are trained
    "Bert": SIZES,
    "Roberta": SIZES,
    "DebertaV2": DEBERTA,
    "ModernBert": SIZES | IDS,
    "Electra": SIZES | {"embedding_size": 16},
    "MPNet": SIZES,
}


def config_of(family: str, **changes: Any) -> Any:
    import transformers

    sizes = KINDS.get(family, {})
    return getattr(transformers, f"{family}Config")(vocab_size=V, **{"pad_token_id": PAD} | sizes | changes)


def write(folder: Path, family: str, kind: str = "Model", std: float = 0.2, **changes: Any) -> Path:
    """Write a directory: every weight is shaken, norms and biases too."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, f"{family}{kind}")(config_of(family, **changes))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * std)
    model.save_pretrained(folder)
    return folder


def opened(place: Path, seed: int = 3, size: int = V, length: int = LENGTH, **settings: Any) -> Discriminator:
    """Open a directory as a main model."""
    return notes_of(place, seed, size, length, **settings)[0]


def notes_of(
    place: Path, seed: int = 3, size: int = V, length: int = LENGTH, **settings: Any
) -> tuple[Discriminator, list[str]]:
    chosen = HuggingFaceSettings(huggingface=str(place), **settings)
    return open_main_model(chosen, size, PAD, length, seed)
