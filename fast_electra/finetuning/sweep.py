"""The search of Table 4: settings times seeds, each a run of its own, and which setting is best on the dev sets."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from fast_electra.run_settings import SECTION
from fast_electra.settings import UserError, nearest

Grid = dict[str, tuple[float, ...]]  # values by the name of an axis


class Axis(NamedTuple):
    """One hyperparameter of Table 4: the config's key, and the values that the paper tried."""

    key: str
    values: tuple[float, ...]


TABLE_4 = {
    "learning_rate": Axis("optimizer.params.lr", (5e-5, 1e-4, 3e-4)),
    "epochs": Axis(f"{SECTION}.epochs", (2, 3, 5, 10)),
    "batch_size": Axis("train_batch_size", (16, 32, 64)),
    "weight_decay": Axis("optimizer.params.weight_decay", (0, 0.01)),
    "warmup": Axis(f"{SECTION}.warmup", (0.06, 0.1)),
}


@dataclass(frozen=True)
class Member:
    """One run of a search."""

    setting: str  # such as "learning_rate=0.0001,epochs=3"; "" if there is no grid
    seed: int
    overrides: tuple[str, ...]  # KEY=VALUE, as `--set` takes them
    folder: str  # below the search's; "" if the run is alone


@dataclass(frozen=True)
class Standing:
    """A setting's scores over its seeds."""

    setting: str
    scores: tuple[float, ...]  # in the order of the seeds

    @property
    def median(self) -> float:
        """Median over the seeds, by which settings are compared."""
        return median(self.scores)


def parse_grid(given: Sequence[str]) -> Grid:
    """Return the values of each axis from words like `epochs=2,3`; without words, all of Table 4.

    Raises:
        UserError: a word names no axis, or has no numbers.
    """
    if not given:
        return {name: axis.values for name, axis in TABLE_4.items()}
    grid: Grid = {}
    for word in given:
        name, _, values = word.partition("=")
        if name not in TABLE_4:
            raise UserError(f"--grid {word}: unknown hyperparameter {name!r}{nearest(name, TABLE_4)}")
        if name in grid:
            raise UserError(f"--grid {word}: {name} was given before; write its values in one list, with commas")
        try:
            grid[name] = tuple(json.loads(value) for value in values.split(","))
        except ValueError:
            grid[name] = ()
        if not grid[name] or not all(type(value) in (int, float) for value in grid[name]):
            raise UserError(f"--grid {word}: write NAME=NUMBER,NUMBER,... such as epochs=2,3")
    return grid


def members(grid: Grid | None, seeds: int, first_seed: int) -> list[Member]:
    """Return the runs of a search, all seeds of one setting after another."""
    axes = [[(name, value) for value in values] for name, values in (grid or {}).items()]
    found = []
    for chosen in itertools.product(*axes):
        setting = ",".join(f"{name}={value}" for name, value in chosen)
        keys = [f"{TABLE_4[name].key}={value}" for name, value in chosen]
        for seed in range(first_seed, first_seed + seeds):
            folder = "" if grid is None and seeds == 1 else "/".join(filter(None, [setting, f"seed-{seed}"]))
            found.append(Member(setting, seed, (*keys, f"{SECTION}.seed={seed}"), folder))
    return found


def standings(scores: dict[Member, float]) -> list[Standing]:
    """Return the settings, the best one first; of equals, the first one tried."""
    by_setting: dict[str, list[float]] = {}
    for member, score in scores.items():
        by_setting.setdefault(member.setting, []).append(score)
    found = [Standing(setting, tuple(values)) for setting, values in by_setting.items()]
    return sorted(found, key=lambda standing: -standing.median)


def table(found: list[Standing], metric: str, most: int = 10) -> list[str]:
    """Return lines for the best settings: median, lowest and highest score over the seeds."""
    lines = []
    for standing in found[:most]:
        scores, spread = standing.scores, ""
        if len(scores) > 1:
            spread = f"  (median of {len(scores)} seeds; {min(scores):.4f} to {max(scores):.4f})"
        lines.append(f"dev {metric} {standing.median:.4f}{spread}  {standing.setting}".rstrip())
    if len(found) > most:
        lines.append(f"and {len(found) - most} settings below these; results.json has all")
    return lines


def to_json(found: list[Standing], metric: str, task: str) -> dict[str, Any]:
    """Return what results.json holds."""
    settings = [{"setting": one.setting, "median": one.median, "scores": list(one.scores)} for one in found]
    return {"task": task, "metric": metric, "best": found[0].setting, "settings": settings}
