"""Schedules of the curriculum: u, the fraction of updates done, to the curriculum's value (Eq. 2, section E.2).

Every schedule falls from 1 at u = 0; the value runs between `initial` and the floor of what is scheduled, which is
1 for the temperature and 0 for every other parameter of an augmentation.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fast_electra.settings import Settings, one_of


def exponential(u: float, rate: float) -> float:
    """exp(-u / tau), Eq. 2; `rate` is tau: a smaller one falls faster."""
    return math.exp(-u / rate)


def polynomial(u: float, rate: float) -> float:
    """(1 - u)^tau, E.2; a larger `rate` falls faster."""
    return (1.0 - u) ** rate


def stepwise(u: float, rate: float) -> float:
    """1 - floor(u tau) / tau, E.2; `rate` is the number of equal steps down."""
    return 1.0 - math.floor(u * rate + 1e-9) / rate  # 0.29 * 100 falls just short of 29


def constant(u: float, rate: float) -> float:
    """Always 1, E.2; with `initial` 1 the temperature is 1: the fixed auxiliary of D.2."""
    return 1.0


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "exponential": exponential,
    "polynomial": polynomial,
    "stepwise": stepwise,
    "constant": constant,
}


# tau unless given: the paper's C.1 for the first; it prints none for the others. `constant` has no use for one.
RATES = {"exponential": 0.1, "polynomial": 2.0, "stepwise": 4.0, "constant": 0.1}


class CurriculumSettings(Settings):
    """How the curriculum's value falls through pre-training. Defaults: the paper's C.1, for the temperature."""

    schedule: Annotated[str, one_of(SCHEDULES)] = "exponential"
    initial: float = Field(default=2.0, ge=0.0, allow_inf_nan=False)  # T0 of Eq. 2, gamma_max of E.2
    rate: float = Field(default=0.1, gt=0.0, allow_inf_nan=False)  # tau
    per: Literal["update", "epoch"] = "update"  # `epoch` holds the value through each epoch, see section 4

    @model_validator(mode="before")
    @classmethod
    def _usual_rate(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("schedule") in RATES and given.get("rate") is None:
            return given | {"rate": RATES[given["schedule"]]}
        return given

    @model_validator(mode="after")
    def _whole_steps(self) -> "CurriculumSettings":
        if self.schedule == "stepwise" and self.rate != int(self.rate):
            raise ValueError(f"rate is the number of steps of the stepwise schedule: a whole number, not {self.rate}")
        return self

    def strength(self, u: float, floor: float = 1.0) -> float:
        """The value at the fraction u in [0, 1] of the updates: Eq. 2 for the temperature, whose floor is 1."""
        return floor + (self.initial - floor) * SCHEDULES[self.schedule](u, self.rate)

    def fraction(self, update: int, updates: int, batch: int, epoch: int) -> float:
        """u at update 1 ... updates: update / updates, or that of the beginning of the epoch the update begins in.

        Args:
            batch: sequences of an update.
            epoch: sequences of an epoch.
        """
        if self.per == "update":
            return update / updates
        return (update - 1) * batch // epoch * epoch / (updates * batch)
