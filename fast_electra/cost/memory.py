"""Bytes that one device holds, as named terms: states under ZeRO-2, activations, logits.

The terms follow DeepSpeed 0.19 (`runtime/zero/stage_1_and_2.py`) and the code in `fast_electra/model`.
`tests/cost/test_memory.py` compares the activations with what torch really keeps for the backward pass.
"""

from typing import NamedTuple

from fast_electra.cost.flops import Lengths, Terms
from fast_electra.model.attention import HEAD_SIZES
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.rectangles import AREA
from fast_electra.objectives.cross_entropy import block_rows
from fast_electra_kernels import workspace_bytes

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
FP32 = 4

AT_WORK = "activations, the layer at work"  # with activation checkpointing: recomputed in the backward pass


class Zero(NamedTuple):
    """The part of DeepSpeed's config that decides memory."""

    world: int  # number of devices
    dtype: str  # precision of weights and activations: a key of BYTES
    gradient_dtype: str  # data_types.grad_accum_dtype
    bucket: int  # reduce_bucket_size, in elements
    buckets: int  # two with overlap_comm, none without contiguous_gradients or in one process


class MicroBatch(NamedTuple):
    """The sizes of what one device computes at once."""

    sequences: int
    lengths: Lengths
    dtype: str  # precision of the activations: a key of BYTES
    on_gpu: bool = True
    runs_triton: bool = True  # whether the GPU is new enough for our kernels

    @property
    def tokens(self) -> float:
        """Number of tokens of all sequences."""
        return self.sequences * self.lengths.mean

    @property
    def masked(self) -> int:
        """Number of masked positions of all sequences."""
        return round(self.sequences * self.lengths.masked)

    @property
    def pairs(self) -> float:
        """Number of pairs of positions in attention's rectangles: a GPU has one, a CPU many with little padding."""
        return self.sequences * (self.lengths.longest**2 if self.on_gpu else self.lengths.mean_square)


def states(trained: int, zero: Zero) -> Terms:
    """Return the terms of so many trained parameters.

    ZeRO-2 keeps all weights on each device and divides the rest among the devices. DeepSpeed copies the weights in fp32
    for its optimizer even if they are fp32 already.
    """
    share = trained / zero.world
    return {
        "weights": trained * BYTES[zero.dtype],
        "fp32 copy of the weights, shared out": share * FP32,
        "Adam's two moments, shared out": share * 2 * FP32,
        "gradients, shared out": share * BYTES[zero.gradient_dtype],
    }


def reduction_buckets(trained: int, zero: Zero) -> Terms:
    """Return the term of the buckets where gradients wait to be reduced, through the whole backward pass.

    DeepSpeed allocates them as large as they are configured, however small the model is.
    """
    if not zero.buckets:
        return {"gradients before their reduction": min(trained, zero.bucket) * BYTES[zero.dtype]}
    return {"reduction's buckets": zero.buckets * zero.bucket * BYTES[zero.dtype]}


def keeps_no_pairs(settings: EncoderSettings, batch: MicroBatch) -> bool:
    """Return whether attention has nothing of the size [B, H, L, L] in memory; see `model.attention.choose`."""
    fits = settings.hidden_size // settings.heads in HEAD_SIZES and settings.attention in ("auto", "triton")
    return batch.on_gpu and batch.runs_triton and batch.dtype != "fp32" and fits


def layer_bytes(settings: EncoderSettings, batch: MicroBatch, read: int | None = None) -> float:
    """Return the bytes that one layer keeps for its backward pass, without its input.

    A layer keeps query, key and value of all tokens. Of the tokens that it computes after the attention, it keeps
    the attention's output, the inputs of both norms, the output of the first norm, and the feed-forward's numbers
    before and after GELU. These are `read` tokens, or all. The last layer of a masked language model computes only
    the masked ones.
    """
    size, d = BYTES[batch.dtype], settings.hidden_size
    rows = batch.tokens if read is None else read
    values = 3 * batch.tokens * d + rows * (4 * d + 2 * settings.ffn_size)
    if read is not None:
        values += rows * d  # the residual's rows are a copy
        if batch.on_gpu:
            values += batch.tokens * d  # fused attention's output, which is counted above without `read`
    dropped = 2 * rows * d if settings.dropout and batch.on_gpu else 0  # a CPU makes its masks again
    norms = 2 * rows * 2 * FP32  # mean and deviation
    no_pairs = keeps_no_pairs(settings, batch)  # else probabilities on a CPU, and a mask of bias and padding on a GPU
    attention = 0 if no_pairs else settings.heads * batch.pairs * size
    if batch.on_gpu:  # a log-sum-exp for each row and head, and a word if Triton's kernels drop
        attention += batch.tokens * settings.heads * FP32 * (2 if no_pairs and settings.attention_dropout else 1)
    return values * size + dropped + norms + attention


