"""Colours, line styles and number formats of every plot that this project draws."""

from typing import Any

from matplotlib.ticker import FuncFormatter

# Okabe and Ito's colours, which colour-blind readers can tell apart; each panel's differ in lightness too.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#55554f"
STYLE: Any = {  # matplotlib types the keys one by one
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9a9a94",
    "axes.labelcolor": "#33332f",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ebebe5",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "text.color": "#33332f",
    "legend.frameon": False,
}
FORMATS = {
    "number": FuncFormatter(lambda value, _: f"{value:.10g}"),
    "percent": FuncFormatter(lambda value, _: f"{100 * value:.10g}%"),
    "count": FuncFormatter(lambda value, _: f"{value:,.0f}"),
}
