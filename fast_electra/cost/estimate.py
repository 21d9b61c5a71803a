"""What a run really does, predicted: FLOPs and bytes as named terms for each method, then hours and dollars.

Counted are the matrix products that the code computes (`cost.flops`) and the tensors that a device holds
(`cost.memory`) when every sequence is full; shorter documents cost less.
"""

from dataclasses import asdict, dataclass
from typing import Any

from fast_electra.cost.gpus import PRICE_YEAR, named_gpu
from fast_electra.cost.methods import METHODS, Job, frozen_parameters, moments, sequence_flops, trained_parameters
from fast_electra.settings import UserError


@dataclass(frozen=True)
class Machine:
    """What the job runs on. `mfu` is the share of the GPUs' peak that all counted FLOPs reach."""

    gpu: str
    gpus: int
    mfu: float
    dollars_per_hour: float | None = None  # of one GPU; None for the assumption in `gpus.GPUS`

    def check(self) -> None:
        """Raises UserError for what is no machine."""
        if self.gpus < 1:
            raise UserError(f"--gpus {self.gpus}: at least one GPU must do the work")
        if not 0.0 < self.mfu <= 1.0:
            raise UserError(
                f"--mfu {self.mfu:g} is no share of the peak: give a number over 0 and up to 1, such as 0.4"
            )
        if self.dollars_per_hour is not None and not 0.0 <= self.dollars_per_hour < float("inf"):
            raise UserError(f"--dollars-per-hour {self.dollars_per_hour:g} is no price")
        named_gpu(self.gpu)

    @property
    def price(self) -> float:
        """Dollars an hour of one GPU."""
        return named_gpu(self.gpu).dollars_per_hour if self.dollars_per_hour is None else self.dollars_per_hour

    def peak(self, dtype: str) -> float:
        """FLOP/s of one GPU in a number format."""
        gpu = named_gpu(self.gpu)
        return gpu.flops_32 if dtype == "fp32" else gpu.flops_16


def estimate(job: Job, machine: Machine, notes: list[str]) -> dict[str, Any]:
    """The cost of a job on a machine by each method: what `fast-electra estimate --json` holds as `run`.

    Args:
        notes: what was assumed to come to this job; the other assumptions are added.

    Returns:
        `methods`: for each method (for objective mlm that alone) `parameters` (trained, frozen), `flops_per_sequence`
        (for each model its named terms), `flops_per_update`, `bytes_per_device` (named terms at the `highest_moment` of
        an update), their totals, `gpu_hours`, `hours` and `dollars`. Beside it `machine`, `batch`, `updates`,
        `assumptions` and `warnings`, a line each.
    """
    machine.check()
    methods = {method: _cost(job, machine, method) for method in (METHODS if job.auxiliary else ("mlm",))}
    return {
        "machine": asdict(machine) | {"dollars_per_hour": machine.price, "peak_flops": machine.peak(job.zero.dtype)},
        "batch": {
            "sequences": job.sequences,
            "per_device": job.batch.sequences,
            **_lengths(job),
            "dtype": job.zero.dtype,
        },
        "updates": job.updates,
        "methods": methods,
        "assumptions": notes + _assumptions(job, machine, methods),
        "warnings": _warnings(machine, methods),
    }


def _lengths(job: Job) -> dict[str, int]:
    return {"length": job.batch.length, "masked": job.batch.masked}


def _cost(job: Job, machine: Machine, method: str) -> dict[str, Any]:
    terms = sequence_flops(job, method)
    per_sequence = sum(sum(part.values()) for part in terms.values())
    highest = max(moments(job, method), key=lambda moment: sum(moment.terms.values()))
    seconds = job.updates * job.sequences * per_sequence / (machine.peak(job.zero.dtype) * machine.mfu)
    return {
        "parameters": {"trained": trained_parameters(job, method), "frozen": frozen_parameters(job, method)},
        "flops_per_sequence": terms,
        "flops_per_sequence_total": per_sequence,
        "flops_per_update": job.sequences * per_sequence,
        "bytes_per_device": highest.terms,
        "bytes_per_device_total": sum(highest.terms.values()),
        "highest_moment": highest.name,
        "gpu_hours": seconds / 3600,
        "hours": seconds / 3600 / machine.gpus,
        "dollars": seconds / 3600 * machine.price,
    }


def _assumptions(job: Job, machine: Machine, methods: dict[str, dict[str, Any]]) -> list[str]:
    """What a reader must know before trusting the figures, a line each."""
    batch, dtype = job.batch, job.zero.dtype
    peak = f"{machine.peak(dtype) / 1e12:,.1f} TFLOP/s of {dtype}"
    price = f"an assumption of {PRICE_YEAR}; --dollars-per-hour" if machine.dollars_per_hour is None else "as given"
    lines = [
        f"every sequence is full ({batch.length} positions, {batch.masked} masked); shorter documents cost less",
        "FLOPs are of matrix products; a backward pass is two forward passes; element-wise work is left out",
        f"each {machine.gpu} reaches {machine.mfu:.0%} of {peak}, all counted FLOPs included (--mfu)",
        "evaluations, checkpoints, start-up and waiting for data or the network take no time",
        f"an hour of one {machine.gpu} is ${machine.price:,.2f}: {price}",
        "bytes are of tensors, at the highest moment of an update; CUDA, NCCL and fragmentation come on top",
        "ZeRO-2: weights whole on each device, optimizer states and gradients shared out evenly",
    ]
    if batch.on_gpu:
        lines.append(
            "attention is fused: no device holds its probabilities, but each layer its mask of bias and padding"
        )
    if "offline" in methods:
        forward = sum(methods["online"]["flops_per_sequence"]["auxiliary"].values()) / 1e9
        lines += [
            "training the frozen auxiliary is a run of its own, not counted here",
            f"writing the offline data is not counted either: the auxiliary's {forward:,.1f} GFLOPs for each sequence",
        ]
    return lines


def _warnings(machine: Machine, methods: dict[str, dict[str, Any]]) -> list[str]:
    """One line for each method that the GPU's memory cannot hold."""
    room = named_gpu(machine.gpu).gigabytes
    needs = {method: cost["bytes_per_device_total"] / 1e9 for method, cost in methods.items()}
    return [
        f"{method} needs {need:,.1f} GB, and the {machine.gpu} has {room:g} GB: lower train_micro_batch_size_per_gpu, "
        "zero_optimization.reduce_bucket_size, or set fast_electra.model.activation_checkpointing"
        for method, need in needs.items()
        if need > room
    ]