def activations(settings: EncoderSettings, batch: MicroBatch, kind: str) -> Terms:
    """Return the terms of what a forward pass keeps for the backward pass, without logits and loss.

    The head of a model of kind "rtd" reads all tokens, that of kind "mlm" the masked ones.
    """
    size, d, tokens = BYTES[batch.dtype], settings.hidden_size, batch.tokens
    embedding_size = settings.embedding_size or d
    dropped = d if settings.dropout and batch.on_gpu else 0
    embedding = tokens * (d * size + 2 * FP32 + dropped)  # the norm's input
    if embedding_size != d:
        embedding += tokens * embedding_size * size
    if kind == "rtd":
        last, head = layer_bytes(settings, batch), tokens * 3 * d * size
    else:
        read = batch.masked
        last, head = layer_bytes(settings, batch, read), read * ((d + 3 * embedding_size) * size + 2 * FP32)
    if settings.activation_checkpointing:
        inside = {AT_WORK: last if settings.layers == 1 else layer_bytes(settings, batch)}
    else:
        inside = {"activations inside the layers": (settings.layers - 1) * layer_bytes(settings, batch) + last}
    return {
        "activations between the layers": settings.layers * tokens * d * size,
        **inside,
        "activations of embedding and head": embedding + head,
    }


def layer_gradients(settings: EncoderSettings, batch: MicroBatch) -> Terms:
    """Return the term of the gradients inside the layer whose backward pass runs.

    The larger of two moments counts: the backward pass of the feed-forward, and that of the attention after it.
    """
    d, ffn = settings.hidden_size, settings.ffn_size
    at_work = batch.pairs if batch.on_gpu else 2 * min(batch.pairs, max(AREA, batch.lengths.longest**2))  # a rectangle
    pairs = 0 if keeps_no_pairs(settings, batch) else settings.heads * at_work
    feed = batch.tokens * (2 * d + ffn)
    attention = pairs + batch.tokens * 4 * d - batch.tokens * (2 * d + 2 * ffn)
    return {"gradients of the layer at work": max(feed, attention) * BYTES[batch.dtype]}


def sampler(vocabulary: int, batch: MicroBatch, from_logits: bool = False) -> Terms:
    """Return the term of drawing. The [M, V] matrix never exists, except in joint training, which has it anyway."""
    impl = "triton" if batch.on_gpu and not from_logits else "blocked"
    return {"sampler's workspace": workspace_bytes(batch.masked, vocabulary, impl, batch.on_gpu)}


def loss(vocabulary: int, batch: MicroBatch) -> Terms:
    """Return the terms of the backward pass of a masked language model's loss. It is fp32 in a block of rows alone."""
    block = min(batch.masked, block_rows(vocabulary, batch.on_gpu)) * vocabulary
    return {
        "logits and their gradient": 2 * batch.masked * vocabulary * BYTES[batch.dtype],
        "the loss's block": block * FP32 * (1 if batch.dtype == "fp32" else 2),  # and a copy of 16-bit logits
    }


def inference(settings: EncoderSettings, batch: MicroBatch) -> Terms:
    """Return the term of a frozen model: one layer's input, query, key and value, or its feed-forward's numbers."""
    size, d = BYTES[batch.dtype], settings.hidden_size
    pairs = 0 if keeps_no_pairs(settings, batch) else settings.heads * batch.pairs
    attention = batch.tokens * 5 * d + pairs
    return {"auxiliary's layer at work": max(attention, batch.tokens * (2 * d + 2 * settings.ffn_size)) * size}
