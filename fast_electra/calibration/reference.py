"""The curve to follow: how hard replacements are through a run, in measures that compare between vocabularies."""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from fast_electra.files import write_json
from fast_electra.settings import UserError
from fast_electra.training.monitor import Row, read_metrics

SHIPPED = Path(__file__).with_name("reference.json")
BINS = 40  # equal parts of u whose rows are averaged: single updates of a small batch are noise
MEASURES = ("replaced", "entropy")  # of a point; the two rows of every array [2, ...]
METER = ("original_probability", "replacement_entropy")  # the keys of metrics.jsonl that they are made from


@dataclass(frozen=True)
class Reference:
    """Points of a curve in order of u.

    Attributes:
        u_P: float64 [P], fractions of the updates, in (0, 1].
        curve_2P: float64 [2, P], means over masked positions: 1 - p(original token), the fraction that is replaced; and
            the entropy of the distribution drawn from as a share of that of a uniform one, log V. Both are 1 where
            nothing is known.
        name: what to call it.
        made: where it comes from.
    """

    u_P: np.ndarray
    curve_2P: np.ndarray
    name: str
    made: dict[str, Any]

    def at(self, u: np.ndarray) -> np.ndarray:
        """The curve at other fractions, [2, n], by straight lines; level beyond its ends."""
        return np.stack([np.interp(u, self.u_P, measure_P) for measure_P in self.curve_2P])

    def to_json(self) -> dict[str, Any]:
        columns = np.round(np.vstack([self.u_P, self.curve_2P]), 4)
        names = ("u", *MEASURES)
        points = [dict(zip(names, point, strict=True)) for point in columns.T.tolist()]
        return {"name": self.name, "made": self.made, "points": points}


def open_reference(where: str | None) -> Reference:
    """The reference of a run folder (or of its metrics.jsonl), of a saved file, or, for None, the one that ships."""
    if where is None:
        return read_reference(SHIPPED)
    path = Path(where)
    if path.name == "metrics.jsonl":
        path = path.parent
    if path.is_dir():
        return reference_of_run(path)
    return read_reference(path)


def reference_of_run(run: Path) -> Reference:
    """The curve that a joint or rtd run went through, from the rows that it logged.

    Raises:
        UserError: there is no such run, or it did not log how hard its replacements were.
    """
    try:
        config = json.loads((run / "config.json").read_text())
        section, deepspeed = config["fast_electra"], config["deepspeed"]
        vocabulary_size = int(section["model"]["vocabulary_size"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{run} holds no config.json of a run: --reference names a run folder or a saved file"
        ) from None
    updates, _, _ = read_metrics(run)
    rows = [row for row in updates if all(_is_number(row.get(key)) for key in METER)]
    if not rows:
        raise UserError(
            f"{run} logged no {' and no '.join(METER)} (objective {section['objective']}): the reference must be a run "
            "of objective joint, or of rtd that drew from an auxiliary model and not from a store"
        )
    made = {
        "objective": section["objective"],
        "recipe": section["recipe"],
        "seed": section["seed"],
        "updates": section["updates"],
        "train_batch_size": deepspeed["train_batch_size"],
        "sequence_length": section["corpus"]["sequence_length"],
        "vocabulary_size": vocabulary_size,
        "layers": section["model"]["layers"],
        "auxiliary_layers": (section["joint"] or {}).get("auxiliary_layers"),
        "corpus_hash": config["corpus_hash"],
    }
    curve = _binned(rows, vocabulary_size)
    name = f"{made['objective']} {made['recipe']}, {made['updates']:,} updates"
    return Reference(curve[0], curve[1:], name, made)


def save_reference(reference: Reference, path: Path) -> None:
    """Writes it as a file that `read_reference` reads, with the date and the versions that it was saved under."""
    versions = {name: version(name) for name in ("fast_electra", "torch", "deepspeed")}
    made = reference.made | {"saved": datetime.now(UTC).date().isoformat(), "versions": versions}
    write_json(path, reference.to_json() | {"made": made})


def read_reference(path: Path) -> Reference:
    """A reference that was saved, or written by hand: {"points": [{"u", "replaced", "entropy"}, ...]}."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no reference {path}: name a run folder, or a file of --save-reference") from None
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON: {error}") from None
    try:
        columns = np.array([[point[name] for name in ("u", *MEASURES)] for point in tree["points"]], dtype=np.float64).T
    except (TypeError, KeyError, ValueError):
        columns = np.zeros((3, 0))
    good = columns.shape[-1] >= 2 and bool((np.diff(columns[0]) > 0).all())
    if not good or not bool(((columns >= 0) & (columns <= 1)).all()):
        raise UserError(
            f'{path} is no reference: it must hold "points", two or more objects in order of "u", each with "u", '
            '"replaced" and "entropy" in [0, 1]'
        )
    return Reference(columns[0], columns[1:], str(tree.get("name", path.name)), tree.get("made", {}))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _binned(rows: list[Row], vocabulary_size: int) -> np.ndarray:
    """u and both measures, [3, bins]: means of the rows of each bin that has any."""
    u, original, entropy = np.array(
        [(row["update"] / row["updates"], *(row[key] for key in METER)) for row in rows], dtype=np.float64
    ).T
    columns = np.stack([u, 1.0 - original, entropy / math.log(vocabulary_size)])
    place = np.minimum((u * BINS - 1e-9).astype(int), BINS - 1)
    return np.stack([columns[:, place == number].mean(axis=1) for number in np.unique(place)], axis=1)
