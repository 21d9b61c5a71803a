"""Kernels of fast_electra, usable without it: draws from softmax(scale * logits + prior) by counter-based Gumbel noise.

`sample` is the one function that most need. Its implementations stand in a file each: `reference` is its definition,
`blocked` is plain PyTorch for a CPU, `triton_sampler` is for a GPU. `noise` says what the noise is, and `envelope`
keeps a position's draws at every temperature at once.
"""

from fast_electra_kernels.blocked import logits, row_blocks
from fast_electra_kernels.contract import NEVER, Statistics
from fast_electra_kernels.envelope import Pieces, concatenate, envelope, winners
from fast_electra_kernels.noise import gumbel
from fast_electra_kernels.sample import (
    IMPLEMENTATIONS,
    default_implementation,
    sample,
    sample_logits,
    sample_with_statistics,
)
from fast_electra_kernels.workspace import workspace_bytes

__all__ = [
    "IMPLEMENTATIONS",
    "NEVER",
    "Pieces",
    "Statistics",
    "concatenate",
    "default_implementation",
    "envelope",
    "gumbel",
    "logits",
    "row_blocks",
    "sample",
    "sample_logits",
    "sample_with_statistics",
    "winners",
    "workspace_bytes",
]
