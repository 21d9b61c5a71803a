"""Curves of `report.html` as inline SVG: raw values faint, a running median over them, held-out results as points."""

import io
import re
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fast_electra.plotting import BLUE, FORMATS, GREEN, ORANGE, STYLE
from fast_electra.training.metrics import Row

BINS = 500  # a longer run is drawn by each bin's minimum, median and maximum: the same picture in a small file
MEDIAN_SHARE = 40  # the running median's window is this part of the points


@dataclass(frozen=True)
class Curve:
    """A line from the update rows' `key`, and points from the evaluation rows' `heldout`.

    A value that a schedule sets is `exact`: it is drawn without a median. `right` puts the curve on the right axis.
    Without a key, the points of the evaluation rows are joined by a line.
    """

    key: str
    label: str
    colour: str
    heldout: str = ""
    marker: str = "o"
    exact: bool = False
    right: bool = False


@dataclass(frozen=True)
class Panel:
    """One plot. Its axes' formats are keys of FORMATS; the key `dashed` of the evaluation rows is a dashed line."""

    title: str
    curves: tuple[Curve, ...]
    dashed: str = ""
    left_format: str = "number"
    right_format: str = "number"
    limits: tuple[float | None, float | None] = (None, None)


LOSS = Panel("Loss", (Curve("loss", "training", BLUE, "heldout_loss"),))
SPEED = Panel("Speed", (Curve("tokens_per_second", "tokens/s", BLUE),), left_format="count", limits=(0, None))
LEARNING_RATE = Curve("learning_rate", "learning rate", BLUE, exact=True)
NORM = Curve("gradient_norm", "gradient norm (right)", ORANGE, right=True)
RATE = Panel("Learning rate and gradient norm", (LEARNING_RATE, NORM))
TEMPERATURE = Curve("temperature", "temperature T", BLUE, exact=True)
GAMMA = Curve("gamma", "gamma", BLUE, exact=True)
REPLACED = Curve("replaced_fraction", "replaced, of all tokens (right)", ORANGE, right=True)
CURRICULUM = Panel("Curriculum and replaced tokens", (TEMPERATURE, GAMMA, REPLACED), right_format="percent")
ENTROPY = Curve("replacement_entropy", "entropy (nats)", BLUE)
ORIGINAL = Curve("original_probability", "probability of the original (right)", ORANGE, right=True)
HARDNESS = Panel("How hard the replacements are", (ENTROPY, ORIGINAL), right_format="percent")
FOUND = (
    Curve("auc", "AUC", BLUE, "heldout_auc"),
    Curve("precision", "precision", ORANGE, "heldout_precision", "s"),
    Curve("recall", "recall", GREEN, "heldout_recall", "^"),
)
FINDING = Panel("Finding the replaced tokens", FOUND, dashed="heldout_auc_token_identity", limits=(0, 1))
RIGHT = Curve("accuracy", "training", BLUE, "heldout_mlm_accuracy")
ACCURACY = Panel("Accuracy at masked positions", (RIGHT,), left_format="percent", limits=(0, None))
LABELLED = Curve("accuracy", "training", BLUE, "heldout_accuracy")
SCORE = Panel("Dev score", (Curve("", "dev score", ORANGE, "heldout_score"),))
MLM_LOSS = Curve("mlm_loss", "MLM", BLUE, "heldout_mlm_loss")
RTD_LOSS = Curve("rtd_loss", "detection (right)", ORANGE, "heldout_loss", right=True)
PANELS = {
    "rtd": (LOSS, CURRICULUM, HARDNESS, FINDING, SPEED, RATE),
    "joint": (Panel("Losses", (MLM_LOSS, RTD_LOSS)), HARDNESS, FINDING, ACCURACY, SPEED, RATE),
    "mlm": (LOSS, ACCURACY, RATE, SPEED),
    "finetuning": (LOSS, SCORE, Panel("Accuracy", (LABELLED,), left_format="percent", limits=(0, 1)), RATE, SPEED),
}


def draw_panels(objective: str, updates: list[Row], evaluations: list[Row], prefix: str) -> list[tuple[str, str]]:
    """Return (title, `<svg>` element) of each panel of the objective for which the rows hold numbers.

    Each id within an SVG begins with `prefix`, so that one page can hold several.
    """
    with matplotlib.rc_context(STYLE):
        return [
            (panel.title, _svg(_figure(panel, updates, evaluations), f"{prefix}{index}-", panel.title))
            for index, panel in enumerate(PANELS[objective])
            if any(len(_points(updates, curve.key)[0]) or _alone(curve, evaluations) for curve in panel.curves)
        ]


