"""What a model of transformers is asked on the CPU before it is used: tokens of a fixed pattern."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fast_electra.settings import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBED = (24, 9)  # lengths of the sequences of a probe
KEY = "fast_electra.corpus.sequence_length"  # of a pre-training's config


def probe_tokens(size: int, pad_id: int, *lengths: int) -> tuple[Tensor, ...]:
    """Return sequences of token ids below `size`, few of them special: by default a longer and a shorter one.

    None of them is the token of padding, because some models count positions without it.
    """
    sequences = tuple(torch.arange(7, 7 + 13 * length, 13) % size for length in lengths or PROBED)
    return tuple(tokens.where(tokens != pad_id, (pad_id + 1) % size) for tokens in sequences)


def differ(found: Tensor, wanted: Tensor) -> bool:
    """Return whether fp32 results differ by more than the rounding of products of other shapes."""
    return not bool((found - wanted).abs().max() <= 1e-4 * wanted.abs().max() + 1e-6)


def too_long(folder: Path, model: "PreTrainedModel", length: int, key: str) -> UserError:
    """Return the error about a model that has fewer positions than a run's sequences, whose length `key` sets."""
    most = getattr(model.config, "max_position_embeddings", "fewer")
    return UserError(
        f"{folder}: the model has {most} positions, not enough for sequences of {length} tokens: use --set {key}=N"
    )
