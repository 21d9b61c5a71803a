"""The paper's Tables 2 and 3 as named presets, and some others: values of `fast_electra` that a config may omit.

`base` and `large` are the paper's. `small` has ELECTRA-small's size (Clark et al., 2020). `tiny` is for trying things
on two CPU cores; docs/tiny.md says where it departs from the paper. `continue` has no model of its own: it goes on
training an existing encoder, which `model.huggingface` names. What DeepSpeed's keys set (batch, optimizer,
learning rate, warm-up, clipping, precision, ZeRO) is in ds_configs/.
"""

import copy
from typing import Any

_BASE = {
    "vocabulary_size": 128_000,
    "hidden_size": 768,
    "ffn_size": 3072,
    "heads": 12,
    "relative_buckets": 32,
    "relative_max_distance": 128,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_checkpointing": True,
}
_LARGE = _BASE | {
    "hidden_size": 1024,
    "ffn_size": 4096,
    "heads": 16,
    "relative_buckets": 128,
    "relative_max_distance": 256,
}
_SMALL = _BASE | {
    "vocabulary_size": 30_522,
    "hidden_size": 256,
    "embedding_size": 128,
    "ffn_size": 1024,
    "heads": 4,
    "activation_checkpointing": False,
}
_TINY = {
    "vocabulary_size": 2048,
    "hidden_size": 64,
    "ffn_size": 256,
    "heads": 4,
    "relative_start": "local",
    "initial_std": 0.1,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}

# Encoder, numbers of layers of main model and auxiliary (Table 2: the layers are alike), sequence length, updates, and
# the loss weight lambda of joint training (Table 3; ELECTRA's for the sizes that the paper does not have).
_SIZES: dict[str, tuple[dict[str, Any], int, int, int, int, float]] = {
    "tiny": (_TINY, 3, 1, 64, 1400, 50.0),
    "small": (_SMALL, 12, 4, 128, 1_000_000, 50.0),
    "base": (_BASE, 12, 4, 512, 125_000, 70.0),
    "large": (_LARGE, 24, 6, 512, 125_000, 50.0),
}

_CONTINUE = {
    "updates": 20_000,
    "model": {"huggingface": None},
    "corpus": {"sequence_length": 512},
    "curriculum": {"schedule": "exponential"},
}

NAMES = (*_SIZES, "continue")
OBJECTIVES = ("rtd", "mlm", "joint")


def recipe(name: str, objective: str) -> dict[str, Any]:
    """Return the preset of a name. Its `model` is the auxiliary for objective mlm, and else the main model."""
    if name == "continue":
        return copy.deepcopy(_CONTINUE)
    encoder, main, auxiliary, length, updates, loss_weight = _SIZES[name]
    preset: dict[str, Any] = {
        "updates": updates,
        "model": {**encoder, "layers": auxiliary if objective == "mlm" else main},
        "corpus": {"sequence_length": length},
    }
    if objective == "rtd":
        preset["curriculum"] = {"schedule": "exponential"}  # C.1; where it begins follows from what is scheduled
    if objective == "joint":
        preset["joint"] = {"loss_weight": loss_weight, "auxiliary_layers": auxiliary}
    return preset
