"""Fit T0 and tau of Eq. 2 so that an auxiliary's replacements follow a reference curve.

The auxiliary runs once. At each masked position its logits give the entropy and the probability of the original token
at any temperature. Their means are smooth in log T, so a few temperatures determine the whole response.
"""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.polynomial import Chebyshev
from numpy.polynomial.chebyshev import chebpts1
from torch import Tensor

from fast_electra.files import read_json, write_json
from fast_electra.settings import UserError
from fast_electra.training.metrics import Row, read_metrics
from fast_electra_kernels import logits, row_blocks

SHIPPED = Path(__file__).with_name("reference.json")
BINS = 40  # equal parts of u whose rows are averaged, because single updates of a small batch are noisy
MEASURES = ("replaced", "entropy")  # of a point; the two rows of every array [2, ...]
METER = ("original_probability", "replacement_entropy")  # the keys of metrics.jsonl that they are made from
HIGHEST = 10.0  # temperature; distributions over a vocabulary are almost flat there
# The temperatures measured: Chebyshev's points of log T. Between them the interpolation errs by about 1e-5.
NODES_K = np.exp((chebpts1(13) + 1.0) / 2.0 * math.log(HIGHEST))
RATES = (0.02, 1.0)  # tau; the paper tries 0.05 to 0.7 (C.3)
GRID, ZOOMS = 41, 8  # points of the search along T0 and along tau, and how often it is repeated around the best
LEARNT = 0.003  # a mean probability of the original token; a model below it at the end has learnt nothing


@dataclass(frozen=True)
class Reference:
    """A curve to follow, as points in order of u.

    The first row is 1 - p(original token): the fraction of masked positions that is replaced. The second is the entropy
    of the distribution drawn from, as a share of log V. Both are means, and 1 for a model that knows nothing.
    """

    u_P: np.ndarray  # float64, fractions of the updates, in (0, 1]
    curve_2P: np.ndarray  # float64
    name: str
    made: dict[str, Any]  # where it comes from

    def at(self, u: np.ndarray) -> np.ndarray:
        """Return the curve at other fractions, [2, n]: straight lines between points, level beyond the ends."""
        return np.stack([np.interp(u, self.u_P, measure_P) for measure_P in self.curve_2P])

    def to_json(self) -> dict[str, Any]:
        """Return what `read_reference` reads."""
        columns = np.round(np.vstack([self.u_P, self.curve_2P]), 4)
        points = [dict(zip(("u", *MEASURES), point, strict=True)) for point in columns.T.tolist()]
        return {"name": self.name, "made": self.made, "points": points}


def open_reference(where: str | Path | None) -> Reference:
    """Return the reference of a run folder (or its metrics.jsonl), of a saved file, or the one that ships for None."""
    path = SHIPPED if where is None else Path(where)
    if path.name == "metrics.jsonl":
        path = path.parent
    return reference_of_run(path) if path.is_dir() else read_reference(path)


