"""What a run really does, predicted: FLOPs and bytes as named terms for each method, then hours and dollars.

Counted are the matrix products that the code computes (`cost.flops`) and the tensors that a device holds
(`cost.memory`) when every sequence is full; shorter documents cost less.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fast_electra import config, recipes
from fast_electra.config import Config, RunConfig
from fast_electra.cost.methods import (
    METHODS,
    Job,
    frozen_parameters,
    job_of,
    moments,
    sequence_flops,
    trained_parameters,
)
from fast_electra.cost.table_1 import Models
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.files import DESCRIPTION, describe
from fast_electra.settings import UserError


class GPU(NamedTuple):
    """What a maker's data sheet says of one GPU, and what an hour of it may cost.

    `flops_16` is the dense peak of matrix products in `dtype` with sums in fp32, `flops_32` that of fp32 products as
    torch computes them by default (no TF32), both in FLOP/s. `gigabytes` is the nominal memory. The dollars are an
    ASSUMPTION, of on-demand rent in 2026: prices differ by provider, place and month.
    """

    flops_16: float
    flops_32: float
    dtype: str
    gigabytes: float
    dollars_per_hour: float


PRICE_YEAR = 2026
GPUS = {
    "v100": GPU(125e12, 15.7e12, "fp16", 32, 0.50),  # SXM2
    "rtx3090": GPU(71e12, 35.6e12, "bf16", 24, 0.30),
    "rtx4090": GPU(165.2e12, 82.6e12, "bf16", 24, 0.45),
    "a100": GPU(312e12, 19.5e12, "bf16", 80, 1.50),  # SXM
    "h100": GPU(989.4e12, 66.9e12, "bf16", 80, 2.50),  # SXM
    "h200": GPU(989.4e12, 66.9e12, "bf16", 141, 3.50),  # SXM
}


def named_gpu(name: str) -> GPU:
    """The GPU of that name.

    Raises:
        UserError: there is none.
    """
    if name.lower() not in GPUS:
        raise UserError(f"--gpu {name}: the peak of that GPU is not known here; name one of {', '.join(GPUS)}")
    return GPUS[name.lower()]


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


def paper_models() -> dict[str, Models]:
    """Table 2: the recipes that are the paper's."""

    def settings(name: str, objective: str) -> EncoderSettings:
        return EncoderSettings(**recipes.recipe(name, objective)["model"])

    return {name: Models(settings(name, "rtd"), settings(name, "mlm")) for name in ("base", "large")}


def estimate_config(path: str | Path, overrides: list[str], machine: Machine) -> dict[str, Any]:
    """The cost of a config's run; `method` in it is the one that the config itself follows.

    What the config leaves `auto` is what the named GPU is best at, not this machine.
    """
    machine.check()
    best = named_gpu(machine.gpu).dtype
    loaded = config.load(path, overrides, config.Machine(machine.gpus, best, on_gpu=True))
    if loaded.dtype == "bf16" and best != "bf16":
        raise UserError(f"{path}: bf16.enabled is true, but a {machine.gpu} does not compute in bf16; use fp16 or auto")
    auxiliary, source = auxiliary_settings(loaded.run)
    notes = [f"{loaded.dtype}, as the config says or, where it says auto, as suits the {machine.gpu}"]
    if auxiliary is not None:
        notes.append(f"layers of the auxiliary: {auxiliary.layers} of width {auxiliary.hidden_size}, as {source} says")
    job = job_of_config(loaded, auxiliary)
    return {"config": str(path), "method": method_of(loaded.run), **estimate(job, machine, notes)}


def job_of_config(loaded: Config, auxiliary: EncoderSettings | None) -> Job:
    """The job of a resolved config with this auxiliary; see `job_of`."""
    run, machine = loaded.run, loaded.machine
    return job_of(
        model=run.model,
        auxiliary=auxiliary,
        sharing=run.joint.embedding_sharing if run.joint else "shared",
        length=run.corpus.sequence_length,
        mask_fraction=run.corruption.mask_fraction,
        updates=run.updates,
        deepspeed=loaded.deepspeed,
        world=machine.processes,
        dtype=loaded.dtype,
        auxiliary_dtype=loaded.auxiliary_dtype if run.auxiliary else machine.best_dtype,
        on_gpu=machine.on_gpu,
    )


def method_of(run: RunConfig) -> str:
    """Which of the methods a config follows; one that needs no auxiliary costs as much as an offline one."""
    if run.objective != "rtd":
        return run.objective
    return "online" if run.replacement.from_auxiliary and not run.replacement.store else "offline"


def auxiliary_settings(run: RunConfig) -> tuple[EncoderSettings | None, str]:
    """Sizes of the auxiliary that stands beside a main model, and what they come from; None for objective mlm.

    That of `auxiliary.run` where it is trained already; else one whose layers are the main model's, as many as
    `joint.auxiliary_layers` or the recipe say (Table 2).
    """
    if run.objective == "mlm":
        return None, ""
    if run.auxiliary is not None and run.auxiliary.run is not None:
        folder = Path(run.auxiliary.run) / "model"
        if description := describe(folder):
            return EncoderSettings(**description["encoder"]), str(folder / DESCRIPTION)
    if run.joint is not None:
        layers, source = run.joint.auxiliary_layers, "joint.auxiliary_layers"
    else:
        layers, source = recipes.recipe(run.recipe, "mlm")["model"]["layers"], f"the recipe {run.recipe}"
    return run.model.model_copy(update={"layers": layers}), source
