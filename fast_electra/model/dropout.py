"""Dropout in a frozen model: the augmentations `dropout` and `attention_dropout` of E.2."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from fast_electra import randomness
from fast_electra_kernels.noise import random_bits


@dataclass(frozen=True)
class KeyedDropout:
    """Dropout whose choices are a function of (key of the sequence, layer, position, feature).

    A sequence is therefore perturbed alike in any batch, on any rank, online and offline. Numbers that are kept are
    scaled by 1 / (1 - rate), as in training.
    """

    keys_B: Tensor  # int64, one for each sequence, on the model's device
    hidden_rate: float = 0.0  # for the embedding's output and each residual branch
    attention_rate: float = 0.0  # for the attention probabilities
    site: int = 0  # number of the layer's first site; a layer has three

    def of_layer(self, layer: int) -> "KeyedDropout":
        """Return the dropout of one encoder layer: 1, 2, ...; 0 is the embedding."""
        return dataclasses.replace(self, site=3 * layer)

    def hidden(self, x: Tensor, branch: int, positions_M: Tensor | None, length: int) -> Tensor:
        """Drop features of hidden states in residual branch 0 or 1 of the layer.

        They are [B, L, D]; or, if `positions_M` is given, the rows [M, D] at these flat positions. `length` is L.
        """
        if self.hidden_rate == 0.0:
            return x
        if positions_M is None:
            position_L = torch.arange(length, device=x.device)
            keys = randomness.key(self.keys_B[:, None], self.site + branch, position_L)
        else:
            keys = randomness.key(self.keys_B[positions_M // length], self.site + branch, positions_M % length)
        return _drop(x, keys, self.hidden_rate)

    def attention(self, probabilities_BHLL: Tensor) -> Tensor:
        """Drop attention probabilities."""
        _, heads, length, _ = probabilities_BHLL.shape
        head_H1 = torch.arange(heads, device=probabilities_BHLL.device)[:, None]
        query_L = torch.arange(length, device=probabilities_BHLL.device)
        keys_BHL = randomness.key(self.keys_B[:, None, None], self.site + 2, head_H1, query_L)
        return _drop(probabilities_BHLL, keys_BHL, self.attention_rate)


def _drop(x: Tensor, keys: Tensor, rate: float) -> Tensor:
    """Set each number of the last dimension to zero with probability `rate`, by the key of its row."""
    features = torch.arange(x.shape[-1], dtype=torch.int32, device=x.device)
    bits = random_bits(keys.flatten(), features).view(x.shape)
    kept = bits >= round(rate * 2**32) - 2**31  # the bits are signed
    return x * kept / (1.0 - rate)
