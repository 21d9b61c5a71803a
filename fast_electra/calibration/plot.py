"""The calibration as a picture: the reference's two measures, those of the proposal, and the temperatures."""

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fast_electra.calibration import fit
from fast_electra.training.report_curves import BLUE, FORMATS, GREY, ORANGE, STYLE

if TYPE_CHECKING:
    from fast_electra.calibration.calibrate import Calibration

TITLES = ("replaced, of masked positions", "entropy, of log V")


def draw(calibration: "Calibration", path: Path) -> None:
    """Writes an SVG (or what the file's name ends in) of three panels over u."""
    c = calibration
    u_P = c.reference.u_P
    u = np.linspace(0.0, 1.0, 201)
    temperature = fit.temperatures(u, c.initial, c.rate)
    with matplotlib.rc_context({**STYLE, "figure.facecolor": "white"}):
        figure = Figure(figsize=(9.5, 2.9), layout="constrained")
        panels = figure.subplots(1, 3)
        for axes, title, aim_P, ours in zip(panels, TITLES, c.target_2P, c.response.at(temperature), strict=False):
            axes.plot(u_P, aim_P, "o", color=GREY, markersize=3, label=f"reference ({c.match})")
            axes.plot(u, ours, color=BLUE, linewidth=1.6, label="this auxiliary, proposed T")
            axes.yaxis.set_major_formatter(FORMATS["percent"])
            axes.set_title(title, fontsize=9)
        panels[2].plot(
            u_P, fit.best_temperatures(c.response, c.target_2P), "o", color=ORANGE, markersize=3, label="nearest T"
        )
        panels[2].plot(u, temperature, color=BLUE, linewidth=1.6, label=f"T0 {c.initial:g}, τ {c.rate:g}")
        panels[2].set_title("temperature", fontsize=9)
        for axes in panels:
            axes.set_xlim(0, 1)
            axes.set_xlabel("u")
            axes.legend(fontsize=8)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
