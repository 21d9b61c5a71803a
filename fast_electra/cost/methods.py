"""Sizes of a run, and what each of the paper's methods then trains, computes and holds.

The methods are those of section 4: *joint* trains an auxiliary beside the main model, *online* draws replacements from
a frozen one, *offline* reads them from a store (or draws them without an auxiliary, as in D.1). *mlm* is the
auxiliary's own pre-training.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from fast_electra.config import Config, RunConfig
from fast_electra.cost import flops, memory
from fast_electra.cost.flops import Lengths, Terms
from fast_electra.cost.memory import MicroBatch, Zero
from fast_electra.huggingface.sizes import sizes_of
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.files import build_model
from fast_electra.model.heads import count_parameters
from fast_electra.model.joint import JointModel

METHODS = ("joint", "online", "offline")


@dataclass(frozen=True)
class Job:
    """The sizes of a run that decide its cost."""

    model: EncoderSettings  # what is trained: the main model, or the auxiliary for objective mlm
    auxiliary: EncoderSettings | None  # None for objective mlm
    sharing: str  # how joint training shares the token embedding: see `JointModel`
    batch: MicroBatch  # decides memory
    lengths: Lengths  # of all sequences: decides FLOPs
    sequences: int  # of one update, over all devices
    updates: int
    zero: Zero
    auxiliary_dtype: str  # precision of a frozen auxiliary: a key of `memory.BYTES`


def main_settings(run: RunConfig) -> EncoderSettings:
    """Return the sizes of the model that a run trains; of an existing one, those that are nearest in our terms."""
    if isinstance(run.model, EncoderSettings):
        return run.model
    checkpointing = {"activation_checkpointing": run.model.activation_checkpointing}
    return EncoderSettings(**sizes_of(Path(run.model.huggingface)) | checkpointing)


def job_of(config: Config, auxiliary: EncoderSettings | None, lengths: Lengths | None = None) -> Job:
    """Return the sizes of a config's run, with an auxiliary of these sizes and sequences of these lengths.

    Without lengths every sequence is full. A micro-batch is full in any case, because no other needs more memory.
    """
    run, machine, deepspeed = config.run, config.machine, config.deepspeed
    zero, micro_batch = deepspeed["zero_optimization"], deepspeed["train_micro_batch_size_per_gpu"]
    full = Lengths.of(torch.tensor([run.corpus.sequence_length]), run.corruption.mask_fraction)
    contiguous = zero.get("contiguous_gradients", True)
    alone_on_cpu = machine.processes == 1 and not machine.on_gpu  # see `training.optimizer.spare_reduction`
    return Job(
        model=main_settings(run),
        auxiliary=auxiliary,
        sharing=run.joint.embedding_sharing if run.joint else "shared",
        batch=MicroBatch(micro_batch, full, config.dtype, machine.on_gpu, machine.runs_triton),
        lengths=lengths or full,
        sequences=config.sequences,
        updates=run.updates,
        zero=Zero(
            world=machine.processes,
            dtype=config.dtype,
            gradient_dtype=deepspeed["data_types"]["grad_accum_dtype"],
            bucket=int(zero.get("reduce_bucket_size", 500_000_000)),
            buckets=0 if alone_on_cpu or not contiguous else 1 + bool(zero.get("overlap_comm")),
        ),
        auxiliary_dtype=config.auxiliary_dtype if run.objective == "rtd" and run.auxiliary else machine.best_dtype,
    )


class Moment(NamedTuple):
    """A point of an update at which memory may be highest, and the bytes that a device holds then."""

    name: str
    terms: Terms

    @property
    def bytes(self) -> float:
        """Sum of the terms."""
        return sum(self.terms.values())


def trained_parameters(job: Job, method: str) -> int:
    """Return how many parameters the optimizer owns. A shared embedding counts once."""
    if method == "joint":
        return parameters(job.model, method, _joint_auxiliary(job).layers, job.sharing)
    return parameters(job.model, "mlm" if method == "mlm" else "rtd")


def frozen_parameters(job: Job, method: str) -> int:
    """Return how many parameters an auxiliary has that is used and not trained."""
    return parameters(job.auxiliary, "mlm") if method == "online" and job.auxiliary else 0


def sequence_flops(job: Job, method: str) -> dict[str, Terms]:
    """Return the FLOPs of an average sequence: for each model at work, its named terms."""
    lengths, checkpointing = job.lengths, job.model.activation_checkpointing
    if method == "mlm":
        return {"model": flops.trained(flops.masked_lm_forward(job.model, lengths), checkpointing)}
    parts = {"main model": flops.trained(flops.discriminator_forward(job.model, lengths), checkpointing)}
    if method == "joint":
        parts["auxiliary"] = flops.trained(flops.masked_lm_forward(_joint_auxiliary(job), lengths), checkpointing)
    elif method == "online":
        assert job.auxiliary is not None
        parts["auxiliary"] = flops.masked_lm_forward(job.auxiliary, lengths)
    return parts


def update_flops(job: Job, method: str) -> float:
    """FLOPs of one update, over all devices."""
    return job.sequences * sum(sum(terms.values()) for terms in sequence_flops(job, method).values())


def highest_moment(job: Job, method: str) -> Moment:
    """Return the moment of an update at which a device holds most. CUDA's own memory is not counted."""
    return max((Moment(*of_name) for of_name in _moments(job, method).items()), key=lambda moment: moment.bytes)