def _alone(curve: Curve, evaluations: list[Row]) -> bool:
    """Return whether a curve has points from evaluations alone: no update has such a figure."""
    return not curve.key and len(_points(evaluations, curve.heldout)[0]) > 0


def running_median(values: np.ndarray) -> np.ndarray:
    """Return the medians, float64 [n], of a centred window of 1/MEDIAN_SHARE of the n values (at least 5)."""
    half = max(2, len(values) // MEDIAN_SHARE // 2)
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def _points(rows: list[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the updates and the values, float64 [n], of the rows in which the key has a number."""
    held = [(row["update"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    x, y = np.array(held, dtype=np.float64).reshape(-1, 2).T
    return x, y


def _figure(panel: Panel, updates: list[Row], evaluations: list[Row]) -> Figure:
    figure = Figure(figsize=(6.0, 2.9), layout="constrained")
    left = figure.add_subplot()
    right: Axes | None = None
    for curve in panel.curves:
        x, y = _points(updates, curve.key)
        if _alone(curve, evaluations):
            x, y = _points(evaluations, curve.heldout)
            left.plot(x, y, marker=curve.marker, color=curve.colour, linewidth=1.6, label=curve.label)
            continue
        if not len(x):
            continue  # a run has a temperature or a gamma: the legend does not name the other one
        if curve.right:
            right = right or left.twinx()
        axes = right if curve.right and right else left
        _draw_line(axes, curve, x, y)
        x, y = _points(evaluations, curve.heldout)
        if len(x):
            style: Any = {"color": "white", "markeredgecolor": curve.colour, "markeredgewidth": 1.4, "markersize": 5}
            label = "held-out" if curve.label == "training" else None
            axes.plot(x, y, curve.marker, zorder=4, label=label, **style)
    x, y = _points(evaluations, panel.dashed)
    if len(x):
        x = np.append(updates[0]["update"], x) if len(x) == 1 else x  # a level, even from one evaluation
        label = "AUC by token identity"
        left.plot(x, np.resize(y, len(x)), color=BLUE, linestyle=(0, (4, 3)), linewidth=1.2, label=label)
    left.set_xlim(0, 1.02 * updates[-1]["update"])
    left.set_ylim(*panel.limits)
    left.set_xlabel("update")
    left.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    left.xaxis.set_major_formatter(FORMATS["count"])
    left.yaxis.set_major_formatter(FORMATS[panel.left_format])
    if right is not None:
        right.spines["right"].set_visible(True)
        right.grid(visible=False)
        right.set_ylim(bottom=0)
        right.yaxis.set_major_formatter(FORMATS[panel.right_format])
    if len(panel.curves) > 1 or len(_points(evaluations, panel.curves[0].heldout)[0]):
        figure.legend(loc="outside upper left", ncols=4, handlelength=1.8, columnspacing=1.4)
    return figure


def _draw_line(axes: Axes, curve: Curve, x: np.ndarray, y: np.ndarray) -> None:
    line: Any = {"color": curve.colour, "linewidth": 1.6, "label": curve.label}
    if len(x) == 1:
        axes.plot(x, y, marker="_", markersize=12, **line)
    elif curve.exact:
        keep = np.unique(np.linspace(0, len(x) - 1, 2 * BINS).astype(int))
        axes.plot(x[keep], y[keep], **line)
    else:
        raw_x, raw_y, middle_x, middle_y = x, y, x, y
        if len(x) > 2 * BINS:
            xs, ys = np.array_split(x, BINS), np.array_split(y, BINS)
            raw_x = np.concatenate([part[[0, -1]] for part in xs])
            raw_y = np.concatenate([(part.min(), part.max()) for part in ys])
            middle_x, middle_y = np.array([part.mean() for part in xs]), np.array([np.median(part) for part in ys])
        axes.plot(raw_x, raw_y, color=curve.colour, alpha=0.25, linewidth=0.6, zorder=2)
        axes.plot(middle_x, running_median(middle_y), zorder=3, **line)


def _svg(figure: Figure, prefix: str, title: str) -> str:
    """Return the figure as a scalable `<svg>` element without references to other files; `prefix` begins its ids."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    _, _, svg = buffer.getvalue().partition("<svg")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    attributes, _, content = svg.partition(">")
    svg = "<svg" + re.sub(r'\s(?:xmlns(?::\w+)?|width|height)="[^"]*"', "", attributes) + ">" + content
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
