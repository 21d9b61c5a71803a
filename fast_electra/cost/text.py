"""An estimate as plain text, for a terminal of 100 columns."""

from collections.abc import Callable
from textwrap import wrap
from typing import Any

WIDTH, NAME, COLUMN = 100, 46, 16
Cost = dict[str, Any]  # of one method, see `cost.estimate.estimate`


def run_text(run: dict[str, Any]) -> str:
    """What `estimation.estimate_config` returns, as tables with a column for each method."""
    costs, machine, batch = list(run["methods"].values()), run["machine"], run["batch"]
    several = len(costs) > 1
    names = [f"{name} *" if several and name == run["method"] else name for name in run["methods"]]
    lines = [
        f"{run['config']}, as the code runs it",
        f"{run['updates']:,} updates of {batch['sequences']:,} sequences on {machine['gpus']:,} x {machine['gpu']}, "
        f"{batch['per_device']:,} sequences at a time on each, {batch['dtype']}",
        "",
        _row("(* this config)" if several else "", names),
        *_flops(costs),
        "",
        *_memory(costs),
        "",
        "The whole run",
        _figures("million trained parameters", costs, lambda cost: _short(cost["parameters"]["trained"] / 1e6)),
        _figures("million frozen parameters", costs, lambda cost: _short(cost["parameters"]["frozen"] / 1e6)),
        _figures("TFLOPs of one update", costs, lambda cost: _short(cost["flops_per_update"] / 1e12)),
        _figures("GPU hours", costs, lambda cost: _short(cost["gpu_hours"])),
        _figures("hours", costs, lambda cost: _short(cost["hours"])),
        _figures("dollars", costs, lambda cost: _short(cost["dollars"])),
    ]
    if several:
        lines += [_beside(costs, "hours, beside joint", "hours")]
        lines += [_beside(costs, "memory, beside joint", "bytes_per_device_total")]
    for title in ("assumptions", "warnings"):
        if run[title]:
            lines += ["", title.capitalize(), *(line for text in run[title] for line in _bullet(text))]
    return "\n".join(lines)


def _flops(costs: list[Cost]) -> list[str]:
    name, unit = _unit(max(cost["flops_per_sequence_total"] for cost in costs))
    lines = [f"{name}FLOPs of one sequence"]
    for part in dict.fromkeys(part for cost in costs for part in cost["flops_per_sequence"]):
        columns = [cost["flops_per_sequence"].get(part, {}) for cost in costs]
        lines += [f"  {part}", *_terms(columns, lambda value: f"{value / unit:,.2f}", "    ")]
    return [*lines, _figures("total", costs, lambda cost: f"{cost['flops_per_sequence_total'] / unit:,.2f}")]


def _memory(costs: list[Cost]) -> list[str]:
    name, unit = _unit(max(cost["bytes_per_device_total"] for cost in costs))
    return [
        _row(f"{name}B on each device, at its highest moment", [cost["highest_moment"] for cost in costs]),
        *_terms([cost["bytes_per_device"] for cost in costs], lambda value: f"{value / unit:,.3f}"),
        _figures("total", costs, lambda cost: f"{cost['bytes_per_device_total'] / unit:,.3f}"),
    ]


def _unit(largest: float) -> tuple[str, float]:
    return ("G", 1e9) if largest >= 1e9 else ("M", 1e6)


def _terms(columns: list[dict[str, float]], show: Callable[[float], str], indent: str = "  ") -> list[str]:
    """A line for each term that is anything in any column; a dash where a method has no such term."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [
        _row(indent + name, [show(column[name]) if column.get(name) else "-" for column in columns])
        for name in names
        if any(column.get(name) for column in columns)
    ]


def _beside(costs: list[Cost], title: str, key: str) -> str:
    """Each method's share of the first one's figure."""
    return _figures(title, costs, lambda cost: f"{cost[key] / costs[0][key]:.2f}")


def _figures(title: str, costs: list[Cost], show: Callable[[Cost], str]) -> str:
    return _row(f"  {title}", [show(cost) for cost in costs])


def _row(name: str, columns: list[str]) -> str:
    return f"{name:{NAME}}" + "".join(f"{column:>{COLUMN}}" for column in columns)


def _short(value: float) -> str:
    """Three digits or more."""
    if value >= 100 or value == 0:
        return f"{value:,.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def _bullet(text: str) -> list[str]:
    return wrap(text, WIDTH, initial_indent="  - ", subsequent_indent="    ")
