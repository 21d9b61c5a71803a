"""The estimate of a run: FLOPs and bytes as named terms for each method, then hours and, at a given price, dollars.

It counts the matrix products that the code computes (`cost.flops`) and the tensors that a device holds
(`cost.memory`). FLOPs are by the lengths of the corpus, if there is one yet. Bytes are those of full sequences.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fast_electra import config, recipes
from fast_electra.batch import ceil_div
from fast_electra.config import SECTION, Config, RunConfig
from fast_electra.corpus.corpus import open_corpus
from fast_electra.cost import memory, methods
from fast_electra.cost.flops import Lengths
from fast_electra.cost.methods import METHODS, Job, highest_moment, job_of, main_settings, sequence_flops, update_flops
from fast_electra.cost.table_1 import Models
from fast_electra.huggingface.settings import HuggingFaceSettings
from fast_electra.huggingface.sizes import sizes_of
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.files import DESCRIPTION, describe
from fast_electra.settings import UserError

SHORTEST = 6  # tokens of the shortest sequence: half of a document of 8, [CLS] and [SEP]
SAMPLE = 2**20  # sequences of a corpus whose lengths are looked up, at most
CHECKPOINTING = f"{SECTION}.model.activation_checkpointing"
# Share of a device's memory that a suggestion leaves free. The estimate counts tensors only: on a GPU, CUDA with its
# libraries takes about 1 GB, NCCL's buffers another, and fragmentation often a tenth of all; on a CPU, the system and
# the processes' own code take their part. On a GPU, no estimate was measured yet.
MARGIN = 0.2


class GPU(NamedTuple):
    """Peak speed and memory of a GPU, from its maker's data sheet."""

    flops_16: float  # FLOP/s of dense matrix products in `dtype` with sums in fp32
    flops_32: float  # FLOP/s of fp32 products as torch computes them by default, without TF32
    dtype: str  # the best 16-bit precision: bf16 or fp16
    gigabytes: float  # nominal memory

    def peak(self, dtype: str) -> float:
        """FLOP/s of one GPU in a precision."""
        return self.flops_32 if dtype == "fp32" else self.flops_16


GPUS = {
    "v100": GPU(125e12, 15.7e12, "fp16", 32),  # SXM2
    "rtx3090": GPU(71e12, 35.6e12, "bf16", 24),
    "rtx4090": GPU(165.2e12, 82.6e12, "bf16", 24),
    "a100": GPU(312e12, 19.5e12, "bf16", 80),  # SXM
    "h100": GPU(989.4e12, 66.9e12, "bf16", 80),  # SXM
    "h200": GPU(989.4e12, 66.9e12, "bf16", 141),  # SXM
}


@dataclass(frozen=True)
class Cluster:
    """The GPUs that a run is estimated for."""

    gpu: str  # a key of GPUS, in upper or lower case
    gpus: int
    mfu: float  # share of the GPUs' peak that all counted FLOPs reach
    dollars_per_hour: float | None = None  # of one GPU; without it the estimate has no dollars

    def __post_init__(self) -> None:
        """Refuse values that cannot be, by a UserError that names the flag of the command line."""
        if self.gpus < 1:
            raise UserError(f"--gpus {self.gpus}: at least one GPU must do the work")
        if not 0.0 < self.mfu <= 1.0:
            raise UserError(f"--mfu {self.mfu:g} must be a share of the peak: a number over 0 and up to 1, such as 0.4")
        if self.dollars_per_hour is not None and not 0.0 <= self.dollars_per_hour < float("inf"):
            raise UserError(f"--dollars-per-hour must be a price, 0 or more, not {self.dollars_per_hour:g}")
        if self.gpu.lower() not in GPUS:
            raise UserError(f"--gpu {self.gpu}: the peak of that GPU is not known here; name one of {', '.join(GPUS)}")

    @property
    def sheet(self) -> GPU:
        """Data sheet of the GPU."""
        return GPUS[self.gpu.lower()]


