"""Initialisation: Admin's scales are what profiling by hand gives, and every rank gets the same weights."""

import torch
from small import sizes

from fast_electra.batch import Layout
from fast_electra.model.heads import Discriminator, MaskedLanguageModel

DEEP = sizes(vocabulary_size=300, layers=6, hidden_size=64, ffn_size=256, heads=4, initial_std=0.08)


def branch_variances(model: Discriminator) -> list[float]:
    """Var[f_i] of each residual branch with omega = 1, observed from outside."""
    found: list[float] = []
    for layer in model.encoder.layers:
        layer.attention_omega.data.fill_(1.0)
        layer.ffn_omega.data.fill_(1.0)
        layer.attention_output.register_forward_hook(lambda _, __, out: found.append(float(out.var())))
        layer.ffn_output.register_forward_hook(lambda _, __, out: found.append(float(out.var())))
    tokens = torch.randint(0, 300, (8 * 128,), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        model.eval()(tokens, Layout.of(torch.full((8,), 128)))
    return found


@torch.no_grad()
def test_omega_is_the_root_of_the_variances_before_it() -> None:
    model = Discriminator.new(DEEP, seed=1)
    omegas = [
        float(omega.mean()) for layer in model.encoder.layers for omega in (layer.attention_omega, layer.ffn_omega)
    ]
    variances = branch_variances(model)
    total = 1.0  # the normalised embedding
    for omega, variance in zip(omegas, variances, strict=True):
        assert abs(omega - total**0.5) < 0.03 * omega
        total += variance
    assert omegas[-1] > 1.2 * omegas[0]


def test_bert_initialisation_leaves_the_scales_at_one() -> None:
    model = Discriminator.new(DEEP.model_copy(update={"initialization": "bert"}), seed=1)
    assert all((layer.attention_omega == 1).all() and (layer.ffn_omega == 1).all() for layer in model.encoder.layers)


def test_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    first = MaskedLanguageModel(DEEP, seed=3).state_dict()
    torch.manual_seed(2)
    again, other = MaskedLanguageModel(DEEP, seed=3).state_dict(), MaskedLanguageModel(DEEP, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.embedding.weight"], other["encoder.embedding.weight"])
    assert abs(float(first["encoder.layers.3.qkv.weight"].std()) - 0.08) < 0.002
