"""Heads for replaced tokens in files of weights: under which names their layers lie there."""

from pathlib import Path

from torch import Tensor

from fast_electra.huggingface.folder import tensors_of
from fast_electra.settings import UserError

Names = dict[str, str]  # the name of a weight in `model.heads`, and its name in a file


def _names(**layers: str) -> Names:
    return {f"{ours}.{part}": f"{its}.{part}" for ours, its in layers.items() for part in ("weight", "bias")}


ELECTRA = _names(
    transform="discriminator_predictions.dense",
    output="discriminator_predictions.dense_prediction",
)
DEBERTA = _names(  # DeBERTaV3's, which transformers does not read
    norm="mask_predictions.LayerNorm",
    transform="mask_predictions.dense",
    output="mask_predictions.classifier",
)
OURS = _names(transform="rtd_head.transform", output="rtd_head.output")  # what a run adds to any other encoder
EXPORTED = _names(transform="transform", output="output")  # what `fast-electra export` adds
HEADS = (ELECTRA, DEBERTA, OURS, EXPORTED)


def head_of(folder: Path) -> tuple[Names, dict[str, Tensor]] | None:
    """Return the trained head of a directory, in fp32 and under our names; None if it has none.

    Raises:
        UserError: a part of it is missing or not finite.
    """
    held = tensors_of(folder, tuple(its for names in HEADS for its in names.values()))
    for names in HEADS:
        if names["output.weight"] not in held and names["output.bias"] not in held:
            continue
        if lacking := sorted(its for its in names.values() if its not in held):
            raise UserError(f"{folder} lacks a weight of its head ({lacking[0]}): restore its files")
        if bad := sorted(its for its in names.values() if not held[its].isfinite().all()):
            raise UserError(f"weights in {folder} are not finite ({bad[0]}): restore its files")
        return names, {ours: held[its] for ours, its in names.items()}
    return None
