"""Estimates and measurements as plain text, for a terminal of 100 columns."""

from collections.abc import Sequence
from functools import partial
from textwrap import wrap
from typing import Any

WIDTH = 100
Cost = dict[str, Any]  # of one method, see `cost.estimate.estimate_config`


def row(name: str, columns: Sequence[str], width: int = 46, column_width: int = 16) -> str:
    """Return one line of a table: a name on the left, and columns that end below each other."""
    return f"{name:{width}}" + "".join(f"{column:>{column_width}}" for column in columns)


def run_text(run: dict[str, Any]) -> str:
    """Return the result of `cost.estimate.estimate_config` as tables with a column for each method."""
    costs, machine, batch = list(run["methods"].values()), run["machine"], run["batch"]
    several = len(costs) > 1
    names = [f"{name} *" if several and name == run["method"] else name for name in run["methods"]]
    figures = {
        "million trained parameters": [cost["parameters"]["trained"] / 1e6 for cost in costs],
        "million frozen parameters": [cost["parameters"]["frozen"] / 1e6 for cost in costs],
        "TFLOPs of one update": [cost["flops_per_update"] / 1e12 for cost in costs],
        "GPU hours": [cost["gpu_hours"] for cost in costs],
        "hours": [cost["hours"] for cost in costs],
        "dollars": [cost["dollars"] for cost in costs if "dollars" in cost],
    }
    lines = [
        f"{run['config']}, as the code runs it",
        f"{run['updates']:,} updates of {batch['sequences']:,} sequences on {machine['gpus']:,} x {machine['gpu']}, "
        f"{batch['per_device']:,} sequences at a time on each, {batch['dtype']}",
        "",
        row("(* this config)" if several else "", names),
        *_flops(costs, run["lengths"]["mean"]),
        "",
        *_memory(costs),
        "",
        "The whole run",
        *(row(f"  {title}", [_short(value) for value in values]) for title, values in figures.items() if values),
    ]
    if several:
        for title, key in (("hours, beside joint", "hours"), ("memory, beside joint", "bytes_per_device_total")):
            lines.append(row(f"  {title}", [f"{cost[key] / costs[0][key]:.2f}" for cost in costs]))
    for title in ("assumptions", "advice", "warnings"):
        if run[title]:
            lines += ["", title.capitalize()]
        for text in run[title]:
            lines += wrap(text, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


def _flops(costs: list[Cost], tokens: float) -> list[str]:
    totals = [{"total": cost["flops_per_sequence_total"]} for cost in costs]
    name, unit = _unit(totals)
    lines = [f"{name}FLOPs of one sequence, of {tokens:,.0f} tokens"]
    for part in dict.fromkeys(part for cost in costs for part in cost["flops_per_sequence"]):
        columns = [cost["flops_per_sequence"].get(part, {}) for cost in costs]
        lines += [f"  {part}", *_terms(columns, unit, digits=2, indent="    ")]
    return [*lines, *_terms(totals, unit, digits=2)]


def _memory(costs: list[Cost]) -> list[str]:
    totals = [{"total": cost["bytes_per_device_total"]} for cost in costs]
    name, unit = _unit(totals)
    return [
        row(f"{name}B on each device, at its highest moment", [cost["highest_moment"] for cost in costs]),
        *_terms([cost["bytes_per_device"] for cost in costs], unit, digits=3),
        *_terms(totals, unit, digits=3),
    ]


def _unit(totals: list[dict[str, float]]) -> tuple[str, float]:
    return ("G", 1e9) if max(column["total"] for column in totals) >= 1e9 else ("M", 1e6)


def _terms(columns: list[dict[str, float]], unit: float, digits: int, indent: str = "  ") -> list[str]:
    """Return a line for each term that is not zero in every column; a dash where a method has no such term."""
    return [
        row(indent + name, [f"{column[name] / unit:,.{digits}f}" if column.get(name) else "-" for column in columns])
        for name in dict.fromkeys(name for column in columns for name in column)
        if any(column.get(name) for column in columns)
    ]


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
    line = partial(row, width=9, column_width=13)
    clocks = ("TFLOP/s each", "MFU") if on_gpu else ("of CPU", "to joint")
    lines = [
        "",
        f"{result['config']}: {batch['sequences']:,} sequences of up to {batch['length']} tokens an update, "
        f"{batch['mean_length']:,.1f} on average, {batch['per_process']:,} at a time a process, {result['dtype']}",
        f"{machine['processes']} x {machine['device']}; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['threads']} thread(s) a process",
        f"{versions}; {machine['date'][:10]}; load average {machine['load_average'][0]:.1f}",
        f"auxiliary: {result['auxiliary']}",
        f"medians of {turns['rounds']} rounds of {turns['updates']} updates after {turns['warmup']} others",
        "",
        line("seconds", ("an update", "middle half", "to joint", "in rounds", "predicted", *clocks)),
    ]
    for method, own in methods.items():
        seconds, ratio = own["seconds_per_update"], own["seconds_ratio"]
        columns = [f"{seconds['median']:.4f}", f"{seconds['lower']:.3f}-{seconds['upper']:.3f}"]
        columns += [f"{ratio['median']:.2f}", f"{ratio['lowest']:.2f}-{ratio['highest']:.2f}"]
        columns += [f"{own['seconds_ratio_predicted']:.2f}"]
        if on_gpu:
            columns += [f"{own['flops_per_second_and_process'] / 1e12:,.1f}"]
            columns += ["unknown GPU" if own["mfu"] is None else f"{own['mfu']:.1%}"]
        else:  # other programs on the machine change the CPU's own seconds less than the wall clock's
            cpu, cpu_ratio = own["cpu_seconds_per_update"], own["cpu_seconds_ratio"]
            columns += [f"{cpu['median']:.4f}", f"{cpu_ratio['median']:.2f}"]
        lines.append(line(method, columns))
    lines += ["", line("memory", ("MB at peak", "predicted", "to joint", "predicted", "at start"))]
    for method, own in methods.items():
        peak, predicted, held = own["peak_bytes"], own["predicted"]["peak_bytes"], own["held_bytes"]
        ratios = [f"{own[key]:.3f}" for key in ("peak_ratio", "peak_ratio_predicted")]
        lines.append(line(method, [f"{peak / 1e6:,.1f}", f"{predicted / 1e6:,.1f}", *ratios, f"{held / 1e6:,.1f}"]))
    lines += _notes(methods)
    if models := result.get("deepspeed_flops"):
        lines += ["", "forward GFLOPs of one sequence, online    DeepSpeed's profiler    predicted"]
        for name, flops in models.items():
            lines.append(f"{name:38}{flops['deepspeed'] / 1e9:>24.4f}{flops['predicted'] / 1e9:>13.4f}")
        lines.append("(the profiler counts element-wise work too, but not the sampler, which is in no module)")
    return "\n".join(lines)


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
