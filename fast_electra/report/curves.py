"""The curves of `report.html`: inline SVG; raw values faint, a running median over them, held-out results as points."""

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

Row = dict[str, Any]

BINS = 500  # a longer run is drawn by each bin's minimum, median and maximum: the same picture in a small file
MEDIAN_SHARE = 40  # the running median's window is this part of the points


@dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Attributes:
        key: The update rows' key.
        heldout: The evaluation rows' key, shown as points.
        exact: Set by a schedule rather than measured: drawn as it is, without a median.
        right: Belongs to the axis at the right.
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
    """One plot: a sentence on how to read it, its lines, and an evaluation row's key drawn as a dashed line."""

    title: str
    reading: str
    curves: tuple[Curve, ...]
    dashed: str = ""
    dashed_label: str = ""
    left_format: str = "number"
    right_format: str = "number"
    limits: tuple[float | None, float | None] = (None, None)


LOSS = Panel(
    "Loss",
    "Should fall, fast at first. A held-out loss well above the curve means overfitting.",
    (Curve("loss", "training", BLUE, "heldout_loss"),),
)
SPEED = Panel(
    "Speed",
    "Tokens per second. Dips are checkpoints, evaluations or a busy machine.",
    (Curve("tokens_per_second", "tokens/s", BLUE),),
    left_format="count",
    limits=(0, None),
)
RATE = Panel(
    "Learning rate and gradient norm",
    "The rate warms up, then falls to zero. The norm, before clipping, should be free of lasting growth.",
    (
        Curve("learning_rate", "learning rate", BLUE, exact=True),
        Curve("gradient_norm", "gradient norm (right)", ORANGE, right=True),
    ),
)
METER = Panel(
    "How hard the replacements are",
    "At masked positions: how undecided the distribution of replacements is, and how probable the original token. As "
    "they get harder, the entropy falls and the original becomes more probable.",
    (
        Curve("replacement_entropy", "entropy (nats)", BLUE),
        Curve("original_probability", "probability of the original (right)", ORANGE, right=True),
    ),
    right_format="percent",
)
FINDING = Panel(
    "Finding the replaced tokens",
    "On training sequences at the update's own difficulty, and on held-out documents (open marks). The dashed line is "
    "the AUC that the token alone allows: what lies above it was learnt from context.",
    (
        Curve("auc", "AUC", BLUE, "heldout_auc"),
        Curve("precision", "precision", ORANGE, "heldout_precision", "s"),
        Curve("recall", "recall", GREEN, "heldout_recall", "^"),
    ),
    dashed="heldout_auc_token_identity",
    dashed_label="AUC by token identity",
    limits=(0, 1),
)
ACCURACY = Panel(
    "Accuracy at masked positions",
    "How often the auxiliary's first choice is the token that stood there.",
    (Curve("accuracy", "training", BLUE, "heldout_mlm_accuracy"),),
    left_format="percent",
    limits=(0, None),
)
PANELS = {
    "rtd": (
        LOSS,
        Panel(
            "Curriculum and replaced tokens",
            "The temperature T (or gamma) falls along the curriculum. Lower, it brings more plausible replacements, "
            "and more lucky guesses: fewer tokens really replaced.",
            (
                Curve("temperature", "temperature T", BLUE, exact=True),
                Curve("gamma", "gamma", BLUE, exact=True),
                Curve("replaced_fraction", "replaced, of all tokens (right)", ORANGE, right=True),
            ),
            right_format="percent",
        ),
        METER,
        FINDING,
        SPEED,
        RATE,
    ),
    "joint": (
        Panel(
            "Losses",
            "Of the auxiliary (MLM) and of the main model (detection, right); the objective is their weighted sum.",
            (
                Curve("mlm_loss", "MLM", BLUE, "heldout_mlm_loss"),
                Curve("rtd_loss", "detection (right)", ORANGE, "heldout_loss", right=True),
            ),
        ),
        METER,
        FINDING,
        ACCURACY,
        SPEED,
        RATE,
    ),
    "mlm": (LOSS, ACCURACY, RATE, SPEED),
}


def draw_panels(objective: str, updates: list[Row], evaluations: list[Row], prefix: str) -> list[tuple[Panel, str]]:
    """Draw the panels of an objective for which the rows hold numbers.

    Args:
        objective: A key of PANELS.
        updates: Update rows.
        evaluations: Evaluation rows.
        prefix: Set before each id within the SVGs, so that several can stand in one page.

    Returns:
        Each panel with its `<svg>` element.
    """
    drawn = []
    for index, panel in enumerate(PANELS[objective]):
        if any(isinstance(row.get(curve.key), int | float) for curve in panel.curves for row in updates):
            with matplotlib.rc_context(STYLE):
                drawn.append((panel, _svg(_figure(panel, updates, evaluations), f"{prefix}{index}-", panel.title)))
    return drawn


