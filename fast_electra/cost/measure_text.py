"""What was measured, as a table for a terminal of 100 columns."""

from typing import Any

NAME, COLUMN = 9, 13


def table(result: dict[str, Any]) -> str:
    """Table 7, one line a method, from what `fast_electra.measuring` returns."""
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
        _row("seconds", ["an update", "middle half", "to joint", "in rounds", "predicted"])
        + _row("", ["TFLOP/s each", "MFU"] if on_gpu else ["of CPU", "to joint"], 0),
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
        lines.append(_row(method, columns + (_of_gpu if on_gpu else _of_cpu)(figures)))
    lines += ["", _row("memory", ["MB at peak", "predicted", "to joint", "predicted", "at start"])]
    for method, figures in result["methods"].items():
        columns = [
            f"{figures['peak_bytes'] / 1e6:,.1f}",
            f"{figures['predicted']['peak_bytes'] / 1e6:,.1f}",
            f"{figures['peak_ratio']:.3f}",
            f"{figures['peak_ratio_predicted']:.3f}",
            f"{figures['held_bytes'] / 1e6:,.1f}",
        ]
        lines.append(_row(method, columns))
    return "\n".join(lines + _notes(result) + _flops(result))


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


def _flops(result: dict[str, Any]) -> list[str]:
    if "deepspeed_flops" not in result:
        return []
    lines = ["", "forward GFLOPs of one sequence, online    DeepSpeed's profiler    predicted"]
    for name, flops in result["deepspeed_flops"].items():
        lines.append(f"{name:38}{flops['deepspeed'] / 1e9:>24.4f}{flops['predicted'] / 1e9:>13.4f}")
    return [*lines, "(the profiler counts element-wise work too, but not the sampler, which is in no module)"]


def _row(name: str, columns: list[str], width: int = NAME) -> str:
    return f"{name:{width}}" + "".join(f"{column:>{COLUMN}}" for column in columns)
