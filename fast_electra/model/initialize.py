"""Initialisation: BERT's normal weights, and Admin's residual scales from profiling (Liu et al., 2020a)."""

import torch
from torch import nn

from fast_electra import randomness
from fast_electra.batch import Layout
from fast_electra.model.encoder import Encoder, EncoderLayer

PROFILE_SEQUENCES, PROFILE_LENGTH = 4, 128


def initialize(model: nn.Module, encoder: Encoder, seed: int) -> None:
    """Fill every weight of a model from the seed alone, so that all ranks have the same.

    Linear and embedding weights are normal with the settings' standard deviation. Biases are 0, LayerNorms 1 and 0. The
    relative bias keeps its start. With `admin`, the residual scales omega of its encoder are then profiled.
    """
    std = encoder.settings.initial_std
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, std, generator=generator)
            if isinstance(module, nn.Linear):
                module.bias.zero_()
    if encoder.settings.initialization == "admin":
        profile(encoder, seed)


@torch.no_grad()
def profile(encoder: Encoder, seed: int) -> None:
    """Set omega_i = sqrt(sum over j < i of Var[f_j]), where f_0 is the embedding's output and the tokens are random.

    Admin sends one batch through the network with all omega = 1 and measures the variance of each residual branch.
    Each residual connection then weighs as much as all the branches that it carries.
    """
    encoder.eval()
    layout = Layout.of(torch.full((PROFILE_SEQUENCES,), PROFILE_LENGTH))
    tokens_T = randomness.key(seed, torch.arange(len(layout.sequence_T))) % encoder.settings.vocabulary_size
    x_TD, bias_HR = encoder.embed(tokens_T), encoder.relative_bias(PROFILE_LENGTH)
    total = x_TD.var()
    for layer in encoder.layers:
        assert isinstance(layer, EncoderLayer)
        branch = layer.attention_output(layer.mix(x_TD, bias_HR, layout, "matmul"))
        layer.attention_omega.fill_(total.sqrt())
        total = total + branch.var()
        x_TD = layer.attention_norm(x_TD + branch)
        branch = layer.feed(x_TD)
        layer.ffn_omega.fill_(total.sqrt())
        total = total + branch.var()
        x_TD = layer.ffn_norm(x_TD + branch)
    encoder.train()
