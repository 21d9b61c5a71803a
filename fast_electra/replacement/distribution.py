"""The one interface of the house: p(x_hat), from which the tokens at masked positions are drawn."""

from typing import Protocol

from torch import Tensor

from fast_electra.batch import MaskedBatch


class Distribution(Protocol):
    """A distribution over replacements that the curriculum makes easier or harder.

    `floor` is the value to which its curriculum falls: 1 for a temperature, 0 for every other parameter.
    """

    floor: float

    def sample(self, masked: MaskedBatch, value: float) -> Tensor:
        """One token for each masked position, int64 [M], drawn with the positions' own keys."""
        ...
