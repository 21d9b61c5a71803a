"""Schedules at named updates, computed by hand from Eq. 2 and E.2."""

import math

import pytest
from pydantic import ValidationError

from fast_electra.curriculum import CurriculumSettings

UPDATES = 125_000


@pytest.mark.parametrize(
    ("update", "temperature"),
    [(0, 2.0), (12_500, 1 + math.exp(-1)), (62_500, 1 + math.exp(-5)), (125_000, 1 + math.exp(-10))],
)
def test_default_is_equation_2(update: int, temperature: float) -> None:
    assert CurriculumSettings().strength(update / UPDATES) == temperature


@pytest.mark.parametrize(
    ("schedule", "rate", "u", "value"),
    [
        ("exponential", 0.5, 0.5, 1 + 3 * math.exp(-1)),
        ("polynomial", 2.0, 0.5, 1 + 3 * 0.25),
        ("polynomial", 2.0, 1.0, 1.0),
        ("stepwise", 4.0, 0.0, 4.0),
        ("stepwise", 4.0, 0.24, 4.0),
        ("stepwise", 4.0, 0.25, 1 + 3 * 0.75),
        ("stepwise", 4.0, 1.0, 1.0),
        ("stepwise", 100.0, 0.29, 1 + 3 * 0.71),  # 0.29 * 100 < 29 in floating point
        ("constant", 1.0, 0.7, 4.0),
    ],
)
def test_other_schedules(schedule: str, rate: float, u: float, value: float) -> None:
    assert CurriculumSettings(schedule=schedule, initial=4.0, rate=rate).strength(u) == pytest.approx(value, abs=1e-15)


def test_floor_is_that_of_what_is_scheduled() -> None:
    assert CurriculumSettings(initial=0.5).strength(0.1, floor=0.0) == pytest.approx(0.5 * math.exp(-1))
    assert CurriculumSettings(schedule="constant", initial=1.0).strength(0.3) == 1.0  # the fixed auxiliary of D.2


@pytest.mark.parametrize(
    "bad", [{"rate": 0.0}, {"rate": -1.0}, {"initial": math.nan}, {"schedule": "stepwise", "rate": 2.5}]
)
def test_nonsense_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(reversed(bad))):
        CurriculumSettings(**bad)
