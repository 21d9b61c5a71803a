"""How many parameters a model has: counted on the model itself, built without memory."""

from functools import cache

import torch

from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.files import KINDS
from fast_electra.model.heads import count_parameters
from fast_electra.model.joint import JointModel


@cache
def parameters(settings: EncoderSettings, kind: str) -> int:
    """Of a model of `kind` ("rtd" or "mlm"), tied ones once."""
    with torch.device("meta"):  # shapes without numbers; nothing can be profiled on it
        return count_parameters(KINDS[kind](settings.model_copy(update={"initialization": "bert"})))


def embedding_parameters(settings: EncoderSettings) -> int:
    """Of the token embedding alone, the column "Embed" of Table 2."""
    return settings.vocabulary_size * (settings.embedding_size or settings.hidden_size)


@cache
def joint_parameters(settings: EncoderSettings, auxiliary_layers: int, sharing: str) -> int:
    """Of the two models that are trained together, a shared embedding once."""
    with torch.device("meta"):
        plain = settings.model_copy(update={"initialization": "bert"})
        return count_parameters(JointModel(plain, auxiliary_layers, sharing))
