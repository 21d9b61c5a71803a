"""What every objective gives to the training loop."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from fast_electra.batch import TokenBatch
from fast_electra.model.encoder import EncoderSettings

Forward = Callable[..., Tensor]  # the model itself, or the DeepSpeed engine around it


class Export(NamedTuple):
    """A trained model to be written: where in the run folder, and what `model.files.save_model` wants to know."""

    folder: str
    kind: str
    settings: EncoderSettings
    weights: dict[str, Tensor]


class Objective(Protocol):
    """A model and its loss. `fit` knows nothing else of what is trained.

    `loss` returns this micro-batch's share of the global batch's mean loss (its sum over the whole batch is the mean),
    and a vector of sums that add over micro-batches and ranks; `summary` turns such sums into a row of figures.
    """

    name: str
    parameter: str | None  # what the curriculum's value is called in rows

    @property
    def model(self) -> nn.Module: ...

    @property
    def heldout_size(self) -> int:
        """How many sums `heldout_sums` returns."""
        ...

    @property
    def reference_size(self) -> int:
        """How many sums `reference_sums` returns; 0 where it need not be called."""
        ...

    def value(self, u: float) -> float | None:
        """The curriculum's value at the fraction u of the updates; None where there is no curriculum."""
        ...

    def loss(self, forward: Forward, batch: TokenBatch, value: float | None) -> tuple[Tensor, Tensor]:
        """Share of the mean loss, and sums."""
        ...

    def summary(self, sums: Tensor) -> dict[str, float | None]:
        """A row of metrics.jsonl from summed sums."""
        ...

    def heldout_sums(self, forward: Forward, batch: TokenBatch, value: float | None) -> Tensor:
        """As the sums of `loss`, on held-out sequences: float64 [heldout_size]."""
        ...

    def reference_sums(self, forward: Forward, batch: TokenBatch, value: float | None) -> Tensor:
        """What a held-out figure needs from training sequences: float64 [reference_size]."""
        ...

    def heldout_summary(self, sums: Tensor, reference: Tensor) -> dict[str, float | None]:
        """An evaluation row from summed held-out and reference sums."""
        ...

    def exports(self, weights: dict[str, Tensor]) -> list[Export]:
        """What a finished run leaves, from the weights of `model` by parameter name."""
        ...
