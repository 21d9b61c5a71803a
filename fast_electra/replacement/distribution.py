"""The one interface of the house: p(x_hat), from which the tokens at masked positions are drawn."""

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from pydantic import Field

from fast_electra.batch import Draws, MaskedBatch
from fast_electra.settings import Settings
from fast_electra_kernels import Pieces


class Range(NamedTuple):
    """What a curriculum's value is called, where it falls to, and where it may and by default does begin."""

    parameter: str
    floor: float
    highest: float
    initial: float


TEMPERATURE = Range("temperature", floor=1.0, highest=float("inf"), initial=2.0)  # C.1
INTERPOLATION = Range("gamma", floor=0.0, highest=1.0, initial=1.0)  # E.3: from the easy distribution alone
# The paper searches each augmentation's best gamma_max and does not print it: these are ours.
RANGES: dict[str, Range] = {
    "temperature": TEMPERATURE,
    "term_frequency_interpolation": INTERPOLATION._replace(initial=0.5),
    "dropout": INTERPOLATION._replace(highest=0.99, initial=0.5),
    "attention_dropout": INTERPOLATION._replace(highest=0.99, initial=0.5),
    "drop_token": INTERPOLATION._replace(initial=0.5),
}


class ReplacementSettings(Settings):
    """What stands at the masked positions."""

    distribution: Literal[
        "auxiliary",
        "uniform",
        "term_frequency",
        "smoothed_one_hot",
        "uniform_to_smoothed_one_hot",
        "term_frequency_to_smoothed_one_hot",
    ] = "auxiliary"
    augmentation: Literal[
        "temperature", "term_frequency_interpolation", "dropout", "attention_dropout", "drop_token"
    ] = "temperature"  # of the distribution `auxiliary`
    alpha: float = Field(default=0.35, gt=0.0, lt=1.0)  # of smoothed one-hot, D.1
    store: str | None = None  # a folder of corrupted data written by launch/preprocess.py

    @property
    def range(self) -> Range:
        """Of the curriculum's value."""
        return RANGES[self.augmentation] if self.distribution == "auxiliary" else INTERPOLATION


def coordinate(parameter: str | None, value: float) -> float:
    """Where a curriculum's value stands on the axis along which log-scores are linear.

    1/T for a temperature (Eq. 1), gamma itself for the others (E.2); 0 where there is no curriculum. Rounded to
    float32, in which scores are computed: training online and from a store then agree on it to the bit.
    """
    exact = 1.0 / value if parameter == "temperature" else value if parameter == "gamma" else 0.0
    return float(np.float32(exact))


class Distribution(Protocol):
    """A distribution over replacements that the curriculum makes easier or harder.

    `parameter` names the curriculum's value, and `floor` is where it falls to: a "temperature" to 1, a "gamma" to 0.
    A distribution without a curriculum has no parameter (None), and ignores the value.
    """

    parameter: str | None
    floor: float

    def sample(self, masked: MaskedBatch, value: float) -> Draws:
        """One token for each masked position, drawn with the positions' own keys."""
        ...


@runtime_checkable
class LinearDistribution(Distribution, Protocol):
    """One whose log-scores are linear in a coordinate of the value, so that all its draws fit into an offline store.

    With the noise of a position fixed, the winning token is then an upper envelope of lines: a few pieces.
    """

    def pieces(self, masked: MaskedBatch, low: float, high: float) -> Pieces:
        """The draws at every coordinate in [low, high]; see `coordinate`."""
        ...
