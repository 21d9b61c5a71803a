"""The loss of masked language modelling over a large vocabulary, in blocks of rows, compared with PyTorch's.

    python benchmarks/cross_entropy.py [--vocabulary 16384 128000] [--positions 1024] [--rounds 9] [--json FILE]

Both compute the loss, the most probable token and the gradient of the same logits, and take turns in each round. On a
CPU the time is that of this process alone, in one thread.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from contenders.common import DEVICE, SEED, machine, summary
from contenders.trace import synchronize
from torch import Tensor

from fast_electra.cost.measure import tensor_memory
from fast_electra.objectives.cross_entropy import CrossEntropy
from fast_electra.training.engines import DTYPES
from fast_electra.training.machine import best_dtype

clock = time.perf_counter if DEVICE.type == "cuda" else time.process_time
Loss = Callable[[Tensor, Tensor], Tensor]


def blocks(logits_MV: Tensor, target_M: Tensor) -> Tensor:
    """Return the sum of losses, as `masked_loss` does."""
    loss_M, _ = CrossEntropy.apply(logits_MV, target_M)
    loss: Tensor = loss_M.sum()
    return loss


def whole(logits_MV: Tensor, target_M: Tensor) -> Tensor:
    """Return the same by PyTorch, which needs the logits in fp32."""
    logits_MV.argmax(dim=1)
    return F.cross_entropy(logits_MV.float(), target_M, reduction="sum")


CONTENDERS: dict[str, Loss] = {"PyTorch": whole, "in blocks": blocks}


def main() -> None:
    """Time each vocabulary, print the figures, and write them if the command line asks for it."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[16_384, 128_000])
    parser.add_argument("--positions", type=int, default=1024, help="masked positions; default: 1024")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all rounds here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dtype = best_dtype()
    result: dict[str, Any] = {"machine": machine("torch"), "clock": clock.__name__, "dtype": dtype, "settings": []}
    for vocabulary in arguments.vocabulary:
        row = compare(arguments.positions, vocabulary, DTYPES[dtype], arguments.rounds)
        result["settings"].append({"positions": arguments.positions, "vocabulary": vocabulary, **row})
        ratio = row["pytorch_over_ours"]
        print(f"{arguments.positions:,} positions, V = {vocabulary:,}, {dtype}")
        for name, milliseconds in row["ms"].items():
            print(f"  {name:10} {summary(milliseconds)['median']:8.1f} ms  {row['peak_mb'][name]:8,.0f} MB at most")
        print(f"  PyTorch / ours: {ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})", flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def compare(positions: int, vocabulary: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Return milliseconds in each round, their ratios, and the memory beyond the logits, the gradient counted in."""
    generator = torch.Generator().manual_seed(SEED)
    logits_MV = (3 * torch.randn(positions, vocabulary, generator=generator)).to(DEVICE, dtype).requires_grad_()
    target_M = torch.randint(vocabulary, (positions,), generator=generator).to(DEVICE)

    def run(loss: Loss) -> None:
        logits_MV.grad = None
        loss(logits_MV, target_M).backward()

    found: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for round_ in range(rounds + 1):  # the first warms up
        for name, loss in CONTENDERS.items():
            synchronize()
            start = clock()
            run(loss)
            synchronize()
            if round_:
                found[name].append(1000 * (clock() - start))
    logits_MV.grad = None
    peak = {
        name: tensor_memory(DEVICE, lambda: None, lambda _, loss=loss: run(loss)).peak
        for name, loss in CONTENDERS.items()
    }
    ratios = [theirs / ours for theirs, ours in zip(found["PyTorch"], found["in blocks"], strict=True)]
    return {"ms": found, "peak_mb": {k: v / 1e6 for k, v in peak.items()}, "pytorch_over_ours": summary(ratios)}


if __name__ == "__main__":
    main()
