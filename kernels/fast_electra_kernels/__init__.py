"""Kernels of fast_electra, usable without it: draws from softmax(scale * logits + prior) by counter-based Gumbel noise.

`sample` is the one public function. Its implementations stand in a file each; `reference` is plain PyTorch.
"""

from fast_electra_kernels.envelope import Pieces, concatenate, envelope, winners
from fast_electra_kernels.noise import gumbel
from fast_electra_kernels.reference import Statistics, blocks
from fast_electra_kernels.sample import IMPLEMENTATIONS, sample, sample_logits, sample_with_statistics

__all__ = [
    "IMPLEMENTATIONS",
    "Pieces",
    "Statistics",
    "blocks",
    "concatenate",
    "envelope",
    "gumbel",
    "sample",
    "sample_logits",
    "sample_with_statistics",
    "winners",
]
