"""Time and memory of drawing replacements, compared with the bare product with the head; and its share of a step.

    python benchmarks/sampler.py [--positions 4928] [--threads 2] [--rounds 3] [--tune tiles search] [--goals-only]
                                 [--json FILE]

Every contender draws from the same hidden states and head. They take turns in each round, and ratios are computed
for each round. With `--tune` on a GPU, other tile shapes of the kernel are timed too.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import ours, sampling
from contenders.common import BATCHES, DEVICE, MASK_FRACTION, SEED, TEMPERATURE, machine, sizes, summary
from contenders.trace import kernels, print_kernels, seconds

from fast_electra import randomness
from fast_electra.corpus.loader import Loader, Share
from fast_electra.corpus.sequences import Sequences
from fast_electra.corpus.shards import Shards
from fast_electra.corpus.tokenizer import open_tokenizer
from fast_electra.cost.measure import tensor_memory
from fast_electra.model.files import load_model
from fast_electra.replacement import auxiliary
from fast_electra.training.engines import DTYPES
from fast_electra.training.machine import best_dtype
from fast_electra_kernels import blocked, default_implementation, sample, sample_with_statistics
from fast_electra_kernels.contract import Request
from fast_electra_kernels.processor import multiplies_bf16

PRODUCT, DENSE = "product with the head alone", "softmax and multinomial"
OURS, DRAWS = "ours, with statistics", "ours, draws alone"
CONVERTED = "ours, with statistics, bf16 converted"  # as on a CPU without bf16 instructions
GUMBEL, TWO_LEVEL = "a Gumbel number for every logit", "two-level: tile, then token"
FEW = 512  # positions, for which memory is measured too
GOALS = {
    "cpu": {"time": 2.5, "dense": 2.0},
    "cpu, bf16": {"time": 2.0, "dense": 2.0},
    "cuda": {"time": 1.15, "dense": 4.0},
}
QUICKSTART = Path("runs/quickstart")


def main() -> None:
    """Time all contenders, print the figures, and write them if the command line asks for it."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--positions", type=int, default=4928, help="masked positions; default: 64 sequences of 77")
    parser.add_argument("--vocabulary", type=int, default=128_000)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--spread", type=float, default=3.0, help="standard deviation of the logits; default: 3")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all")
    parser.add_argument("--rounds", type=int, default=3 if DEVICE.type == "cpu" else 20)
    parser.add_argument(
        "--tune", nargs="+", choices=("tiles", "search"), default=[], help="time other shapes too; a GPU only"
    )
    parser.add_argument("--goals-only", action="store_true", help="leave out contenders that no goal is about")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all rounds here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {"machine": machine("torch"), "shape": {**vars(arguments), "json": None}}
    print(f"{result['machine']['gpu'] or result['machine']['cpu']}, torch {result['machine']['versions']['torch']}")
    result["machine"]["omp_wait_policy"] = os.environ.get("OMP_WAIT_POLICY")  # matters where others use the machine
    result |= large_vocabulary(arguments)
    result["quickstart"] = quickstart_share()
    result["machine"]["load_average_at_end"] = os.getloadavg()
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def large_vocabulary(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of each contender in each round, and the ratios that the goals are about."""
    m, v, d = arguments.positions, arguments.vocabulary, arguments.hidden
    generator = torch.Generator().manual_seed(SEED)
    dtype = DTYPES[best_dtype()]
    hidden = torch.randn(m, d, generator=generator).to(DEVICE, dtype)
    weight = torch.randn(v, d, generator=generator).mul_(arguments.spread * d**-0.5).to(DEVICE, dtype)
    keys, original = randomness.key(SEED, torch.arange(m)).to(DEVICE), torch.arange(m, device=DEVICE) % v
    scale, out = 1 / TEMPERATURE, torch.empty(m, v, device=DEVICE, dtype=dtype)
    head = weight.t()
    contenders: dict[str, Callable[[], object]] = {
        PRODUCT: lambda: torch.mm(hidden, head, out=out),
        OURS: lambda: sample_with_statistics(hidden, weight, scale=scale, keys_M=keys, original_M=original),
        DRAWS: lambda: sample(hidden, weight, scale=scale, keys_M=keys),
        DENSE: lambda: sampling.dense(hidden, weight, scale),
        GUMBEL: lambda: sampling.gumbel_max(hidden, weight, scale, keys),
        TWO_LEVEL: lambda: sampling.two_level(hidden, weight, scale, keys),
    }
    with_instructions = DEVICE.type == "cpu" and dtype == torch.bfloat16 and multiplies_bf16()
    if with_instructions:
        contenders[CONVERTED] = lambda: converted(contenders[OURS])
    if arguments.goals_only:
        contenders = {name: contenders[name] for name in (PRODUCT, OURS, DRAWS, DENSE)}
    print(
        f"\n{m:,} positions, vocabulary {v:,}, hidden size {d}, {dtype}, {torch.get_num_threads()} thread(s), "
        f"{arguments.rounds} rounds; `{default_implementation(DEVICE)}`",
        flush=True,
    )
    if DEVICE.type == "cuda":  # kernels are compiled at their first launch
        for work in contenders.values():
            work()
    rounds = [{name: seconds(work) for name, work in contenders.items()} for _ in range(arguments.rounds)]
    figures = {
        name: {
            "seconds": summary(row[name] for row in rounds),
            "times_the_product": summary(row[name] / row[PRODUCT] for row in rounds),
            "times_ours": summary(row[name] / row[OURS] for row in rounds),
        }
        for name in contenders
    }
    print(f"  {'':<34}{'ms':>10}{'times the product':>26}{'times ours':>26}")
    for name, row in figures.items():
        spreads = [f"{s['median']:.2f} ({s['lowest']:.2f} to {s['highest']:.2f})" for s in list(row.values())[1:]]
        print(f"  {name:<34}{row['seconds']['median'] * 1e3:>10,.1f}{spreads[0]:>26}{spreads[1]:>26}")
    memory = tensor_memory(DEVICE, lambda: None, lambda _: contenders[OURS]()).peak / (2 * m * v)
    few = {"scale": scale, "keys_M": keys[:FEW], "original_M": original[:FEW]}
    few_bytes = tensor_memory(DEVICE, lambda: None, lambda _: sample_with_statistics(hidden[:FEW], weight, **few)).peak
    goals = GOALS["cpu, bf16" if with_instructions else DEVICE.type]
    print(
        f"  goals: ours / product {figures[OURS]['times_the_product']['median']:.2f} (at most {goals['time']}); "
        f"softmax and multinomial / ours {figures[DENSE]['times_ours']['median']:.2f} (at least {goals['dense']});\n"
        f"  peak extra memory / logits in 16 bits 1/{1 / memory:.0f} (at most 1/60); "
        f"for {len(few['keys_M'])} positions {few_bytes / 1e6:.1f} MB",
        flush=True,
    )
    result = {"dtype": str(dtype), "contenders": figures, "memory_times_16_bit_logits": memory, "rounds": rounds}
    result[f"memory_bytes_of_{FEW}_positions"] = few_bytes
    if DEVICE.type == "cuda":
        result["kernels"] = {name: kernels(contenders[name]) for name in (PRODUCT, OURS, DRAWS)}
        for table in result["kernels"].values():
            print_kernels(table, rows=5)
    if arguments.tune and DEVICE.type == "cuda":
        request = Request(hidden, weight, None, scale, None, keys, original)
        result["tiles"] = tune(request, contenders[PRODUCT], arguments.tune)
    return result


def converted(work: Callable[[], object]) -> None:
    """Work as if the CPU had no bf16 instructions."""
    blocked.multiplies_bf16 = lambda: False
    work()
    blocked.multiplies_bf16 = multiplies_bf16


def tune(request: Request, product: Callable[[], object], what: list[str]) -> list[dict[str, Any]]:
    """Time other tile shapes, in the order of their ratio to the product, and other ways to search a row."""
    from fast_electra_kernels.triton_draw import Search
    from fast_electra_kernels.triton_sampler import Tiles
    from fast_electra_kernels.triton_sampler import sample as with_tiles

    found = []
    for shape in (
        Tiles(128, 256, 64, 3, 8), Tiles(128, 256, 64, 4, 8), Tiles(128, 128, 64, 3, 4, 2), Tiles(128, 128, 64, 3, 8),
        Tiles(128, 128, 64, 4, 4), Tiles(64, 256, 64, 2, 4, 2), Tiles(64, 256, 64, 3, 4), Tiles(256, 128, 64, 3, 8),
        Tiles(64, 128, 64, 3, 4, 3), Tiles(128, 128, 128, 2, 4),
    ) if "tiles" in what else ():  # fmt: skip
        try:
            with_tiles(request, shape)
            ratios = [seconds(lambda s=shape: with_tiles(request, s)) / seconds(product) for _ in range(10)]
        except Exception as error:  # this GPU has no room for the shape
            print(f"  {shape}: {type(error).__name__}")
            continue
        found.append({"tiles": shape._asdict(), "times_the_product": summary(ratios)})
    found.sort(key=lambda row: row["times_the_product"]["median"])
    for row in found:
        print(f"  {row['tiles']}: {row['times_the_product']['median']:.3f} times the product")
    for search in (
        Search(8, 32, 8, 1, 128), Search(8, 32, 4, 1, 128), Search(8, 16, 6, 1, 128), Search(4, 32, 4, 1, 128),
        Search(4, 64, 4, 1, 128), Search(8, 64, 4, 2, 128),
    ) if "search" in what else ():  # fmt: skip
        with_tiles(request, None, search)
        rows = kernels(lambda s=search: [with_tiles(request, None, s) for _ in range(5)])["longest"]
        ms = next(row["ms"] / row["calls"] for row in rows if row["name"].startswith("_draw"))
        found.append({"search": search._asdict(), "draw_ms": ms})
        print(f"  {search}: {ms:.3f} ms")
    return found


def quickstart_share() -> dict[str, Any] | None:
    """Return drawing's share of the quickstart's step, with its trained auxiliary, in plain PyTorch."""
    if not (QUICKSTART / "auxiliary" / "model" / "model.json").is_file():
        print("\nno quickstart share: run `make quickstart` first, whose auxiliary is used")
        return None
    torch.set_num_threads(1)  # like each process of the quickstart
    size = sizes("tiny", QUICKSTART / "tokenizer")
    trained, _ = load_model(QUICKSTART / "auxiliary" / "model", "mlm", "run `make quickstart` again")
    sequences = Sequences(Shards.open(QUICKSTART / "shards"), open_tokenizer(QUICKSTART / "tokenizer"), size.length)
    loader = Loader(sequences, Share(BATCHES["tiny"][0], accumulation=1), SEED, MASK_FRACTION)
    rtd, step = ours.plain(size, torch.float32)
    rtd.distribution.model.load_state_dict(trained.state_dict())
    drawing: list[float] = []

    def timed(*arguments: Any, **more: Any) -> Any:
        results: list[Any] = []
        drawing.append(seconds(lambda: results.append(sample_with_statistics(*arguments, **more))))
        return results[0]

    auxiliary.sample_with_statistics = timed
    whole = []
    for n in range(60):
        (batch,) = loader.batch(n)
        whole.append(seconds(lambda batch=batch: step(batch.to(DEVICE))))
    auxiliary.sample_with_statistics = sample_with_statistics
    share = summary(part / all_ for part, all_ in zip(drawing[10:], whole[10:], strict=True))
    print(
        f"\nquickstart: drawing is {share['median']:.1%} of a step ({share['lowest']:.1%} to {share['highest']:.1%}, "
        f"goal: under 10%): {summary(drawing[10:])['median'] * 1e3:.1f} of {summary(whole[10:])['median'] * 1e3:.1f} ms"
    )
    return {"share": share, "drawing_seconds": drawing[10:], "step_seconds": whole[10:]}


if __name__ == "__main__":
    main()