def estimate_config(path: str | Path, overrides: list[str], cluster: Cluster) -> dict[str, Any]:
    """Return the cost of a config's run by each method: `run` in the output of `fast-electra estimate --json`.

    Values that the config leaves `auto` are what suits the named GPU, not this machine.

    Returns:
        `method`, which the config follows, and `methods`: for each method (only itself for objective mlm) `parameters`
        (trained, frozen), `flops_per_sequence` (for each model its named terms), `flops_per_update`, `bytes_per_device`
        (named terms at the `highest_moment` of an update), their totals, `gpu_hours`, `hours` and, at a given price,
        `dollars`; then `machine`, `batch`, `lengths` (on average, and what they are of), `updates`,
        and `assumptions`, `advice` and `warnings`, a line each.
    """
    best = cluster.sheet.dtype
    loaded = config.load(path, overrides, config.Machine(cluster.gpus, best, on_gpu=True, runs_triton=best == "bf16"))
    if loaded.dtype == "bf16" and best != "bf16":
        raise UserError(f"{path}: bf16.enabled is true, but a {cluster.gpu} does not compute in bf16; use fp16 or auto")
    auxiliary = None
    notes = [f"{loaded.dtype}, as the config says or, if it says auto, as suits the {cluster.gpu}"]
    if loaded.run.objective != "mlm":
        auxiliary, source = auxiliary_settings(loaded.run)
        notes.append(f"layers of the auxiliary: {auxiliary.layers} of width {auxiliary.hidden_size}, as {source} says")
    lengths, source = corpus_lengths(loaded.run)
    job = job_of(loaded, auxiliary, lengths)
    notes.append(f"FLOPs are of {job.lengths.mean:,.1f} tokens a sequence, {job.lengths.masked:,.1f} masked: {source}")
    advice = checkpointing_advice(loaded, cluster.sheet.gigabytes * 1e9, lengths)
    costs = {method: _cost(job, cluster, method) for method in (METHODS if auxiliary else ("mlm",))}
    per_device = {"per_device": job.batch.sequences, "length": job.batch.lengths.longest}
    given = {name: value for name, value in asdict(cluster).items() if value is not None}
    return {
        "config": str(path),
        "method": method_of(loaded.run),
        "machine": given | {"peak_flops": cluster.sheet.peak(loaded.dtype)},
        "batch": {"sequences": job.sequences} | per_device | {"dtype": loaded.dtype},
        "lengths": job.lengths._asdict() | {"of": source},
        "updates": job.updates,
        "methods": costs,
        "assumptions": notes + _assumptions(job, cluster, costs),
        "advice": [] if advice is None else [advice],
        "warnings": _warnings(cluster, costs, job.model.activation_checkpointing),
    }


def corpus_lengths(run: RunConfig) -> tuple[Lengths | None, str]:
    """Return the lengths of a run's sequences, or None if its corpus cannot be read; and a phrase that says which.

    Of a large corpus, SAMPLE sequences at most are looked up, evenly spaced. No token is read.
    """
    try:
        train = open_corpus(run.corpus, run.vocabulary_size, verify=False).train
    except UserError as error:
        return None, f"all are full, because no corpus is read ({error}); shorter ones cost less"
    sample = torch.arange(0, len(train), ceil_div(len(train), SAMPLE))
    return Lengths.of(train.lengths(sample), run.corruption.mask_fraction), "the average of the corpus"


def checkpointing_advice(loaded: Config, capacity: float, lengths: Lengths | None = None) -> str | None:
    """Return one line for a run with activation checkpointing that would fit into memory without it, else None.

    A share MARGIN of the `capacity`, in bytes of one device's memory, stays free. FLOPs are by `lengths`, memory is
    that of full sequences.
    """
    run, method = loaded.run, method_of(loaded.run)
    if not run.model.activation_checkpointing:
        return None
    job = job_of(loaded, auxiliary_settings(run)[0] if method in ("joint", "online") else None, lengths)
    plain = replace(job, model=job.model.model_copy(update={"activation_checkpointing": False}))
    need = highest_moment(plain, method).bytes
    if need > (1 - MARGIN) * capacity:
        return None
    saved = 1 - update_flops(plain, method) / update_flops(job, method)
    return (
        f"activation checkpointing can be off: without it a device needs {need / 1e9:,.1f} of its "
        f"{capacity / 1e9:,.1f} GB, and an update takes {saved:.0%} fewer FLOPs: --set {CHECKPOINTING}=false"
    )


def check_machine(loaded: Config, capacity: float) -> None:
    """Refuse a run that this machine cannot compute, or that cannot fit into `capacity` bytes, a device's memory.

    The estimate is of the shortest sequences that there are. On a CPU a reduction bucket counts as far as it is filled.

    Raises:
        UserError: the run needs another machine. The message names the keys that decide it.
    """
    run, method = loaded.run, method_of(loaded.run)
    job = job_of(loaded, auxiliary_settings(run)[0] if method in ("joint", "online") else None)
    if job.model.attention == "triton" and not memory.keeps_no_pairs(job.model, job.batch):
        wanted = "an Ampere GPU or newer, 16 bit, and heads of 32, 64 or 128"
        raise UserError(f"{SECTION}.model.attention: triton needs {wanted}; use auto")
    short = job.batch._replace(lengths=Lengths.of(torch.tensor([SHORTEST]), run.corruption.mask_fraction))
    zero = job.zero
    if not loaded.machine.on_gpu:
        zero = zero._replace(bucket=min(zero.bucket, methods.trained_parameters(job, method)))
    need = highest_moment(replace(job, batch=short, zero=zero), method)
    if need.bytes > capacity:
        name, size = max(need.terms.items(), key=lambda term: term[1])
        raise UserError(
            f"a process needs at least {need.bytes / 1e9:,.1f} GB of memory and has {capacity / 1e9:,.1f} GB; most is "
            f"{name} ({size / 1e9:,.1f} GB): lower the sizes in {SECTION}.model, train_micro_batch_size_per_gpu or "
            "zero_optimization.reduce_bucket_size"
        )


