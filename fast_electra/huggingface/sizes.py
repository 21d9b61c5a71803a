"""The sizes of a model of transformers in our own terms, by which its cost is estimated."""

from pathlib import Path
from typing import Any

from fast_electra.huggingface.folder import open_config


def sizes_of(place: Path) -> dict[str, Any]:
    """Return the sizes that a directory, or a file like its config.json, gives: those of `EncoderSettings`.

    Raises:
        UserError: transformers cannot read it.
    """
    config = open_config(place)

    def first(default: int, *names: str) -> int:
        found = (getattr(config, name, None) for name in names)
        return next((value for value in found if isinstance(value, int)), default)

    hidden = first(1, "hidden_size")
    embedding = first(hidden, "embedding_size", "input_embedding_size")
    heads = first(1, "num_attention_heads")
    return {
        "vocabulary_size": first(6, "vocab_size"),
        "layers": first(1, "num_hidden_layers"),
        "hidden_size": hidden,
        "ffn_size": first(4 * hidden, "intermediate_size", "hidden_dim"),
        "heads": heads if hidden % heads == 0 else 1,
        "embedding_size": None if embedding == hidden else embedding,
        "activation_checkpointing": False,
    }
