"""Every term of FLOPs against torch's own count on the real models."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from fast_electra.batch import Layout
from fast_electra.cost.flops import (
    BACKWARD,
    LAYER_TERMS,
    RECOMPUTATION,
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
SEQUENCES, LENGTH, MASKED = 3, 16, 5
LAYOUT = Layout.of(torch.full((SEQUENCES,), LENGTH))


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


def tokens() -> torch.Tensor:
    return torch.arange(SEQUENCES * LENGTH) % 96


def positions() -> torch.Tensor:
    return torch.cat([row * LENGTH + torch.arange(1, 1 + MASKED) for row in range(SEQUENCES)])


def total(terms: Terms) -> float:
    return SEQUENCES * sum(terms.values())


@pytest.mark.parametrize("changes", VARIANTS)
def test_discriminator(changes: dict[str, object]) -> None:
    size = settings(**changes)
    forward = discriminator_forward(size, LENGTH)
    assert counted(Discriminator.new(size), tokens(), LAYOUT, backward=False) == total(forward)
    assert counted(Discriminator.new(size), tokens(), LAYOUT, backward=True) == total(trained(forward, False))


@pytest.mark.parametrize("changes", VARIANTS)
def test_masked_language_model(changes: dict[str, object]) -> None:
    size = settings(**changes)
    forward = masked_lm_forward(size, LENGTH, MASKED)
    assert counted(MaskedLanguageModel(size), tokens(), LAYOUT, positions(), backward=False) == total(forward)
    assert counted(MaskedLanguageModel(size), tokens(), LAYOUT, positions(), backward=True) == total(
        trained(forward, False)
    )


def test_the_frozen_auxiliary_pays_the_vocabulary_in_the_sampler() -> None:
    """Its model stops before the head; the sampler then multiplies by it, once."""
    size = settings()
    model = MaskedLanguageModel(size).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hidden_ME = model(tokens(), LAYOUT, positions(), hidden_only=True)
        before = counter.get_total_flops()
        F.linear(hidden_ME, model.encoder.embedding.weight)
    forward = masked_lm_forward(size, LENGTH, MASKED)
    assert counter.get_total_flops() == total(forward)
    assert counter.get_total_flops() - before == SEQUENCES * forward["head, vocabulary"]


@pytest.mark.parametrize("kind", ["rtd", "mlm"])
def test_recomputation(kind: str) -> None:
    """With activation checkpointing, the backward pass computes the layers, and only them, once more."""
    size = settings()
    model = Discriminator.new(size) if kind == "rtd" else MaskedLanguageModel(size)
    model.encoder.checkpoint = lambda layer, *inputs: checkpoint(
        layer, *inputs, use_reentrant=True, preserve_rng_state=False
    )
    inputs = (tokens(), LAYOUT) if kind == "rtd" else (tokens(), LAYOUT, positions())
    forward = discriminator_forward(size, LENGTH) if kind == "rtd" else masked_lm_forward(size, LENGTH, MASKED)
    terms = trained(forward, True)
    assert terms[RECOMPUTATION] == sum(forward[name] for name in LAYER_TERMS) > 0
    assert terms[BACKWARD] == 2 * sum(forward.values())
    assert counted(model, *inputs, backward=True) == total(terms)


def test_parameters_are_the_models_own() -> None:
    size = settings(embedding_size=8)
    assert parameters(size, "rtd") == count_parameters(Discriminator.new(size))
    assert parameters(size, "mlm") == count_parameters(MaskedLanguageModel(size))
    assert embedding_parameters(size) == 96 * 8
    shared = parameters(size, "joint", 2, "shared")
    assert shared == count_parameters(JointModel(size, 2, "shared"))
    for sharing in ("gradient_disentangled", "none"):
        assert parameters(size, "joint", 2, sharing) - shared == embedding_parameters(size)
