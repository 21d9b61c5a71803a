"""What the training loop knows of an objective."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from fast_electra.batch import TokenBatch
from fast_electra.huggingface.saved import check_saved
from fast_electra.model.encoder import Encoder, EncoderSettings
from fast_electra.model.files import check_model, save_model
from fast_electra.model.heads import Discriminator
from fast_electra.model.huggingface import save_main_model

Forward = Callable[..., Tensor]  # the model itself, or the DeepSpeed engine around it
Sums = dict[str, Tensor]  # float64; they add over micro-batches and ranks
Row = dict[str, float | None]  # figures under the names that metrics.jsonl has


class Export(NamedTuple):
    """A trained model to be written, and its place in the run folder."""

    folder: str
    write: Callable[..., None]  # write(folder, **facts), as `model.files.save_model` takes them
    check: Callable[[Path, str], object]  # check(folder, remedy) raises a UserError if the folder is not whole


def export(folder: str, kind: str, settings: EncoderSettings, weights: dict[str, Tensor], **facts: Any) -> Export:
    """Return one of our own models as an `Export`: see `model.files.save_model` for kind and facts."""
    write = partial(save_model, kind=kind, settings=settings, weights=weights, **facts)
    return Export(folder, write, check_model)


def export_main_model(model: Discriminator, weights: dict[str, Tensor]) -> Export:
    """Return a main model as an `Export`: one of our own, or a directory of Hugging Face as it was opened."""
    if isinstance(model.encoder, Encoder):
        return export("model", "rtd", model.encoder.settings, weights)
    return Export("model", partial(save_main_model, model=model, weights=weights), check_saved)


class Objective(Protocol):
    """A model and its loss."""

    name: str  # in a config
    parameter: str | None  # what the curriculum's strength is called in rows; None if there is no curriculum
    sources: tuple[str, ...]  # the sets that `evaluate` reads: "heldout", "reference" (training sequences), "dev" ...

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    def strength(self, u: float) -> float | None:
        """Return the curriculum's strength at the fraction u of the updates; None if there is no curriculum."""

    def loss(self, forward: Forward, batch: TokenBatch, strength: float | None) -> tuple[Tensor, Sums]:
        """Return this micro-batch's share of the global batch's mean loss, and sums for `summary`.

        The shares of all micro-batches and ranks add up to the mean.
        """

    def summary(self, sums: Sums) -> Row:
        """Return a row of metrics.jsonl from the summed sums of `loss`."""

    def evaluate(self, forward: Forward, batch: TokenBatch, strength: float | None) -> Sums:
        """Return sums for `evaluation`, from a batch of one of the evaluation sets: `batch.source` names it."""

    def evaluation(self, sums: Sums) -> Row:
        """Return an evaluation row from the summed sums of `evaluate`."""

    def exports(self, weights: dict[str, Tensor]) -> list[Export]:
        """Return the models that a finished run leaves, from the weights of `model` by parameter name."""
