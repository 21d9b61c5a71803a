"""Schedules of the curriculum: from u, the fraction of updates done, to its strength (Eq. 2, section E.2).

Every schedule starts at 1 and falls. So the strength falls from `initial` towards its floor: 1 for a temperature, 0 for
a gamma.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fast_electra.settings import Settings, one_of


def exponential(u: float, rate: float) -> float:
    """Return exp(-u / tau), Eq. 2. The rate is tau: a smaller one falls faster."""
    return math.exp(-u / rate)


def polynomial(u: float, rate: float) -> float:
    """Return (1 - u)^tau, E.2. The rate is tau: a larger one falls faster."""
    return (1.0 - u) ** rate


def stepwise(u: float, rate: float) -> float:
    """Return 1 - floor(u tau) / tau, E.2. The rate is tau, the number of equal steps down."""
    return 1.0 - math.floor(u * rate + 1e-9) / rate  # 0.29 * 100 falls just short of 29


def constant(u: float, rate: float) -> float:
    """Return 1, E.2. With `initial` 1 the temperature is always 1: the fixed auxiliary of D.2."""
    return 1.0


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "exponential": exponential,
    "polynomial": polynomial,
    "stepwise": stepwise,
    "constant": constant,
}
# Default of tau. The first is the paper's (C.1). The paper prints none for the others, and `constant` ignores it.
_RATES = {"exponential": 0.1, "polynomial": 2.0, "stepwise": 4.0, "constant": 0.1}


class CurriculumSettings(Settings):
    """How the strength falls through pre-training. The defaults are the paper's for a temperature (C.1)."""

    schedule: Annotated[str, one_of(SCHEDULES)] = "exponential"
    initial: float = Field(default=2.0, ge=0.0)  # T0 of Eq. 2, gamma_max of E.2
    rate: float = Field(default=0.1, gt=0.0)  # tau
    per: Literal["update", "epoch"] = "update"  # `epoch` keeps it constant through each epoch (section 4)

    @model_validator(mode="before")
    @classmethod
    def _usual_rate(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("schedule") in _RATES and given.get("rate") is None:
            return given | {"rate": _RATES[given["schedule"]]}
        return given

    @model_validator(mode="after")
    def _whole_steps(self) -> "CurriculumSettings":
        if self.schedule == "stepwise" and self.rate != int(self.rate):
            steps = "rate, the number of steps of the schedule stepwise,"
            raise ValueError(f"{steps} must be a whole number, not {self.rate}")
        return self

    def strength(self, u: float, floor: float = 1.0) -> float:
        """Return the strength at the fraction u in [0, 1] of the updates: Eq. 2 for a temperature, whose floor is 1."""
        return floor + (self.initial - floor) * SCHEDULES[self.schedule](u, self.rate)

    def fraction(self, update: int, updates: int, batch: int, epoch: int) -> float:
        """Return u at an update, 1 ... `updates`: update / updates. With `per` epoch, u at the beginning of its epoch.

        An update has `batch` sequences, an epoch has `epoch`. The epoch of an update is the one in which it begins.
        """
        if self.per == "update":
            return update / updates
        return (update - 1) * batch // epoch * epoch / (updates * batch)
