"""Estimates and measurements as plain text, for a terminal of 100 columns."""

from collections.abc import Callable, Iterable
from textwrap import wrap
from typing import Any

WIDTH, NAME, COLUMN = 100, 46, 16
MEASURED_NAME, MEASURED_COLUMN = 9, 13
Cost = dict[str, Any]  # of one method, see `cost.estimate.estimate_config`


def run_text(run: dict[str, Any]) -> str:
    """Return the result of `cost.estimate.estimate_config` as tables with a column for each method."""
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
    ]
    if "dollars" in costs[0]:
        lines.append(_figures("dollars", costs, lambda cost: _short(cost["dollars"])))
    if several:
        for title, key in (("hours, beside joint", "hours"), ("memory, beside joint", "bytes_per_device_total")):
            lines.append(_row(f"  {title}", [f"{cost[key] / costs[0][key]:.2f}" for cost in costs]))
    for title in ("assumptions", "advice", "warnings"):
        if run[title]:
            bullets = [wrap(text, WIDTH, initial_indent="  - ", subsequent_indent="    ") for text in run[title]]
            lines += ["", title.capitalize(), *(line for bullet in bullets for line in bullet)]
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
    """Return a line for each term that is not zero in every column; a dash where a method has no such term."""
    return [
        _row(indent + name, [show(column[name]) if column.get(name) else "-" for column in columns])
        for name in dict.fromkeys(name for column in columns for name in column)
        if any(column.get(name) for column in columns)
    ]


def _figures(title: str, costs: list[Cost], show: Callable[[Cost], str]) -> str:
    return _row(f"  {title}", [show(cost) for cost in costs])


def _row(name: str, columns: Iterable[str], width: int = NAME, column_width: int = COLUMN) -> str:
    return f"{name:{width}}" + "".join(f"{column:>{column_width}}" for column in columns)


def _short(value: float) -> str:
    """Return a number with three digits or more."""
    if value >= 100 or value == 0:
        return f"{value:,.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def table(result: dict[str, Any]) -> str:
    """Return Table 7, one line for each method, from the result of `fast_electra.jobs.measure`."""
    machine, batch, turns, methods = result["machine"], result["batch"], result["turns"], result["methods"]
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
        _measured(
            "seconds",
            *("an update", "middle half", "to joint", "in rounds", "predicted"),
            *(("TFLOP/s each", "MFU") if on_gpu else ("of CPU", "to joint")),
        ),
    ]
    for method, own in methods.items():
        seconds, ratio = own["seconds_per_update"], own["seconds_ratio"]
        if on_gpu:
            speed = f"{own['flops_per_second_and_process'] / 1e12:,.1f}"
            last = (speed, "unknown GPU" if own["mfu"] is None else f"{own['mfu']:.1%}")
        else:  # other programs on the machine change the CPU's own seconds less than the wall clock's
            last = (f"{own['cpu_seconds_per_update']['median']:.4f}", f"{own['cpu_seconds_ratio']['median']:.2f}")
        lines.append(
            _measured(
                method,
                f"{seconds['median']:.4f}",
                f"{seconds['lower']:.3f}-{seconds['upper']:.3f}",
                f"{ratio['median']:.2f}",
                f"{ratio['lowest']:.2f}-{ratio['highest']:.2f}",
                f"{own['seconds_ratio_predicted']:.2f}",
                *last,
            )
        )
    lines += ["", _measured("memory", "MB at peak", "predicted", "to joint", "predicted", "at start")]
    for method, own in methods.items():
        megabytes = [f"{size / 1e6:,.1f}" for size in (own["peak_bytes"], own["predicted"]["peak_bytes"])]
        ratios = [f"{own[key]:.3f}" for key in ("peak_ratio", "peak_ratio_predicted")]
        lines.append(_measured(method, *megabytes, *ratios, f"{own['held_bytes'] / 1e6:,.1f}"))
    return "\n".join(lines + _notes(methods) + _profiled(result.get("deepspeed_flops", {})))


def _measured(name: str, *columns: str) -> str:
    return _row(name, columns, MEASURED_NAME, MEASURED_COLUMN)


def _notes(methods: dict[str, dict[str, Any]]) -> list[str]:
    """Return what hides the methods' differences, if anything does."""
    notes, joint = [], methods["joint"]
    if joint["bucket_bytes"] > joint["peak_bytes"] / 4:
        notes.append(
            f"{joint['bucket_bytes'] / 1e6:,.1f} MB of each are DeepSpeed's buckets for the reduction of gradients, as "
            "large as\nzero_optimization.reduce_bucket_size says, used or not: try one of a million"
        )
    if skipped := {name: own["skipped_updates"] for name, own in methods.items() if own["skipped_updates"]}:
        notes.append(f"updates without a step because gradients were not finite: {skipped}; use a longer --warmup")
    return ["", *notes] if notes else []


def _profiled(models: dict[str, dict[str, float]]) -> list[str]:
    if not models:
        return []
    lines = ["", "forward GFLOPs of one sequence, online    DeepSpeed's profiler    predicted"]
    for name, flops in models.items():
        lines.append(f"{name:38}{flops['deepspeed'] / 1e9:>24.4f}{flops['predicted'] / 1e9:>13.4f}")
    return [*lines, "(the profiler counts element-wise work too, but not the sampler, which is in no module)"]
