"""Where a GPU's time goes: kernels by name and by what they do."""

import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from contenders.common import DEVICE

LISTED = 40  # kernels of a table
# What a kernel does, by its name: the first pattern that matches.
KINDS = {
    "attention": r"fmha|flash|attention|sdpa|^forward$|^backward_(queries|keys|bias)$|^add_diagonals$",
    "product": r"gemm|nvjet|xmma|splitk|cublas|cutlass",
    "sampler": r"^_scan|^_draw",
    "optimizer": r"multi_tensor|adam",
    "compiled": r"^triton_",
    "normalization": r"layer_?norm|gammabeta",
    "dropout": r"dropout",
    "copy": r"memcpy|memset|catarray|copy",
    "reduction": r"reduce",
    "element-wise": r"elementwise|fill|index|gather|scatter",
}


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """Return how long the work takes, on the GPU too."""
    synchronize()
    began = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - began


def kernels(work: Callable[[], object]) -> dict[str, Any]:
    """Return the milliseconds that the work takes, its kernels' by what they do, and the longest ones by name.

    `busy_ms` is the time of all kernels together. If it is much shorter than `wall_ms`, the GPU waited for the host.
    On a CPU, operators take the place of kernels.
    """
    on_gpu = DEVICE.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as profiler:
        wall = seconds(work)
    rows = []
    for event in profiler.key_averages():
        if on_gpu != (event.device_type == torch.autograd.DeviceType.CUDA):
            continue  # on a GPU, an operator's row repeats the time of its kernels
        ms = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3
        if not getattr(event, "is_user_annotation", False):
            rows.append({"name": event.key[:160], "kind": kind(event.key), "calls": event.count, "ms": ms})
    rows.sort(key=lambda row: -row["ms"])
    of_kind: Counter[str] = Counter()
    for row in rows:
        of_kind[row["kind"]] += row["ms"]
    return {"wall_ms": 1e3 * wall, "busy_ms": sum(of_kind.values()), "kinds": of_kind, "longest": rows[:LISTED]}


def kind(name: str) -> str:
    """Return what a kernel does: a key of KINDS, or `other`."""
    return next((key for key, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")


def print_kernels(figures: dict[str, Any], rows: int = 12) -> None:
    """Print the table of `kernels`."""
    print(f"  kernels: {figures['busy_ms']:.1f} ms of {figures['wall_ms']:.1f} ms; ", end="")
    print(", ".join(f"{name} {ms:.1f}" for name, ms in figures["kinds"].most_common()))
    for row in figures["longest"][:rows]:
        print(f"    {row['ms']:8.2f} ms {row['calls']:5} x {row['name'][:110]}", flush=True)
