"""The cost of training, measured: seconds per update and the peak memory that tensors occupy (E.1, Table 7).

Several ways to train are measured in turns. In its turn, a way's run is built, some updates warm it up, some are
measured, and everything is freed. So only one engine at a time is in memory. Every turn does the same updates on the
same batches. Each round begins with another way, so that whatever else the machine does affects all of them alike.
"""

import gc
import math
import os
import platform
import re
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

import fast_electra
from fast_electra.cost.estimate import GPU, GPUS
from fast_electra.training.engines import Ranks, sum_over_ranks, wait_for_ranks
from fast_electra.training.loop import Run
from fast_electra.training.machine import cpu_name

MEMORY_UPDATES = 3  # the optimizer's states appear in the first one
TRACED_UPDATES = 3  # the first of them is not in the trace
MARK = "fast_electra: from here on memory is measured"
OTHER_FORMS = {"pcie", "nvl", "ti", "d", "laptop"}  # in a GPU's name: its peak is not the one in GPUS
T = TypeVar("T")
Build = Callable[[], Run]


class Memory(NamedTuple):
    """Bytes that tensors occupy on a device: before the work began, and at its highest moment."""

    held: int
    peak: int


class Turn(NamedTuple):
    """The measured updates of one turn. Each list has one entry for each update."""

    seconds: list[float]  # on the slowest rank
    cpu_seconds: list[float]  # of the CPU's work, on average over ranks: a busy machine changes them less
    rows: list[dict[str, Any]]  # see `Run.update`


class Measured(NamedTuple):
    """The turns of one way to train, and the memory of each rank. Building the engine is not part of the peak."""

    turns: list[Turn]
    memory: list[Memory]


def ratios(seconds: list[list[float]], of_another: list[list[float]]) -> list[float]:
    """Return how many times longer an update took than another way's, for each round by itself.

    Only within a round was the machine equally busy for both.
    """
    return [statistics.median(own) / statistics.median(its) for own, its in zip(seconds, of_another, strict=True)]


def measure(
    builds: Mapping[str, Build], ranks: Ranks, updates: int, warmup: int, rounds: int, tell: Callable[[str], None]
) -> dict[str, Measured]:
    """Measure each way's memory, then their times in turns. All ranks call it and get the same figures.

    A turn has `warmup` updates and then `updates` measured ones. `tell` takes a line that says what comes next.
    """
    tell(f"memory of {', '.join(builds)}")
    measured = {name: Measured([], _memory(build, ranks)) for name, build in builds.items()}
    order = deque(builds)
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}: {', '.join(order)}")
        for name in order:
            measured[name].turns.append(_time(builds[name], ranks, updates, warmup))
        order.rotate(-1)
    return measured


def finished_update(run: Run, n: int) -> dict[str, Any]:
    """Do update n, wait for the end of the device's work, and return the update's row."""
    row, _ = run.update(n)
    if run.ranks.device.type == "cuda":
        torch.cuda.synchronize(run.ranks.device)
    return row


def _time(build: Build, ranks: Ranks, updates: int, warmup: int) -> Turn:
    run, seconds, cpu_seconds, rows = build(), [], [], []
    for n in range(1, warmup + updates + 1):
        wait_for_ranks()  # all begin it together
        began, cpu_began = time.perf_counter(), time.process_time()
        rows.append(finished_update(run, n))
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - cpu_began)
    run.engine.destroy()
    del run
    free(ranks.device)
    slowest = _of_all_ranks(seconds[warmup:], ranks).amax(dim=0)
    mean = _of_all_ranks(cpu_seconds[warmup:], ranks).mean(dim=0)
    return Turn(slowest.tolist(), mean.tolist(), rows[warmup:])


def _memory(build: Build, ranks: Ranks) -> list[Memory]:
    """Return the peak memory of each rank, in rank order."""

    def work(run: Run) -> None:
        for n in range(1, MEMORY_UPDATES + 1):
            finished_update(run, n)
        run.engine.destroy()

    own = tensor_memory(ranks.device, build, work)
    free(ranks.device)
    return [Memory(*of_rank) for of_rank in _of_all_ranks(own, ranks).long().tolist()]