def _moments(job: Job, method: str) -> dict[str, Terms]:
    """Return the points of an update at which a device may hold most."""
    batch, zero, size = job.batch, job.zero, memory.BYTES[job.zero.dtype]
    trained = trained_parameters(job, method)
    held = memory.states(trained, zero)
    moments = {}
    if method == "online":
        assert job.auxiliary is not None
        frozen_batch = batch._replace(dtype=job.auxiliary_dtype)
        held["frozen auxiliary"] = frozen_parameters(job, method) * memory.BYTES[job.auxiliary_dtype]
        moments["aux forward"] = held | memory.inference(job.auxiliary, frozen_batch)
        moments["drawing"] = held | memory.sampler(job.auxiliary.vocabulary_size, frozen_batch)
    waiting = held | memory.reduction_buckets(trained, zero)
    main = memory.activations(job.model, batch, "rtd") | memory.layer_gradients(job.model, batch)
    if method in ("joint", "mlm"):  # the logits of a masked language model are the largest tensors of all
        settings = _joint_auxiliary(job) if method == "joint" else job.model
        logits = batch.masked * settings.vocabulary_size * size
        activations = memory.activations(settings, batch, "mlm")
        kept = sum(activations.values()) - activations.get(memory.AT_WORK, 0)  # until its own backward pass
        model = {"activations of the masked language model": kept}
        head = {"gradient of the vocabulary head": embedding_parameters(settings) * size}
        moments["loss backward"] = waiting | model | memory.loss(settings.vocabulary_size, batch)
        moments["head backward"] = waiting | model | {"gradient of the logits": logits} | head
        moments["MLM backward"] = waiting | activations | memory.layer_gradients(settings, batch)
        if method == "joint":
            sampler = memory.sampler(settings.vocabulary_size, batch, from_logits=True)
            moments["drawing"] = held | model | {"logits": logits} | sampler
            main |= model | {"logits": logits}
    if method != "mlm":
        moments["main backward"] = waiting | main
    # The backward pass ends with a flat copy of a bucket's gradients, the step begins with one of this device's share,
    # unless the share is one buffer already, which it is if gradients are added up in another precision.
    moments["reduction"] = waiting | {"gradients on their way": min(trained, zero.bucket) * size}
    flattened = trained / zero.world * size if zero.dtype == zero.gradient_dtype else 0
    moments["step"] = held | {"gradients, flattened": flattened}
    return moments


def _joint_auxiliary(job: Job) -> EncoderSettings:
    """Return the sizes of joint training's auxiliary: its layers are like the main model's (Table 2)."""
    assert job.auxiliary is not None
    return job.model.model_copy(update={"layers": job.auxiliary.layers})


@cache
def parameters(settings: EncoderSettings, kind: str, auxiliary_layers: int = 0, sharing: str = "none") -> int:
    """Return how many parameters a model of `kind` ("rtd", "mlm", or "joint" for both) has. Shared ones count once."""
    plain = settings.model_copy(update={"initialization": "bert"})  # Admin would have to run the model
    with torch.device("meta"):  # shapes without numbers
        model = JointModel(plain, auxiliary_layers, sharing) if kind == "joint" else build_model(kind, plain)
    return count_parameters(model)


def embedding_parameters(settings: EncoderSettings) -> int:
    """Return how many parameters the token embedding has: the column "Embed" of Table 2."""
    return settings.vocabulary_size * (settings.embedding_size or settings.hidden_size)
