"""Samplers for softmax(scale * logits + prior) by counter-based Gumbel noise; usable without fast_electra.

Most callers need only `sample`. It has three implementations: `reference` is the definition,
`blocked` is plain PyTorch for a CPU (with `blocked_bf16` for CPUs that multiply in bfloat16), and `triton_sampler` is
for a GPU. `noise` defines the noise. `envelope` finds the tokens drawn at a position at every temperature.
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
