"""p(x_hat): the interface of everything that draws replacements.

The curriculum makes a distribution easier or harder by one number, its `strength`, which falls through training: the
temperature T (Eq. 1), or gamma (E.2, E.3).
"""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from fast_electra.batch import Draws, MaskedBatch
from fast_electra_kernels import Pieces


class Range(NamedTuple):
    """Name of a strength, the value it falls to, the highest value that it may have, and its default initial value."""

    parameter: str
    floor: float
    highest: float
    initial: float


TEMPERATURE = Range("temperature", floor=1.0, highest=float("inf"), initial=2.0)  # C.1
GAMMA = Range("gamma", floor=0.0, highest=1.0, initial=1.0)  # E.3: the easy distribution alone


def axis_position(parameter: str | None, strength: float) -> float:
    """Return the position of a strength on the axis along which log-scores are linear.

    It is 1/T for a temperature (Eq. 1) and gamma itself for a gamma (E.2); 0 if there is no curriculum. It is rounded
    to float32, in which scores are computed, so that online training and a store agree on it to the bit.
    """
    if parameter is None:
        return 0.0
    return float(np.float32(1.0 / strength if parameter == "temperature" else strength))


class Distribution(Protocol):
    """A distribution over replacements."""

    parameter: str | None  # "temperature" or "gamma"; None if it has no curriculum and ignores the strength
    floor: float  # the value that its strength falls to: 1 for a temperature, 0 for a gamma

    def sample(self, masked: MaskedBatch, strength: float) -> Draws:
        """Draw one token for each masked position, with the positions' own keys."""
        ...


@runtime_checkable
class LinearDistribution(Distribution, Protocol):
    """A distribution whose log-scores are linear on an axis, so that an offline store can hold all its draws.

    With the noise of a position fixed, the winning token is then an upper envelope of lines: a few pieces.
    """

    def pieces(self, masked: MaskedBatch, low: float, high: float) -> Pieces:
        """Return the draws at every position of the axis in [low, high]; see `axis_position`."""
        ...
