"""Time of attention with relative positions, of a layer of the base model: ours, SDPA with a mask, flash with no bias.

    python benchmarks/attention.py [--batch 32] [--length 512] [--repeats 30] [--tune] [--tiny] [--json FILE]

SDPA adds bias and padding in each pass and returns the bias's gradient, as `fast_electra/model/attention.py` does.
Flash attention knows neither a bias nor padding, so it is a lower bound. Lengths are full, or spread from 0.55 to 1
times the length. With `--tune`, other tiles of each of our kernels are timed too. `--tiny` shows on a CPU that the
script runs.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from contenders.common import DEVICE, SEED, machine, summary
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fast_electra.model.attention import relative_buckets
from fast_electra_kernels import triton_attention
from fast_electra_kernels.triton_attention import Batch, Plan, Tiles, attention

DTYPE = torch.bfloat16
OURS, OURS_UNPADDED, SDPA, FLASH = "ours", "ours, unpadded", "SDPA, efficient, bias", "SDPA, flash, no bias"
KERNELS = ("forward", "queries", "keys", "bias")
# Other tiles to try: queries, keys, warps, stages, registers.
OTHERS: dict[str, list[Tiles]] = {
    "forward": [
        Tiles(128, 64, 8, 3), Tiles(128, 64, 8, 2, 128), Tiles(64, 64, 4, 3, 128), Tiles(64, 64, 4, 2),
        Tiles(128, 128, 8, 2), Tiles(128, 32, 8, 3, 128), Tiles(128, 64, 4, 2),
    ],
    "queries": [
        Tiles(128, 64, 8, 2), Tiles(64, 64, 4, 3, 168), Tiles(64, 32, 4, 3), Tiles(128, 32, 8, 2), Tiles(64, 64, 4, 2),
        Tiles(64, 64, 4, 2, 128),
    ],
    "keys": [
        Tiles(64, 64, 4, 2), Tiles(32, 128, 8, 2), Tiles(32, 64, 4, 2), Tiles(64, 128, 8, 3), Tiles(32, 128, 8, 3),
        Tiles(64, 128, 8, 1),
    ],
    "bias": [
        Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 3), Tiles(64, 128, 8, 3), Tiles(64, 128, 8, 1), Tiles(64, 64, 8, 2, 128),
    ],
}  # fmt: skip


def main() -> None:
    """Time all contenders on each kind of lengths, print the figures, and write them if asked to."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--size", type=int, default=64, help="of a head; default: 64")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--tune", action="store_true", help="also time other tiles; a GPU only")
    parser.add_argument("--tiny", action="store_true", help="sizes for Triton's interpreter")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all figures here")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.batch, arguments.length, arguments.heads, arguments.size, arguments.repeats = 2, 40, 2, 32, 2
    result: dict[str, Any] = {"machine": machine("torch", "triton"), "shape": {**vars(arguments), "json": None}}
    print(f"{result['machine']['gpu'] or result['machine']['cpu']}, {result['machine']['versions']}")
    for ragged in (False, True):
        for rate in (0.0, 0.1):
            case = Case(arguments, ragged, rate)
            name = f"{'ragged' if ragged else 'full'}, dropout {rate}"
            result[name] = {"contenders": case.contenders(), "kernels": case.kernels()}
    if arguments.tune and DEVICE.type == "cuda":
        result["tiles"] = Case(arguments, False, 0.1).tune()
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def milliseconds(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return the time of the work on the device. Between two runs, the GPU's cache is emptied."""
    if DEVICE.type == "cpu":
        return summary(_seconds(work) * 1e3 for _ in range(repeats))
    cache = torch.empty(2**26, dtype=torch.int32, device=DEVICE)
    for _ in range(3):
        work()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        cache.zero_()
        torch.cuda._sleep(3_000_000)  # cycles: keeps the GPU busy while the host launches the work
        start.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return summary(start.elapsed_time(end) for start, end in events)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Case:
    """One kind of lengths and one dropout rate."""

    def __init__(self, arguments: argparse.Namespace, ragged: bool, rate: float) -> None:
        self.b, self.length, self.h, self.d = arguments.batch, arguments.length, arguments.heads, arguments.size
        self.rate, self.ragged, self.repeats = rate, ragged, arguments.repeats
        generator = torch.Generator().manual_seed(SEED)
        lengths_B = torch.full((self.b,), self.length)
        if ragged:
            order_B = torch.randperm(self.b, generator=generator)
            lengths_B = torch.linspace(0.55, 1.0, self.b).mul(self.length).long()[order_B]
        self.lengths_B = lengths_B.to(DEVICE, torch.int32)
        self.padded_starts_B = (torch.arange(self.b) * self.length).to(DEVICE, torch.int32)
        self.starts_B = (lengths_B.cumsum(0) - lengths_B).to(DEVICE, torch.int32)
        rows, shape = self.b * self.length, (3, self.h, self.d)
        self.qkv = torch.randn(rows, *shape, generator=generator).to(DEVICE, DTYPE).requires_grad_()
        self.grad = torch.randn(rows, self.h, self.d, generator=generator).to(DEVICE, DTYPE)
        total = int(lengths_B.sum())
        self.unpadded = self.qkv.detach()[:total].clone().requires_grad_()
        position = torch.arange(self.length)
        table = torch.randn(32, self.h, generator=generator)
        bucket_LL = relative_buckets(position - position[:, None], 32, 128)
        bucket_R = relative_buckets(torch.arange(1 - self.length, self.length), 32, 128)
        self.bias_HR = table[bucket_R].T.contiguous().to(DEVICE, DTYPE).requires_grad_()
        self.bias_HLL = table[bucket_LL].permute(2, 0, 1).contiguous()[None].to(DEVICE, DTYPE).requires_grad_()
        real_BL = position < lengths_B[:, None]
        lowest = torch.finfo(DTYPE).min
        self.padding = torch.zeros(self.b, 1, 1, self.length).masked_fill(~real_BL[:, None, None], lowest)
        self.padding = self.padding.to(DEVICE, DTYPE)

    def ours(self, padded: bool) -> Tensor:
        qkv, starts = (self.qkv, self.padded_starts_B) if padded else (self.unpadded, self.starts_B)
        covered = not (padded and self.ragged)
        return attention(
            qkv, self.bias_HR, starts, self.lengths_B, self.length, self.rate, covered=covered
        )  # fmt: skip

    def sdpa(self, bias: bool) -> Tensor:
        q, k, v = self.qkv.view(self.b, self.length, 3, self.h, self.d).permute(2, 0, 3, 1, 4)
        mask = None if not bias else self.bias_HLL + self.padding if self.ragged else self.bias_HLL
        kernel = SDPBackend.EFFICIENT_ATTENTION if bias else SDPBackend.FLASH_ATTENTION
        with sdpa_kernel([kernel] if DEVICE.type == "cuda" else [SDPBackend.MATH]):
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.rate)
        return mixed.transpose(1, 2).reshape(self.b * self.length, self.h, self.d)

    def contenders(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return milliseconds of the forward pass, and of both passes, for each contender."""
        works = {OURS: lambda: self.ours(True), SDPA: lambda: self.sdpa(True), FLASH: lambda: self.sdpa(False)}
        if self.ragged:
            works[OURS_UNPADDED] = lambda: self.ours(False)
        found: dict[str, dict[str, dict[str, float]]] = {}
        leaves = (self.qkv, self.unpadded, self.bias_HR, self.bias_HLL)

        def both(work: Callable[[], Tensor]) -> None:
            output = work()
            output.backward(self.grad[: len(output)])
            for leaf in leaves:
                leaf.grad = None

        for name, work in works.items():
            try:
                with torch.no_grad():
                    forward = milliseconds(work, self.repeats)
                found[name] = {"forward": forward, "both": milliseconds(lambda w=work: both(w), self.repeats)}
            except RuntimeError as error:  # a kernel that this GPU lacks
                print(f"  {name}: {str(error).splitlines()[0]}")
        tokens = int(self.lengths_B.sum())
        print(
            f"\n{'ragged' if self.ragged else 'full'} lengths ({tokens / self.b:.0f} on average), dropout {self.rate}"
        )
        print(f"  {'':<24}{'forward ms':>12}{'both ms':>10}{'forward / ours':>16}{'both / ours':>13}")
        for name, row in found.items():
            times = [row[part]["median"] for part in ("forward", "both")]
            ratios = [time / found[OURS][part]["median"] for part, time in zip(("forward", "both"), times, strict=True)]
            print(f"  {name:<24}{times[0]:>12.3f}{times[1]:>10.3f}{ratios[0]:>16.2f}{ratios[1]:>13.2f}", flush=True)
        return found

    def launches(self, plan: Plan | None) -> dict[str, Callable[[], object]]:
        """Return what launches each of our kernels alone."""
        batch = Batch(self.padded_starts_B, self.lengths_B, self.length, self.rate, 0, True, plan)
        q, k, v = self.qkv.detach().unbind(1)
        launcher = triton_attention.Launcher(q, self.bias_HR.shape[1], batch)
        bias = triton_attention.padded_bias(self.bias_HR.detach())
        output, lse, words = launcher.forward(q, k, v, bias)
        made = torch.empty_like(self.qkv)
        saved = (q, k, v, bias, self.grad, lse, words)
        delta = launcher.backward_queries(*saved, output, made[:, 0])
        return {
            "forward": lambda: launcher.forward(q, k, v, bias),
            "queries": lambda: launcher.backward_queries(*saved, output, made[:, 0]),
            "keys": lambda: launcher.backward_keys(*saved, delta, made[:, 1], made[:, 2]),
            "bias": lambda: launcher.backward_bias(*saved, delta),
        }

    def kernels(self) -> dict[str, dict[str, float]]:
        """Return milliseconds of each of our kernels, on padded rows."""
        found = {name: milliseconds(work, self.repeats) for name, work in self.launches(None).items()}
        print("  kernels, ms: " + ", ".join(f"{name} {row['median']:.3f}" for name, row in found.items()), flush=True)
        return found

    def tune(self) -> list[dict[str, Any]]:
        """Time other tiles of each kernel and return them, the fastest first."""
        chosen = triton_attention.plan(DTYPE, self.d, torch.cuda.get_device_capability())
        found = []
        for name in KERNELS:
            for tiles in [getattr(chosen, name), *OTHERS[name]]:
                try:
                    work = self.launches(chosen._replace(**{name: tiles}))[name]
                    found.append({"kernel": name, "tiles": tuple(tiles), "milliseconds": milliseconds(work, 10)})
                except Exception as error:  # this GPU has no room for the tiles
                    print(f"  {name} {tuple(tiles)}: {type(error).__name__}")
        for chunks in (1, 2, 3, 4, 8):
            work = self.launches(chosen._replace(chunks=chunks))["bias"]
            found.append({"kernel": "bias", "chunks": chunks, "milliseconds": milliseconds(work, 10)})
        found.sort(key=lambda row: (row["kernel"], row["milliseconds"]["median"]))
        print("\nqueries, keys, warps, stages, registers, each kernel's fastest first")
        for row in found:
            what = row.get("tiles") or f"{row['chunks']} chunks"
            print(f"  {row['kernel']:<8} {what!s:<24} {row['milliseconds']['median']:.3f} ms")
        return found


if __name__ == "__main__":
    main()
