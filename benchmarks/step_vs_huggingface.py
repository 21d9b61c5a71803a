"""Tokens per second of a training step: fast_electra compared with Hugging Face's ELECTRA, on this machine.

    python benchmarks/step_vs_huggingface.py [--recipe tiny small] [--length N] [--threads 1] [--engine]
                                             [--json FILE]

Every contender loads the same batches of real text and has the same sizes, dropout, precision, threads, AdamW and
clipping. They take turns in each round, so that the machine's other work slows all of them alike. With one thread on a
CPU, the time is that of this process alone. Ratios are computed for each round. The steps are in contenders/.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from contenders import ours
from contenders.common import BATCHES, DEVICE, MASK_FRACTION, SEED, Sizes, Step, machine, sizes, summary

from fast_electra.corpus.loader import Loader, Share
from fast_electra.corpus.sequences import Sequences
from fast_electra.corpus.shards import Shards
from fast_electra.corpus.tokenizer import open_tokenizer
from fast_electra.settings import UserError
from fast_electra.text.build import build_shards
from fast_electra.text.train_tokenizer import train_tokenizer
from fast_electra.training.engines import DTYPES
from fast_electra.training.machine import best_dtype

OURS, ENGINE = "fast_electra", "fast_electra, DeepSpeed"
JOINT, FROZEN = "Hugging Face, joint ELECTRA", "Hugging Face, frozen generator"


def main() -> None:
    """Measure the recipes, print the figures, and write them if the command line asks for it."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    result: dict[str, Any] = {"machine": machine("torch", "transformers", "deepspeed"), "recipes": []}
    print(", ".join(f"{name} {number}" for name, number in result["machine"]["versions"].items()))
    has = result["machine"]
    hardware = f"{has['cpu']} ({has['torch_cpu_capability']}), {has['cores']} cores, {has['gpu'] or 'no GPU'}"
    print(f"{hardware}; plain PyTorch with fused AdamW unless named DeepSpeed")
    try:
        for name in arguments.recipe:
            result["recipes"].append(measure(name, arguments))
    except UserError as error:
        sys.exit(f"error: {error}")
    result["machine"]["load_average_at_end"] = os.getloadavg()
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
        print(f"\n{arguments.json}")
    if arguments.engine:
        from fast_electra.training.engines import stop_ranks

        stop_ranks()


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--recipe", nargs="+", choices=BATCHES, default=list(BATCHES), help="default: all")
    parser.add_argument("--length", type=int, metavar="N", help="longest sequence, in tokens; default: the recipe's")
    parser.add_argument("--rounds", type=int, help="default: 15 for tiny, 9 for small")
    parser.add_argument("--threads", type=int, default=1, help="default: 1, like each process of the quickstart")
    parser.add_argument("--engine", action="store_true", help="also run ours through the DeepSpeed engine")
    parser.add_argument("--attention", choices=("sdpa", "eager"), help="Hugging Face's; default: the faster here")
    parser.add_argument("--shards", type=Path, metavar="FOLDER", help="default: built from the sample corpus")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="the one that made the shards")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all rounds here")
    arguments = parser.parse_args()
    if (arguments.shards is None) != (arguments.tokenizer is None):
        parser.error("--shards and --tokenizer go together")
    try:
        version("transformers")
    except PackageNotFoundError:
        parser.error("this benchmark needs transformers: pip install 'fast_electra[hf]'")
    return arguments


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all rounds of a recipe, and their summary, which is also printed."""
    from contenders import huggingface

    size = sizes(name, arguments.tokenizer, arguments.rounds, arguments.length)
    dtype = DTYPES[best_dtype()]
    with tempfile.TemporaryDirectory() as folder:
        loader = open_loader(arguments, size, Path(folder))
        attention = arguments.attention or huggingface.faster_attention(size, dtype, loader.batch(0) * size.updates)
        steps = {OURS: ours.plain(size, dtype)[1]}
        if arguments.engine:
            steps[ENGINE] = ours.engine(size, dtype)
        steps[FROZEN] = huggingface.frozen(size, dtype, attention)
        steps[JOINT] = huggingface.joint(size, dtype, attention)
        settings = asdict(size) | {"discriminator": size.discriminator.model_dump()}
        settings |= {"auxiliary": size.auxiliary.model_dump(), "mask_fraction": MASK_FRACTION}
        settings |= {"recipe": name, "dtype": best_dtype(), "huggingface_attention": attention}
        settings["mean_length"] = mean_length(loader, size)
        print_settings(settings)
        result = compete(steps, loader, size)
    seconds = result["seconds"]
    speed = {c: summary(t / row[c] for t, row in zip(result["tokens"], seconds, strict=True)) for c in steps}
    ratio = {c: summary(row[c] / row[OURS] for row in seconds) for c in steps}
    print_table(speed, ratio, result["last_losses"])
    return {"settings": settings, "tokens_per_second": speed, "times_the_seconds_of_ours": ratio, **result}


def open_loader(arguments: argparse.Namespace, size: Sizes, folder: Path) -> Loader:
    """Open the shards of the command line, or the sample corpus with a tokenizer of the recipe's size."""
    tokenizer, shards = arguments.tokenizer, arguments.shards
    if shards is None:
        tokenizer, shards = folder / "tokenizer", folder / "shards"
        train_tokenizer(["sample"], tokenizer, vocabulary=size.discriminator.vocabulary_size)
        build_shards(["sample"], tokenizer, shards)
    sequences = Sequences(Shards.open(shards), open_tokenizer(tokenizer), size.length)
    return Loader(sequences, Share(size.batch, accumulation=1), SEED, MASK_FRACTION)


