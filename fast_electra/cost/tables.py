"""An estimate as plain text, for a terminal of 100 columns."""

from collections.abc import Callable
from textwrap import wrap
from typing import Any

WIDTH, NAME, COLUMN = 100, 46, 16
Cost = dict[str, Any]  # of one method, see `cost.estimate.estimate`


def run_text(run: dict[str, Any]) -> str:
    """What `from_config.estimate_config` returns, as tables with a column for each method."""
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


MEASURED_NAME, MEASURED_COLUMN = 9, 13


def table(result: dict[str, Any]) -> str:
    """Table 7, one line a method, from what `fast_electra.jobs.measure` returns."""
    machine, batch, turns = result["machine"], result["batch"], result["turns"]
    on_gpu = machine["device"] != "cpu"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        "",
        f"{result['config']}: {batch['sequences']:,} sequences of up to {batch['length']} an update, "
        f"{batch['per_process']:,} at a time in each process, {result['dtype']}",
        f"{machine['processes']} x {machine['device']}; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['threads']} thread(s) a process",
        f"{versions}; {machine['date'][:10]}; load average {machine['load_average'][0]:.1f}",
        f"auxiliary: {result['auxiliary']}",
        f"medians of {turns['rounds']} rounds of {turns['updates']} updates after {turns['warmup']} others",
        "",
        _measured_row("seconds", ["an update", "middle half", "to joint", "in rounds", "predicted"])
        + _measured_row("", ["TFLOP/s each", "MFU"] if on_gpu else ["of CPU", "to joint"], 0),
    ]
    for method, figures in result["methods"].items():
        seconds, ratio = figures["seconds_per_update"], figures["seconds_ratio"]
        columns = [
            f"{seconds['median']:.4f}",
            f"{seconds['lower']:.3f}-{seconds['upper']:.3f}",
            f"{ratio['median']:.2f}",
            f"{ratio['lowest']:.2f}-{ratio['highest']:.2f}",
            f"{figures['seconds_ratio_predicted']:.2f}",
        ]
        lines.append(_measured_row(method, columns + (_of_gpu if on_gpu else _of_cpu)(figures)))
    lines += ["", _measured_row("memory", ["MB at peak", "predicted", "to joint", "predicted", "at start"])]
    for method, figures in result["methods"].items():
        columns = [
            f"{figures['peak_bytes'] / 1e6:,.1f}",
            f"{figures['predicted']['peak_bytes'] / 1e6:,.1f}",
            f"{figures['peak_ratio']:.3f}",
            f"{figures['peak_ratio_predicted']:.3f}",
            f"{figures['held_bytes'] / 1e6:,.1f}",
        ]
        lines.append(_measured_row(method, columns))
    return "\n".join(lines + _notes(result) + _profiled(result))


def _of_gpu(figures: dict[str, Any]) -> list[str]:
    mfu = "unknown GPU" if figures["mfu"] is None else f"{figures['mfu']:.1%}"
    return [f"{figures['flops_per_second_and_process'] / 1e12:,.1f}", mfu]


def _of_cpu(figures: dict[str, Any]) -> list[str]:
    """What other programs on the machine change less than they do the wall clock."""
    return [f"{figures['cpu_seconds_per_update']['median']:.4f}", f"{figures['cpu_seconds_ratio']['median']:.2f}"]


def _notes(result: dict[str, Any]) -> list[str]:
    """What hides the methods' differences, if anything does."""
    notes = []
    joint = result["methods"]["joint"]
    if joint["bucket_bytes"] > joint["peak_bytes"] / 4:
        notes.append(
            f"{joint['bucket_bytes'] / 1e6:,.1f} MB of each are DeepSpeed's buckets for the reduction of gradients, as "
            "large as\nzero_optimization.reduce_bucket_size says, used or not: try one of a million"
        )
    if skipped := {name: own["skipped_updates"] for name, own in result["methods"].items() if own["skipped_updates"]}:
        notes.append(f"updates without a step, for their gradients were not finite: {skipped}; use a longer --warmup")
    return ["", *notes] if notes else []


def _profiled(result: dict[str, Any]) -> list[str]:
    if "deepspeed_flops" not in result:
        return []
    lines = ["", "forward GFLOPs of one sequence, online    DeepSpeed's profiler    predicted"]
    for name, flops in result["deepspeed_flops"].items():
        lines.append(f"{name:38}{flops['deepspeed'] / 1e9:>24.4f}{flops['predicted'] / 1e9:>13.4f}")
    return [*lines, "(the profiler counts element-wise work too, but not the sampler, which is in no module)"]


def _measured_row(name: str, columns: list[str], width: int = MEASURED_NAME) -> str:
    return f"{name:{width}}" + "".join(f"{column:>{MEASURED_COLUMN}}" for column in columns)