def _cost(job: Job, cluster: Cluster, method: str) -> dict[str, Any]:
    terms, per_update, highest = sequence_flops(job, method), update_flops(job, method), highest_moment(job, method)
    trained, frozen = methods.trained_parameters(job, method), methods.frozen_parameters(job, method)
    gpu_hours = job.updates * per_update / (cluster.sheet.peak(job.zero.dtype) * cluster.mfu) / 3600
    price = cluster.dollars_per_hour
    return {
        "parameters": {"trained": trained, "frozen": frozen},
        "flops_per_sequence": terms,
        "flops_per_sequence_total": sum(sum(part.values()) for part in terms.values()),
        "flops_per_update": per_update,
        "bytes_per_device": highest.terms,
        "bytes_per_device_total": highest.bytes,
        "highest_moment": highest.name,
        "gpu_hours": gpu_hours,
        "hours": gpu_hours / cluster.gpus,
        **({} if price is None else {"dollars": gpu_hours * price}),
    }


def _assumptions(job: Job, cluster: Cluster, costs: dict[str, dict[str, Any]]) -> list[str]:
    """Return what a reader must know before trusting the figures, a line each."""
    full, dtype, peak = job.batch.lengths.longest, job.zero.dtype, cluster.sheet.peak(job.zero.dtype)
    mask = "" if memory.keeps_no_pairs(job.model, job.batch) else ", but each layer its mask of bias and padding"
    lines = [
        "FLOPs are of matrix products; a backward pass is two forward passes; element-wise work is left out",
        f"each {cluster.gpu} reaches {cluster.mfu:.0%} of {peak / 1e12:,.1f} TFLOP/s of {dtype}, all "
        "counted FLOPs included (--mfu)",
        "evaluations, checkpoints, start-up and waiting for data or the network take no time",
        f"bytes are of tensors, at the highest moment of an update of full sequences ({full} tokens), the largest that "
        "may come; CUDA, NCCL and fragmentation come on top",
        "ZeRO-2: weights whole on each device, optimizer states and gradients shared out evenly",
        f"attention is fused: no device holds its probabilities{mask}",
    ]
    if cluster.dollars_per_hour is not None:
        lines.append(f"an hour of one {cluster.gpu} is ${cluster.dollars_per_hour:,.2f}, as given")
    if "offline" in costs:
        forward = sum(costs["online"]["flops_per_sequence"]["auxiliary"].values()) / 1e9
        lines += [
            "training the frozen auxiliary is a run of its own, not counted here",
            f"writing the offline data is not counted either: the auxiliary's {forward:,.1f} GFLOPs for each sequence",
        ]
    return lines


def _warnings(cluster: Cluster, costs: dict[str, dict[str, Any]], checkpointed: bool) -> list[str]:
    """Return one line for each method that the GPU's memory cannot hold."""
    room, remedy = cluster.sheet.gigabytes, "" if checkpointed else f", or set {CHECKPOINTING}=true"
    needs = {method: cost["bytes_per_device_total"] / 1e9 for method, cost in costs.items()}
    return [
        f"{method} needs {need:,.1f} GB, and the {cluster.gpu} has {room:g} GB: lower train_micro_batch_size_per_gpu "
        f"or zero_optimization.reduce_bucket_size{remedy}"
        for method, need in needs.items()
        if need > room
    ]


def paper_models() -> dict[str, Models]:
    """Return the models of Table 2, from the recipes that are the paper's."""
    return {
        name: Models(*(EncoderSettings(**recipes.recipe(name, objective)["model"]) for objective in ("rtd", "mlm")))
        for name in ("base", "large")
    }


def method_of(run: RunConfig) -> str:
    """Return the method that a config follows. One that needs no auxiliary costs as much as an offline one."""
    if run.objective != "rtd":
        return run.objective
    return "online" if run.replacement.from_auxiliary and not run.replacement.store else "offline"


def auxiliary_settings(run: RunConfig) -> tuple[EncoderSettings, str]:
    """Return the sizes of the auxiliary beside a main model, and what says so.

    For objective rtd they are those of the model in `auxiliary.run`, if that is trained already. Else the layers are
    the main model's, as many as `joint.auxiliary_layers` or the recipe say (Table 2).
    """
    if run.objective == "rtd" and run.auxiliary is not None and run.auxiliary.huggingface is not None:
        folder = Path(run.auxiliary.huggingface)
        return EncoderSettings(**sizes_of(folder)), str(folder)
    if run.objective == "rtd" and run.auxiliary is not None and run.auxiliary.run is not None:
        folder = Path(run.auxiliary.run) / "model"
        if description := describe(folder):
            return EncoderSettings(**description["encoder"]), str(folder / DESCRIPTION)
    if run.joint is not None:
        layers, source = run.joint.auxiliary_layers, "joint.auxiliary_layers"
    elif isinstance(run.model, HuggingFaceSettings):
        return main_settings(run), run.model.huggingface
    else:
        layers, source = recipes.recipe(run.recipe, "mlm")["model"]["layers"], f"the recipe {run.recipe}"
    return main_settings(run).model_copy(update={"layers": layers}), source