def running_median(values: np.ndarray) -> np.ndarray:
    """The median of a centred window of 1/MEDIAN_SHARE of the values (at least 5), cut short at both ends.

    Args:
        values: float64 [n], finite.

    Returns:
        float64 [n].
    """
    half = max(2, len(values) // MEDIAN_SHARE // 2)
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def _points(rows: list[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """The updates and the values, float64 [n], of the rows in which the key has a number."""
    held = [(row["update"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    x, y = np.array(held, dtype=np.float64).reshape(-1, 2).T
    finite = np.isfinite(y)
    return x[finite], y[finite]


def _figure(panel: Panel, updates: list[Row], evaluations: list[Row]) -> Figure:
    figure = Figure(figsize=(6.0, 2.9), layout="constrained")
    left = figure.add_subplot()
    right: Axes | None = None
    for curve in panel.curves:
        if not any(isinstance(row.get(curve.key), int | float) for row in updates):
            continue  # a run has a temperature or a gamma: the other one is not to stand in the legend
        if curve.right:
            right = right or left.twinx()
            right.spines["right"].set_visible(True)
            right.grid(visible=False)
        _draw_curve(right if curve.right and right else left, curve, updates, evaluations)
    x, y = _points(evaluations, panel.dashed)
    if len(x):
        x = np.append(updates[0]["update"], x) if len(x) == 1 else x  # a level, even from one evaluation
        left.plot(x, np.resize(y, len(x)), color=BLUE, linestyle=(0, (4, 3)), linewidth=1.2, label=panel.dashed_label)
    left.set_xlim(0, 1.02 * updates[-1]["update"])
    left.set_ylim(*panel.limits)
    left.set_xlabel("update")
    left.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    left.xaxis.set_major_formatter(FORMATS["count"])
    left.yaxis.set_major_formatter(FORMATS[panel.left_format])
    if right is not None:
        right.set_ylim(bottom=0)
        right.yaxis.set_major_formatter(FORMATS[panel.right_format])
    if len(panel.curves) > 1 or len(_points(evaluations, panel.curves[0].heldout)[0]):
        figure.legend(loc="outside upper left", ncols=4, handlelength=1.8, columnspacing=1.4)
    return figure


def _draw_curve(axes: Axes, curve: Curve, updates: list[Row], evaluations: list[Row]) -> None:
    x, y = _points(updates, curve.key)
    if len(x) == 1:
        axes.plot(x, y, color=curve.colour, marker="_", markersize=12, label=curve.label)
    elif curve.exact:
        keep = np.unique(np.linspace(0, len(x) - 1, 2 * BINS).astype(int)) if len(x) > 2 * BINS else slice(None)
        axes.plot(x[keep], y[keep], color=curve.colour, linewidth=1.6, label=curve.label)
    elif len(x):
        raw_x, raw_y, middle_x, middle_y = x, y, x, y
        if len(x) > 2 * BINS:
            xs, ys = np.array_split(x, BINS), np.array_split(y, BINS)
            raw_x = np.array([part[[0, -1]] for part in xs]).reshape(-1)
            raw_y = np.array([(part.min(), part.max()) for part in ys]).reshape(-1)
            middle_x, middle_y = np.array([part.mean() for part in xs]), np.array([np.median(part) for part in ys])
        axes.plot(raw_x, raw_y, color=curve.colour, alpha=0.25, linewidth=0.6, zorder=2)
        axes.plot(middle_x, running_median(middle_y), color=curve.colour, linewidth=1.6, label=curve.label, zorder=3)
    x, y = _points(evaluations, curve.heldout)
    if len(x):
        label = "held-out" if len(updates) and curve.label == "training" else None
        axes.plot(
            x,
            y,
            curve.marker,
            color="white",
            markeredgecolor=curve.colour,
            markeredgewidth=1.4,
            markersize=5,
            zorder=4,
            label=label,
        )


def _svg(figure: Figure, prefix: str, title: str) -> str:
    """The figure as an `<svg>` element of an HTML page: scalable, its ids prefixed, no reference to the outside."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|width|height)="[^"]*"', "", svg[: svg.index(">")]) + svg[svg.index(">") :]
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