def mean_length(loader: Loader, size: Sizes) -> float:
    """Return the tokens of a sequence, on average over the batches that are timed."""
    timed = range(size.updates, (size.rounds + 1) * size.updates)
    return statistics.mean(loader.batch(n)[0].global_tokens for n in timed) / size.batch


def compete(steps: dict[str, Step], loader: Loader, size: Sizes) -> dict[str, Any]:
    """Return each contender's seconds in each round, loading included. All see the same batches; round 0 warms up."""
    alone = DEVICE.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter  # other processes change the CPU time little
    tokens: list[int] = []
    seconds: list[dict[str, float]] = []
    losses: dict[str, list[float]] = {}
    for round_ in range(size.rounds + 1):
        row, seen = {}, 0
        for name, step in steps.items():
            began, seen, losses[name] = clock(), 0, []
            for n in range(round_ * size.updates, (round_ + 1) * size.updates):
                (batch,) = loader.batch(n)
                losses[name].append(float(step(batch.to(DEVICE))))
                seen += batch.global_tokens
            row[name] = clock() - began
        if round_:
            tokens.append(seen)
            seconds.append(row)
    last_losses = {name: statistics.mean(values) for name, values in losses.items()}
    return {"tokens": tokens, "seconds": seconds, "clock": clock.__name__, "last_losses": last_losses}


def print_settings(settings: dict[str, Any]) -> None:
    """Print what all contenders have in common."""
    main = settings["discriminator"]
    print(
        f"\n{settings['recipe']}: {settings['batch']} sequences of up to {settings['length']} "
        f"(mean {settings['mean_length']:.0f}), vocabulary {main['vocabulary_size']:,}, hidden size "
        f"{main['hidden_size']}, {main['layers']} + {settings['auxiliary']['layers']} layers, dropout "
        f"{main['dropout']}; {settings['dtype']}, "
        f"{torch.get_num_threads()} thread(s), {settings['rounds']} rounds of {settings['updates']} update(s); "
        f"Hugging Face's attention: {settings['huggingface_attention']}",
        flush=True,
    )


def print_table(
    speed: dict[str, dict[str, float]], ratio: dict[str, dict[str, float]], losses: dict[str, float]
) -> None:
    """Print the medians, and the lowest and highest round."""
    print(f"  {'':<32}{'tokens/s':>8}{'(rounds)':>21}{'fast_electra is faster by':>30}{'last loss':>12}")
    for name, figures in speed.items():
        rounds = f"({figures['lowest']:,.0f} to {figures['highest']:,.0f})"
        times = f"{ratio[name]['median']:.2f} ({ratio[name]['lowest']:.2f} to {ratio[name]['highest']:.2f})"
        times = "" if name == OURS else times
        print(f"  {name:<32}{figures['median']:>8,.0f}{rounds:>21}{times:>30}{losses[name]:>12.3f}")


if __name__ == "__main__":
    main()
