"""Small models of transformers, saved to disk, and opened as main models.

They have real architectures, and weights in which nothing hides: no zero bias, no unit norm.
"""

from pathlib import Path
from typing import Any

import torch
import transformers

from fast_electra.huggingface.settings import HuggingFaceSettings
from fast_electra.model.heads import Discriminator
from fast_electra.model.huggingface import open_main_model

LENGTH, PAD = 40, 0
KINDS = ("bert", "roberta", "deberta-v2", "modernbert", "electra", "mpnet")
V = 211  # rows; the tokenizer of `words` has 200 entries
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_SIZES |= {"max_position_embeddings": 72, "type_vocab_size": 2, "vocab_size": V}
_DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
_DEBERTA |= {"position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True, "type_vocab_size": 0}
_XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "vocab_size": V, "pad_token_id": 0}
_DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "vocab_size": V, "max_position_embeddings": 72}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "electra": {"embedding_size": 16},
    "distilbert": _DISTIL,
    "albert": {"embedding_size": 16},
    "mpnet": {},
    "deberta": _DEBERTA,
    "deberta-v2": _DEBERTA,
    "modernbert": {"local_attention": 16, "global_attn_every_n_layers": 2},
    "nomic_bert": {},
    "roformer": {"embedding_size": 16},
    "xlm": _XLM,
    "esm": {"mask_token_id": 4, "position_embedding_type": "rotary"},
    "xlm-roberta": {},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 24},
    "squeezebert": {"embedding_size": 32},
    "big_bird": {},
    "longformer": {"attention_window": 8},
}


def config_of(family: str, **more: Any) -> Any:
    """Return the config of a small model; [PAD] is 0. A family that is not listed has no sizes but `more`."""
    if family not in FAMILIES:
        return transformers.AutoConfig.for_model(family, **{"vocab_size": V, "pad_token_id": PAD} | more)
    base = transformers.AutoConfig.for_model(family)
    known = {name: value for name, value in _SIZES.items() if hasattr(base, name)}
    settled = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    return transformers.AutoConfig.for_model(family, **(known | settled | FAMILIES[family] | more))


def shaken(model: Any, seed: int = 0) -> Any:
    """Move every weight of a model, and return it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * (0.3 if weight.dim() == 1 else 0.1))
    return model.eval()


def saved(folder: Path, family: str, auto: str = "AutoModel", seed: int = 0, **more: Any) -> Any:
    """Write a model to a folder, and return it."""
    torch.manual_seed(seed)
    model = shaken(getattr(transformers, auto).from_config(config_of(family, **more)), seed)
    model.save_pretrained(folder)
    return model


def write(folder: Path, family: str, auto: str = "AutoModel", **more: Any) -> Path:
    """Write a model to a folder."""
    saved(folder, family, auto, **more)
    return folder


def masked_lm(folder: Path, family: str, seed: int = 0, **more: Any) -> Any:
    """Write a masked language model to a folder, and return it."""
    return saved(folder, family, "AutoModelForMaskedLM", seed, **more)


def opened(place: Path, seed: int = 3, size: int = V, length: int = LENGTH, **settings: Any) -> Discriminator:
    """Open a directory as a main model."""
    return notes_of(place, seed, size, length, **settings)[0]


def notes_of(
    place: Path, seed: int = 3, size: int = V, length: int = LENGTH, **settings: Any
) -> tuple[Discriminator, list[str]]:
    """Open a directory as a main model, and return what a user is told of it too."""
    chosen = HuggingFaceSettings(huggingface=str(place), **settings)
    return open_main_model(chosen, size, PAD, length, seed)