def tensor_memory(device: torch.device, prepare: Callable[[], T], work: Callable[[T], None]) -> Memory:
    """Return the bytes that tensors occupy while `work` runs on what `prepare` returns.

    Tensors that were there before both do not count. On a CPU, torch's profiler sees every allocation of torch's
    allocator, also inside operators, but not memory that numpy allocated, such as a batch's tokens.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        state = prepare()
        held = torch.cuda.memory_allocated(device) - before
        torch.cuda.reset_peak_memory_stats(device)
        work(state)
        return Memory(held, torch.cuda.max_memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        state = prepare()
        gc.collect()  # what building left in cycles is not held
        with record_function(MARK):
            work(state)
        del state  # here, because a block counts until the profiler sees its release
        gc.collect()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    # The profiler's public tables add memory up by operator. Only its tree of events has times and addresses.
    events = sorted(_flat(profiler.profiler.kineto_results.experimental_event_tree()), key=lambda e: e.start_time_ns)
    began = next(event.start_time_ns for event in events if event.name == MARK)
    changes = _changes(events)
    held = sum(size for moment, size in changes if moment < began)
    return Memory(held, max(accumulate((size for moment, size in changes if moment >= began), initial=held)))


def _flat(events: list[Any]) -> list[Any]:
    return [event for top in events for event in (top, *_flat(top.children))]


def _changes(events: list[Any]) -> list[tuple[float, int]]:
    """Return the time and size of every allocation (positive) and release (negative), in order.

    A thread of gloo holds the tensors of a collective operation a moment longer than the operation lasts. If nobody
    else holds one by then, that thread releases it, and the profiler does not see it. Such a block ends here with the
    first of gloo's operations that ends after its allocation. What was allocated before the profile does not count.
    """
    gloo = sorted(event.end_time_ns for event in events if event.name.startswith("gloo:"))
    live: dict[int, tuple[int, int]] = {}  # by address: time and size
    changes: list[tuple[float, int]] = []
    unseen = []
    for event in events:
        if event.name != "[memory]":
            continue
        address, size = event.extra_fields.ptr, event.extra_fields.alloc_size
        before = live.pop(address, None)
        if size > 0:
            live[address] = event.start_time_ns, size
            unseen += [before] if before else []
        elif before:
            changes += [before, (event.start_time_ns, -before[1])]
    for began, size in [*unseen, *live.values()]:
        changes += [(began, size), (next((end for end in gloo if end > began), math.inf), -size)]
    return sorted(changes)


def free(device: torch.device) -> None:
    """Free what is no longer referred to. Engines are full of cycles, and not free before they are destroyed."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def trace(build: Build, ranks: Ranks, path: Path) -> None:
    """Write rank 0's trace of two updates after a first one by torch.profiler, for chrome://tracing or Perfetto."""
    run = build()
    finished_update(run, 1)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (ranks.device.type == "cuda")
    with profile(activities=activities) as profiler:
        for n in range(2, TRACED_UPDATES + 1):
            with record_function(f"update {n}"):
                finished_update(run, n)
    if ranks.rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
    run.engine.destroy()
    del run
    free(ranks.device)


def known_gpu(name: str) -> GPU | None:
    """Return the data sheet for a device's name, if it is one of GPUS. Other forms of a GPU have other peaks."""
    words = re.split(r"[ -]+", name.lower().replace("rtx ", "rtx"))
    found = [gpu for key, gpu in GPUS.items() if key in words]
    return found[0] if found and not OTHER_FORMS & set(words) else None


def machine(ranks: Ranks) -> dict[str, Any]:
    """Return what the figures depend on."""
    packages = {name: version(name) for name in ("torch", "deepspeed")}
    return {
        "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu",
        "processes": ranks.world,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | packages | {"fast_electra": fast_electra.__version__},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg(),
    }


def _of_all_ranks(values: Sequence[float], ranks: Ranks) -> Tensor:
    """Return the values of each rank, a row each, on all of them."""
    table = torch.zeros(ranks.world, len(values), dtype=torch.float64, device=ranks.device)
    table[ranks.rank] = torch.tensor(values, dtype=torch.float64)
    return sum_over_ranks(table)
