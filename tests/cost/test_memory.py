"""Bytes of activations, drawing and loss, against what torch really holds. tests/jobs/test_measure.py has the rest."""

import pytest
import torch

from fast_electra import randomness
from fast_electra.batch import Layout
from fast_electra.cost.flops import Lengths
from fast_electra.cost.measure import tensor_memory
from fast_electra.cost.memory import AT_WORK, MicroBatch, activations, loss, sampler
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import Discriminator, MaskedLanguageModel
from fast_electra.objectives.cross_entropy import CrossEntropy
from fast_electra.training.engines import DTYPES
from fast_electra_kernels import sample_with_statistics

SIZES = {
    "vocabulary_size": 96,
    "layers": 3,
    "hidden_size": 24,
    "ffn_size": 40,
    "heads": 4,
    "initialization": "bert",
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


def kept_bytes(model: torch.nn.Module, *inputs: torch.Tensor | None) -> int:
    """Bytes of the numbers that torch keeps for the backward pass, each storage once, parameters not counted."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # holds each tensor, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if tensor.is_floating_point() and address not in own:
            kept.setdefault(address, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(*inputs)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("lengths", [[16, 16, 16], [80, 10, 140, 180], [80, 10, 140, 140]])
@pytest.mark.parametrize("kind", ["rtd", "mlm"])
@pytest.mark.parametrize(
    "changes", [{}, {"dropout": 0.1, "attention_dropout": 0.2}, {"embedding_size": 8}, {"layers": 1}]
)
def test_activations_are_what_torch_keeps(lengths: list[int], kind: str, changes: dict[str, float]) -> None:
    settings, layout = EncoderSettings.model_validate(SIZES | changes), Layout.of(torch.tensor(lengths))
    tokens_T = torch.arange(sum(lengths)) % 96
    batch = MicroBatch(len(lengths), Lengths.of(layout.lengths_B, 0.15), "fp32", on_gpu=False)
    predicted = sum(activations(settings, batch, kind).values())
    if kind == "rtd":
        assert kept_bytes(Discriminator.new(settings), tokens_T, layout) == predicted
    else:
        positions_M = torch.arange(batch.masked)
        assert kept_bytes(MaskedLanguageModel(settings), tokens_T, layout, positions_M) == predicted


def test_checkpointing_keeps_one_layer_inside() -> None:
    batch = MicroBatch(4, Lengths(16, 16**2, 2, 16), "bf16")
    whole = activations(EncoderSettings.model_validate(SIZES), batch, "rtd")
    checkpointed = activations(EncoderSettings.model_validate(SIZES | {"activation_checkpointing": True}), batch, "rtd")
    assert checkpointed[AT_WORK] * 3 == whole["activations inside the layers"]
    assert (
        checkpointed["activations between the layers"] == whole["activations between the layers"] == 3 * 4 * 16 * 24 * 2
    )


@pytest.mark.parametrize(("rows", "vocabulary"), [(600, 4000), (2000, 5000)])
def test_drawing_holds_what_is_assumed(rows: int, vocabulary: int) -> None:
    """The most bytes that a CPU really holds at a time, by torch's profiler."""
    hidden, weight = torch.randn(rows, 16), torch.randn(vocabulary, 16)
    keys, original = randomness.key(torch.arange(rows)), torch.zeros(rows, dtype=torch.int64)
    memory = tensor_memory(
        torch.device("cpu"),
        lambda: None,
        lambda _: sample_with_statistics(hidden, weight, scale=0.5, keys_M=keys, original_M=original),
    )
    batch = MicroBatch(rows, Lengths(1, 1, 1, 1), "fp32", on_gpu=False)
    assert memory.peak == pytest.approx(sum(sampler(vocabulary, batch).values()), rel=0.05)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("rows", "vocabulary"), [(100, 4000), (2000, 5000)])  # less than a block, and ten blocks
def test_the_loss_of_a_masked_language_model_holds_what_is_assumed(dtype: str, rows: int, vocabulary: int) -> None:
    target_M = torch.zeros(rows, dtype=torch.int64)
    memory = tensor_memory(
        torch.device("cpu"),
        lambda: torch.zeros(rows, vocabulary, dtype=DTYPES[dtype], requires_grad=True),
        lambda logits_MV: CrossEntropy.apply(logits_MV, target_M)[0].sum().backward(),
    )
    batch = MicroBatch(rows, Lengths(1, 1, 1, 1), dtype, on_gpu=False)
    assert memory.peak == pytest.approx(sum(loss(vocabulary, batch).values()), rel=0.05)


def test_the_sampler_never_holds_all_logits() -> None:
    batch = MicroBatch(64, Lengths(512, 512**2, 77, 512), "bf16")
    logits = 2 * batch.masked * 128_000
    assert sum(sampler(128_000, batch).values()) < logits / 60
    assert sum(sampler(128_000, batch, from_logits=True).values()) < logits
