"""A run's sizes, and what each of the paper's methods then trains, computes and holds.

The methods are those of section 4: *joint* trains an auxiliary beside the main model, *online* draws replacements from
a frozen one, *offline* reads them from a store (or draws them without an auxiliary, as in D.1). *mlm* is the
auxiliary's own pre-training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch

from fast_electra.corpus.loader import masked_counts
from fast_electra.cost import flops, memory
from fast_electra.cost.flops import Terms
from fast_electra.cost.memory import MicroBatch, Zero
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.files import KINDS
from fast_electra.model.heads import count_parameters
from fast_electra.model.joint import JointModel

METHODS = ("joint", "online", "offline")


@dataclass(frozen=True)
class Job:
    """The sizes of a run that decide its cost."""

    model: EncoderSettings  # what is trained: the main model, or for objective mlm the auxiliary
    auxiliary: EncoderSettings | None  # None for objective mlm
    sharing: str  # of the embedding, where both are trained: see `JointModel`
    batch: MicroBatch
    sequences: int  # of one update, over all devices
    updates: int
    zero: Zero
    auxiliary_dtype: str = "fp32"  # where it is frozen: a key of memory.BYTES


def job_of(
    *,
    model: EncoderSettings,
    auxiliary: EncoderSettings | None,
    sharing: str = "shared",
    length: int,
    mask_fraction: float,
    updates: int,
    deepspeed: Mapping[str, Any],
    world: int,
    dtype: str,
    auxiliary_dtype: str | None = None,
    on_gpu: bool = True,
) -> Job:
    """The job of a resolved config.

    Args:
        deepspeed: `Config.deepspeed`, resolved for `world` processes.
        dtype: of weights and activations: a key of `memory.BYTES`. `auxiliary_dtype` is the same unless given.
    """
    zero = deepspeed["zero_optimization"]
    contiguous = zero.get("contiguous_gradients", True)
    micro = deepspeed["train_micro_batch_size_per_gpu"]
    masked = int(masked_counts(torch.tensor([length]), mask_fraction)[0])
    return Job(
        model=model,
        auxiliary=auxiliary,
        sharing=sharing,
        batch=MicroBatch(micro, length, masked, dtype, on_gpu),
        sequences=deepspeed["train_batch_size"],
        updates=updates,
        zero=Zero(
            world=world,
            dtype=dtype,
            gradient_dtype=deepspeed["data_types"]["grad_accum_dtype"],
            bucket=int(zero.get("reduce_bucket_size", Zero._field_defaults["bucket"])),
            buckets=(2 if zero.get("overlap_comm") and world > 1 else 1) if contiguous else 0,
        ),
        auxiliary_dtype=auxiliary_dtype or dtype,
    )


class Moment(NamedTuple):
    """A point of an update at which memory may be highest, and what a device holds then, in bytes."""

    name: str
    terms: Terms


def trained_parameters(job: Job, method: str) -> int:
    """Of everything that the optimizer owns; a shared embedding once."""
    if method == "joint":
        assert job.auxiliary is not None
        return joint_parameters(job.model, job.auxiliary.layers, job.sharing)
    return parameters(job.model, "mlm" if method == "mlm" else "rtd")


def frozen_parameters(job: Job, method: str) -> int:
    """Of an auxiliary that is used and not trained."""
    return parameters(job.auxiliary, "mlm") if method == "online" and job.auxiliary else 0


def sequence_flops(job: Job, method: str) -> dict[str, Terms]:
    """FLOPs of one sequence: for each model at work, its named terms."""
    batch, checkpointing = job.batch, job.model.activation_checkpointing
    if method == "mlm":
        forward = flops.masked_lm_forward(job.model, batch.length, batch.masked)
        return {"model": flops.trained(forward, checkpointing)}
    parts = {"main model": flops.trained(flops.discriminator_forward(job.model, batch.length), checkpointing)}
    if method == "joint":
        forward = flops.masked_lm_forward(_joint_auxiliary(job), batch.length, batch.masked)
        parts["auxiliary"] = flops.trained(forward, checkpointing)
    elif method == "online":
        assert job.auxiliary is not None
        parts["auxiliary"] = flops.masked_lm_forward(job.auxiliary, batch.length, batch.masked)
    return parts


def moments(job: Job, method: str) -> list[Moment]:
    """The points of an update at which a device may hold most. CUDA's own memory comes on top."""
    trained = trained_parameters(job, method)
    held = memory.states(trained, job.zero)
    frozen_batch = job.batch._replace(dtype=job.auxiliary_dtype)
    found = []
    if method == "online":
        assert job.auxiliary is not None
        held["frozen auxiliary"] = frozen_parameters(job, method) * memory.BYTES[job.auxiliary_dtype]
        found = [
            Moment("aux forward", held | memory.inference(job.auxiliary, frozen_batch)),
            Moment("drawing", held | memory.sampler(job.auxiliary.vocabulary_size, frozen_batch)),
        ]
    waiting = held | memory.reduction_buckets(trained, job.zero)
    if method in ("joint", "mlm"):
        found += _masked_lm_moments(job, method, held, waiting)
    if method != "mlm":
        kept = memory.activations(job.model, job.batch, "rtd") | memory.layer_gradients(job.model, job.batch)
        if method == "joint":
            kept |= _auxiliary_kept(_joint_auxiliary(job), job.batch)
            kept["log-probabilities, fp32"] = _logits(job) * memory.FP32
        found.append(Moment("main backward", waiting | kept))
    found.append(Moment("reduction", waiting | memory.reduction_copy(trained, job.zero)))
    found.append(Moment("step", held | memory.step_copy(trained, job.zero)))
    return found


