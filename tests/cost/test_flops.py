"""Every term of FLOPs against torch's own count on the real models."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from fast_electra.batch import Layout, masked_counts
from fast_electra.cost.flops import (
    BACKWARD,
    LAYER_TERMS,
    RECOMPUTATION,
    Lengths,
    Terms,
    discriminator_forward,
    masked_lm_forward,
    trained,
)
from fast_electra.cost.methods import embedding_parameters, parameters
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import Discriminator, MaskedLanguageModel, count_parameters
from fast_electra.model.joint import JointModel

SIZES = {"vocabulary_size": 96, "layers": 3, "hidden_size": 24, "ffn_size": 40, "heads": 4, "initialization": "bert"}
VARIANTS = [{}, {"embedding_size": 8}, {"layers": 1}]
FULL, RAGGED = [16, 16, 16, 16], [80, 10, 140, 140]  # these are too different to share a rectangle with padding
FRACTION = 0.3


def settings(**changes: object) -> EncoderSettings:
    return EncoderSettings.model_validate(SIZES | changes)


def counted(model: torch.nn.Module, *inputs: Any, backward: bool) -> int:
    """FLOPs that torch counts; forward and perhaps backward pass."""
    model.train(backward)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        output = model(*inputs)
        if backward:
            output.sum().backward()
    return counter.get_total_flops()


class Batch:
    """Sequences of given lengths, and what is predicted of them."""

    def __init__(self, lengths: list[int]) -> None:
        self.layout = Layout.of(torch.tensor(lengths))
        self.lengths = Lengths.of(self.layout.lengths_B, FRACTION)
        self.tokens = torch.arange(sum(lengths)) % 96
        self.positions = torch.arange(int(masked_counts(self.layout.lengths_B, FRACTION).sum()))

    def total(self, terms: Terms) -> float:
        return len(self.layout.lengths_B) * sum(terms.values())


@pytest.fixture(params=[FULL, RAGGED], ids=["full", "ragged"])
def batch(request: pytest.FixtureRequest) -> Batch:
    return Batch(request.param)


@pytest.mark.parametrize("changes", VARIANTS)
def test_discriminator(batch: Batch, changes: dict[str, object]) -> None:
    size = settings(**changes)
    forward, inputs = discriminator_forward(size, batch.lengths), (batch.tokens, batch.layout)
    assert counted(Discriminator.new(size), *inputs, backward=False) == batch.total(forward)
    assert counted(Discriminator.new(size), *inputs, backward=True) == batch.total(trained(forward, False))


@pytest.mark.parametrize("changes", VARIANTS)
def test_masked_language_model(batch: Batch, changes: dict[str, object]) -> None:
    size = settings(**changes)
    forward, inputs = masked_lm_forward(size, batch.lengths), (batch.tokens, batch.layout, batch.positions)
    assert counted(MaskedLanguageModel(size), *inputs, backward=False) == batch.total(forward)
    assert counted(MaskedLanguageModel(size), *inputs, backward=True) == batch.total(trained(forward, False))


def test_full_sequences_have_their_length_on_average() -> None:
    assert Batch(FULL).lengths == (16, 16**2, 4, 16)


def test_the_frozen_auxiliary_pays_the_vocabulary_in_the_sampler(batch: Batch) -> None:
    """Its model stops before the head; the sampler then multiplies by it, once."""
    size = settings()
    model = MaskedLanguageModel(size).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hidden_ME = model(batch.tokens, batch.layout, batch.positions, hidden_only=True)
        before = counter.get_total_flops()
        F.linear(hidden_ME, model.encoder.embedding.weight)
    forward = masked_lm_forward(size, batch.lengths)
    assert counter.get_total_flops() == batch.total(forward)
    assert counter.get_total_flops() - before == batch.total({"head": forward["head, vocabulary"]})


@pytest.mark.parametrize("kind", ["rtd", "mlm"])
def test_recomputation(batch: Batch, kind: str) -> None:
    """With activation checkpointing, the backward pass computes the layers, and only them, once more."""
    size = settings()
    model = Discriminator.new(size) if kind == "rtd" else MaskedLanguageModel(size)
    model.encoder.checkpoint = lambda layer, *inputs: checkpoint(
        layer, *inputs, use_reentrant=True, preserve_rng_state=False
    )
    inputs = (batch.tokens, batch.layout) if kind == "rtd" else (batch.tokens, batch.layout, batch.positions)
    forward = (discriminator_forward if kind == "rtd" else masked_lm_forward)(size, batch.lengths)
    terms = trained(forward, True)
    assert terms[RECOMPUTATION] == sum(forward[name] for name in LAYER_TERMS) > 0
    assert terms[BACKWARD] == 2 * sum(forward.values())
    assert counted(model, *inputs, backward=True) == batch.total(terms)


def test_parameters_are_the_models_own() -> None:
    size = settings(embedding_size=8)
    assert parameters(size, "rtd") == count_parameters(Discriminator.new(size))
    assert parameters(size, "mlm") == count_parameters(MaskedLanguageModel(size))
    assert embedding_parameters(size) == 96 * 8
    shared = parameters(size, "joint", 2, "shared")
    assert shared == count_parameters(JointModel(size, 2, "shared"))
    for sharing in ("gradient_disentangled", "none"):
        assert parameters(size, "joint", 2, sharing) - shared == embedding_parameters(size)
