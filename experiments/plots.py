"""The plots and tables of docs/results.md, made from what curricula.py has written.

    python experiments/plots.py

makes all of them again. In the text, two comments mark the place of each table.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import transfer
from compare import (
    GROUPS,
    LABELS,
    MEASURES,
    METHODS,
    REFERENCE,
    Result,
    put,
    reference_table,
    sweep_table,
    table,
    task_table,
    values,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from variants import SWEEPS, Sweep

from fast_electra.curriculum import CurriculumSettings
from fast_electra.plotting import BLUE, GREEN, GREY, ORANGE, STYLE

ROOT = Path(__file__).parent.parent


def write_all(results: Path, docs: Path) -> None:
    """Draw every plot into docs/images and put every table into docs/results.md.

    Args:
        results: what curricula.py has written; next to it `longer.json` holds the longer runs, and `sweeps.json` and
            `transfer.json` what sweeps.py and transfer.py have written.
        docs: the folder of results.md.
    """
    result = json.loads(results.read_text())
    images = docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    draw_schedules(images / "schedules.svg")
    draw_points(result, GROUPS["distributions"], images / "distributions.svg")
    draw_points(result, GROUPS["augmentations"], images / "augmentations.svg")
    draw_points(result, GROUPS["schedules"], images / "schedules_compared.svg")
    draw_auxiliaries(result, images / "auxiliaries.svg")
    text = (docs / "results.md").read_text(encoding="utf-8")
    for name, variants in GROUPS.items():
        text = put(text, name, table(result, variants))
    text = put(text, "references", reference_table(result))
    longer = results.with_name("longer.json")
    if longer.exists():
        result = json.loads(longer.read_text())
        text = put(text, "longer", table(result, tuple(result["scores"])))
        draw_course(result, images / "longer.svg")
    sweeps = results.with_name("sweeps.json")
    if sweeps.exists():
        text = write_sweeps(json.loads(sweeps.read_text()), images, text)
    fine_tuned = results.with_name("transfer.json")
    if fine_tuned.exists():
        text = transfer.show(json.loads(fine_tuned.read_text()), images, text)
    (docs / "results.md").write_text(text, encoding="utf-8")


def write_sweeps(result: Result, images: Path, text: str) -> str:
    """Draw the plots of the sweeps that are complete, and return the text with these plots and their tables."""
    for name in result["sweeps"]:
        shown = {f"sweep_{name}": f"The measures by the {SWEEPS[name].axis}"}
        draw_sweep(result, SWEEPS[name], images / f"sweep_{name}.svg")
        if name == "depth":
            shown["sweep_course"] = "The measures in the course of training"
            draw_courses(result, images / "sweep_course.svg")
        if name == "rate":
            shown["sweep_losses"] = "The loss of detection in training, a line for each seed"
            draw_losses(result, images / "sweep_losses.svg")
        links = [f"![{label}](images/{file}.svg)\n" for file, label in shown.items()]
        text = put(text, f"sweep_{name}", "\n".join([*links, sweep_table(result, SWEEPS[name].lines)]))
    return put(text, "sweep_task", task_table(result["tasks"])) if result["tasks"] else text


def draw_points(result: Result, names: tuple[str, ...], file: Path) -> None:
    """Draw seeds as points and means as bars. Dashed: mean of the reference; dotted: mean of the untrained model."""
    with _figure(file, (9.0, 0.9 + 0.3 * len(names))) as figure:
        panels = figure.subplots(1, len(MEASURES), sharey=True)
        for axes, measure in zip(panels, MEASURES, strict=True):
            for place, name in enumerate(names):
                colour = BLUE if name == REFERENCE else ORANGE
                seeds = values(result, name, measure.key)
                axes.plot(seeds, [place] * len(seeds), "o", color="none", markeredgecolor=colour, markersize=4.5)
                axes.plot([seeds.mean()], [place], "|", color=colour, markersize=13, markeredgewidth=2)
            axes.axvline(values(result, REFERENCE, measure.key).mean(), color=BLUE, linestyle=(0, (4, 3)), linewidth=1)
            axes.axvline(values(result, "untrained", measure.key).mean(), color=GREY, linestyle=":", linewidth=1)
            axes.set_xlabel(measure.axis)
            axes.set_yticks(range(len(names)), [LABELS[name] for name in names])
        panels[0].invert_yaxis()


def draw_auxiliaries(result: Result, file: Path) -> None:
    """Draw Figure 4: the measures against updates (above) and against the depth of the auxiliary (below)."""
    with _figure(file, (9.0, 5.2)) as figure:
        above, below = figure.subplots(2, len(MEASURES))
        _course(above, result)
        for axes, measure in zip(below, MEASURES, strict=True):
            for name in COMPARED:
                deep = np.array([values(result, n, measure.key) for n in (name, f"{name}_deep")])
                _line(axes, np.array([1, 3]), deep, COLOURS[name], LABELS[name])
            axes.set_xlabel("layers of the auxiliary")
            axes.set_xticks([1, 3])
            axes.set_xlim(0.5, 3.5)
        figure.legend(*above[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)


def draw_course(result: Result, file: Path) -> None:
    """Draw Figure 4 (left) alone, with the other variants at the last update."""
    with _figure(file, (9.0, 2.9)) as figure:
        panels = figure.subplots(1, len(MEASURES))
        _course(panels, result)
        others = [name for name in result["scores"] if name not in COMPARED]
        for axes, measure in zip(panels, MEASURES, strict=True):
            for name, colour, marker in zip(others, (GREEN, GREY, "black"), "s^D", strict=False):
                seeds = values(result, name, measure.key)
                x = np.full(len(seeds), result["updates"])
                axes.plot(x, seeds, marker, color="none", markeredgecolor=colour, markersize=4.5, label=LABELS[name])
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=5)


def draw_sweep(result: Result, sweep: Sweep, file: Path) -> None:
    """Draw each measure against the setting: a line for each method."""
    with _figure(file, (9.0, 2.9)) as figure:
        panels = figure.subplots(1, len(MEASURES))
        for axes, measure in zip(panels, MEASURES, strict=True):
            for method, line in sweep.lines.items():
                seeds = np.array([values(result, name, measure.key) for name in line.values()])
                _line(axes, np.array(list(line)), seeds, COLOURS[method], METHODS[method])
            ticks = sorted({value for line in sweep.lines.values() for value in line})
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
            axes.set_xlabel(sweep.axis)
            axes.set_title(measure.axis, fontsize=9)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)


def draw_courses(result: Result, file: Path) -> None:
    """Draw Figure 4 (left) with joint training."""
    with _figure(file, (9.0, 2.9)) as figure:
        panels = figure.subplots(1, len(MEASURES))
        _course(panels, result, METHODS)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)


def draw_losses(result: Result, file: Path) -> None:
    """Draw Figure 2: the loss of detection in training, each seed a line; a cross where a run ends that diverged."""
    with _figure(file, (9.0, 2.9)) as figure:
        lines = SWEEPS["rate"].lines
        for axes, (method, line) in zip(figure.subplots(1, len(lines), sharey=True), lines.items(), strict=True):
            colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, len(line)))
            for colour, (rate, name) in zip(colours, line.items(), strict=True):
                for seed, run in result["runs"][name].items():
                    x = (np.arange(len(run["losses"])) + 0.5) * result["bin"]
                    label = f"{rate:g}" if seed == "0" else None
                    axes.plot(x, run["losses"], color=colour, linewidth=1.0, label=label)
                    if run["diverged"]:
                        axes.plot(x[-1:], run["losses"][-1:], "x", color=colour)
            axes.set_title(METHODS[method], fontsize=9)
            axes.set_xlabel("update")
            axes.legend(fontsize=7, title="peak rate", title_fontsize=7)
        figure.axes[0].set_ylabel("loss of detection")


COLOURS = {"fast": BLUE, "fixed": ORANGE, "joint": GREEN}
COMPARED = ("fast", "fixed")


def _course(panels: np.ndarray, result: Result, names: Iterable[str] = COMPARED) -> None:
    """Plot each measure of some runs against the updates done."""
    updates = sorted(map(int, next(iter(result["scores"][REFERENCE].values()))))
    for axes, measure in zip(panels, MEASURES, strict=True):
        for name in names:
            course = np.array([values(result, name, measure.key, update) for update in updates])
            _line(axes, np.array(updates), course, COLOURS[name], LABELS[name])
        axes.set_xlabel("update")
        axes.set_xticks(updates)
        axes.set_title(measure.axis, fontsize=9)


def _line(axes: Axes, x: np.ndarray, seeds: np.ndarray, colour: str, label: str) -> None:
    """Plot the means as a line and the seeds as points: x [n], seeds [n, seeds]."""
    axes.plot(x, seeds.mean(1), color=colour, linewidth=1.6, label=label)
    axes.plot(np.repeat(x, seeds.shape[1]), seeds.ravel(), "o", color="none", markeredgecolor=colour, markersize=4)


def draw_schedules(file: Path) -> None:
    """Draw T for every schedule of E.2, at the rates of the study and at others; the right axis is for gamma."""
    u = np.linspace(0.0, 1.0, 201)
    with _figure(file, (9.0, 2.9)) as figure:
        panels = figure.subplots(1, 4, sharey=True)
        for axes, (name, rates) in zip(panels, SHOWN.items(), strict=True):
            for rate, colour in zip(rates, (BLUE, ORANGE, GREEN), strict=False):
                settings = CurriculumSettings(schedule=name, initial=2.0, rate=rate)
                label = f"τ = {rate:g}" if name != "constant" else "T = T0"
                axes.plot(u, [settings.strength(float(x)) for x in u], color=colour, linewidth=1.6, label=label)
            if name == "constant":
                axes.plot(u, np.ones_like(u), color=ORANGE, linewidth=1.6, label="T = 1: the fixed auxiliary")
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("u, fraction of the updates")
            axes.set_ylim(0.95, 2.2)
            axes.legend(loc="upper right" if name != "constant" else "center right", fontsize=8)
        panels[0].set_ylabel("temperature T")
        right = panels[-1].secondary_yaxis("right", functions=(lambda t: t - 1.0, lambda g: g + 1.0))
        right.set_ylabel("γ / γ at the start")


SHOWN: dict[Any, tuple[float, ...]] = {
    "exponential": (0.1, 0.05, 0.5),
    "polynomial": (2.0, 1.0, 5.0),
    "stepwise": (4.0, 10.0),
    "constant": (1.0,),
}


@contextmanager
def _figure(file: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """Give a figure in the project's style, then write it to `file`. The same figures give the same bytes."""
    with matplotlib.rc_context(STYLE | {"figure.facecolor": "white", "svg.hashsalt": file.name}):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


if __name__ == "__main__":
    write_all(ROOT / "experiments" / "results" / "curricula.json", ROOT / "docs")