def reference_of_run(run: Path) -> Reference:
    """Return the curve that a joint or rtd run followed, from the rows that it logged.

    Raises:
        UserError: there is no such run, or it did not log how hard its replacements were.
    """
    try:
        config = read_json(run / "config.json")
        section, deepspeed = config["fast_electra"], config["deepspeed"]
        vocabulary_size = int(section["model"]["vocabulary_size"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{run} holds no config.json of a run: --reference names a run folder or a saved file"
        ) from None
    updates, _, _ = read_metrics(run)
    rows = [row for row in updates if all(row.get(key) is not None for key in METER)]
    if not rows:
        raise UserError(
            f"{run} logged no {' and no '.join(METER)} (objective {section['objective']}): the reference must be a run "
            "of objective joint, or of rtd that drew from an auxiliary model and not from a store"
        )
    made = {key: section[key] for key in ("objective", "recipe", "seed", "updates")} | {
        "train_batch_size": deepspeed["train_batch_size"],
        "sequence_length": section["corpus"]["sequence_length"],
        "vocabulary_size": vocabulary_size,
        "layers": section["model"]["layers"],
        "auxiliary_layers": (section["joint"] or {}).get("auxiliary_layers"),
        "corpus_hash": config["corpus_hash"],
    }
    curve = _binned(rows, vocabulary_size)
    return Reference(curve[0], curve[1:], f"{made['objective']} {made['recipe']}, {made['updates']:,} updates", made)


def save_reference(reference: Reference, path: Path) -> None:
    """Write a file that `read_reference` reads, with today's date and the versions of the packages."""
    versions = {name: version(name) for name in ("fast_electra", "torch", "deepspeed")}
    made = reference.made | {"saved": datetime.now(UTC).date().isoformat(), "versions": versions}
    write_json(path, reference.to_json() | {"made": made})


def read_reference(path: Path) -> Reference:
    """Read a reference that was saved, or written by hand: {"points": [{"u", "replaced", "entropy"}, ...]}."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        columns = np.array([[point[name] for name in ("u", *MEASURES)] for point in tree["points"]], dtype=np.float64).T
        valid = len(tree["points"]) >= 2 and (np.diff(columns[0]) > 0).all() and ((columns >= 0) & (columns <= 1)).all()
    except FileNotFoundError:
        raise UserError(f"there is no reference {path}: name a run folder, or a file of --save-reference") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid:
        raise UserError(
            f'{path} is no reference: it must hold "points", two or more objects in order of "u", each with "u", '
            '"replaced" and "entropy" in [0, 1]'
        )
    return Reference(columns[0], columns[1:], str(tree.get("name", path.name)), tree.get("made", {}))


def _binned(rows: list[Row], vocabulary_size: int) -> np.ndarray:
    """Return u and both measures, [3, bins]: means over the rows of each bin that has any."""
    columns = [(row["update"] / row["updates"], *(row[key] for key in METER)) for row in rows]
    u, original, entropy = np.array(columns, dtype=np.float64).T
    values = np.stack([u, 1.0 - original, entropy / math.log(vocabulary_size)])
    place = np.minimum((u * BINS - 1e-9).astype(int), BINS - 1)
    return np.stack([values[:, place == number].mean(axis=1) for number in np.unique(place)], axis=1)


@dataclass(frozen=True)
class Response:
    """The two measures of an auxiliary's replacements as functions of the temperature; see `Reference`."""

    measured_2K: np.ndarray  # at NODES_K

    @cached_property
    def curves(self) -> list[Chebyshev]:
        """A polynomial in log T for each measure."""
        domain = (0.0, math.log(HIGHEST))
        return [Chebyshev.fit(np.log(NODES_K), row_K, len(row_K) - 1, domain) for row_K in self.measured_2K]

    def at(self, temperature: np.ndarray | float) -> np.ndarray:
        """Return both measures, [2, ...], at temperatures [...] between 1 and HIGHEST."""
        return np.stack([curve(np.log(temperature)) for curve in self.curves])


@torch.no_grad()
def statistics(
    hidden_ME: Tensor, weight_VE: Tensor, bias_V: Tensor, original_M: Tensor, temperatures: np.ndarray
) -> Tensor:
    """Return sums over masked positions of p(original token) and of the entropy (nats) at K temperatures.

    They are float64 [2, K]. `hidden_ME` is what the vocabulary head multiplies. One product with that head serves all
    temperatures, and its logits are never in memory as a whole.
    """
    sums = torch.zeros(2, len(temperatures), dtype=torch.float64)
    for rows in row_blocks(len(hidden_ME), len(weight_VE), hidden_ME.is_cuda):
        logits_RV = logits(hidden_ME[rows], weight_VE, bias_V)
        for k, temperature in enumerate(temperatures.tolist()):
            log_p_RV = F.log_softmax(logits_RV / temperature, dim=1)
            p_RV = log_p_RV.exp()
            sums[0, k] += p_RV.gather(1, original_M[rows, None]).sum(dtype=torch.float64).cpu()
            sums[1, k] -= (p_RV * log_p_RV).sum(dim=1).sum(dtype=torch.float64).cpu()
    return sums


def target(reference: Reference, response: Response, match: str) -> np.ndarray:
    """Return what to follow at the reference's u, [2, P].

    Match "level" is the reference itself. "shape" stretches it so that it ends where the auxiliary ends, at T = 1: what
    is known (1 - each measure) is then the same share of what is known at the end.
    """
    if match == "level":
        return reference.curve_2P
    known_2P = 1.0 - reference.curve_2P
    if known_2P[:, -1].min() < LEARNT:
        raise UserError(
            f"the reference ({reference.name}) ends as ignorant as it began (replaced {reference.curve_2P[0, -1]:.1%}, "
            f"entropy {reference.curve_2P[1, -1]:.1%} of log V): there is no curriculum in it"
        )
    return 1.0 - known_2P * ((1.0 - response.at(1.0)) / known_2P[:, -1])[:, None]


def temperatures(u: np.ndarray, initial: np.ndarray | float, rate: np.ndarray | float) -> np.ndarray:
    """Return the temperatures of Eq. 2."""
    return 1.0 + (initial - 1.0) * np.exp(-u / rate)


def fit(response: Response, u_P: np.ndarray, target_2P: np.ndarray) -> tuple[float, float]:
    """Return T0 in [1, HIGHEST] and tau in RATES with the least mean square of both residuals.

    Each point of u and both measures have the same weight; both measures run from 0 to 1. The search goes over a grid
    of log T0 and log tau, then over finer ones around the best point. Two unknowns need no more.
    """
    lowest, highest = np.log([1.0, RATES[0]]), np.log([HIGHEST, RATES[1]])
    low, high = lowest, highest
    for _ in range(ZOOMS):
        axes = np.exp(np.linspace(low, high, GRID))
        ours_2GGP = response.at(temperatures(u_P, axes[:, None, None, 0], axes[None, :, None, 1]))
        error_GG = ((ours_2GGP - target_2P[:, None, None]) ** 2).mean(axis=(0, 3))
        first, second = np.unravel_index(error_GG.argmin(), error_GG.shape)
        best = np.log([axes[first, 0], axes[second, 1]])
        reach = (high - low) / 5
        low, high = np.maximum(best - reach, lowest), np.minimum(best + reach, highest)
    return float(np.exp(best[0])), float(np.exp(best[1]))


def best_temperatures(response: Response, target_2P: np.ndarray) -> np.ndarray:
    """Return the temperature in [1, HIGHEST] that comes nearest to each point of the target: [P]."""
    grid_G = np.exp(np.linspace(0.0, math.log(HIGHEST), 2001))
    error_GP = ((response.at(grid_G)[:, :, None] - target_2P[:, None]) ** 2).sum(axis=0)
    return np.asarray(grid_G[error_GP.argmin(axis=0)])