def _masked_lm_moments(job: Job, method: str, held: Terms, waiting: Terms) -> list[Moment]:
    """Those of a masked language model that is trained: its logits are the largest thing there is."""
    settings = job.model if method == "mlm" else _joint_auxiliary(job)
    size = memory.BYTES[job.zero.dtype]
    embedding = settings.vocabulary_size * (settings.embedding_size or settings.hidden_size)
    backward = {
        "logits in the loss's backward pass": _logits(job) * memory.LOSS_BYTES,
        "gradient of the vocabulary head": embedding * size,
    }
    kept = _auxiliary_kept(settings, job.batch)
    found = [Moment("loss backward", waiting | kept | backward)]
    layers = memory.activations(settings, job.batch, "mlm") | memory.layer_gradients(settings, job.batch)
    found.append(Moment("MLM backward", waiting | layers))
    if method == "joint":
        logits = {"logits and log-probabilities": _logits(job) * (size + memory.FP32)}
        drawing = kept | logits | memory.sampler(settings.vocabulary_size, job.batch, from_logits=True)
        found.append(Moment("drawing", held | drawing))
    return found


def _auxiliary_kept(settings: EncoderSettings, batch: MicroBatch) -> Terms:
    """What waits of a masked language model until its own backward pass: no layer of it is at work yet."""
    terms = memory.activations(settings, batch, "mlm")
    return {"activations of the masked language model": sum(terms.values()) - terms.get(memory.AT_WORK, 0)}


def _joint_auxiliary(job: Job) -> EncoderSettings:
    """The auxiliary of joint training: as deep as the other's, its layers like the main model's (Table 2)."""
    assert job.auxiliary is not None
    return job.model.model_copy(update={"layers": job.auxiliary.layers})


def _logits(job: Job) -> int:
    """Numbers of a micro-batch's logits, M x V."""
    return job.batch.masked_positions * job.model.vocabulary_size


@cache
def parameters(settings: EncoderSettings, kind: str) -> int:
    """Of a model of `kind` ("rtd" or "mlm"), tied ones once."""
    with torch.device("meta"):  # shapes without numbers; nothing can be profiled on it
        return count_parameters(KINDS[kind](settings.model_copy(update={"initialization": "bert"})))


def embedding_parameters(settings: EncoderSettings) -> int:
    """Of the token embedding alone, the column "Embed" of Table 2."""
    return settings.vocabulary_size * (settings.embedding_size or settings.hidden_size)


@cache
def joint_parameters(settings: EncoderSettings, auxiliary_layers: int, sharing: str) -> int:
    """Of the two models that are trained together, a shared embedding once."""
    with torch.device("meta"):
        plain = settings.model_copy(update={"initialization": "bert"})
        return count_parameters(JointModel(plain, auxiliary_layers, sharing))
