"""Parts that the benchmarks share: sizes, masking rate, optimizer, clipping, machine, and spread of figures."""

import os
import platform
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

import fast_electra
from fast_electra import recipes
from fast_electra.batch import TokenBatch
from fast_electra.corpus.tokenizer import open_tokenizer
from fast_electra.model.encoder import EncoderSettings
from fast_electra.training.machine import cpu_flags, cpu_name

Step = Callable[[TokenBatch], Tensor]  # one update of the weights from one batch; returns the discriminator's loss

MASK_FRACTION, CLIPPING, TEMPERATURE, SEED = 0.15, 2.0, 1.5, 0
PAD, UNK, MASK, SPECIALS = 0, 1, 4, 5  # special ids of our tokenizers, and how many there are
ADAM: dict[str, Any] = {"lr": 5e-4, "betas": (0.9, 0.98), "eps": 1e-6}
WEIGHT_DECAY = 0.01

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# Sequences of a batch, updates of a round, and rounds. Tiny's batch is that of one of the quickstart's two processes.
# On a GPU, small's batch is the whole batch of ds_configs/small.json. Base is for GPUs only.
BATCHES = {"tiny": (32, 5, 15), "small": (8, 1, 9)}
if DEVICE.type == "cuda":
    BATCHES |= {"small": (128, 10, 15), "base": (32, 3, 5)}


@dataclass(frozen=True)
class Sizes:
    """Sizes of the models and of the benchmark. In each round, every contender makes `updates` updates in its turn."""

    discriminator: EncoderSettings
    auxiliary: EncoderSettings
    length: int
    batch: int
    updates: int
    rounds: int


def sizes(name: str, tokenizer: Path | None = None, rounds: int | None = None, length: int | None = None) -> Sizes:
    """Return the sizes of a recipe.

    Args:
        name: a key of BATCHES.
        tokenizer: folder of a tokenizer whose vocabulary replaces the recipe's.
        rounds: number of rounds; by default that of BATCHES.
        length: longest sequence, in tokens; by default the recipe's.
    """
    batch, updates, default = BATCHES[name]
    main, auxiliary = (recipes.recipe(name, objective) for objective in ("rtd", "mlm"))
    vocabulary = {"vocabulary_size": open_tokenizer(tokenizer).vocabulary_size} if tokenizer is not None else {}
    return Sizes(
        discriminator=EncoderSettings(**main["model"] | vocabulary),
        auxiliary=EncoderSettings(**auxiliary["model"] | vocabulary),
        length=length or main["corpus"]["sequence_length"],
        batch=batch,
        updates=updates,
        rounds=rounds or default,
    )


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Give autocast to `dtype`; it does nothing if that is fp32."""
    return torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32)


def adam(model: nn.Module) -> AdamW:
    """Return fused AdamW, which is transformers' default and torch's fastest. Vectors do not decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices, vectors = ([p for p in parameters if (p.dim() > 1) is decayed] for decayed in (True, False))
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return AdamW(groups, **ADAM, fused=True)


def update(loss: Tensor, model: nn.Module, optimizer: AdamW) -> None:
    """Run the backward pass, clip the gradients, and let Adam update the weights."""
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
    optimizer.step()
    optimizer.zero_grad()


def summary(values: Iterable[float]) -> dict[str, float]:
    """Return the median, the lowest and the highest value."""
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "lowest": ordered[0], "highest": ordered[-1]}


def machine(*packages: str) -> dict[str, Any]:
    """Describe the hardware and the versions that the figures depend on.

    Args:
        *packages: whose versions to name.
    """
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if DEVICE.type == "cuda" else None,
        "flags": sorted(flag for flag in cpu_flags() if flag.startswith(("avx", "amx", "fma"))),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in packages}
        | {"fast_electra": fast_electra.__version__},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg(),
    }
