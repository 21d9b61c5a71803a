"""A training step before and after a change: time and peak memory of the same step in two trees of this repository.

    python benchmarks/before_after.py COMMIT [--recipe small] [--length 512] [--full] [--dtype bf16] [--rounds 9]
                                             [--shards FOLDER --tokenizer FOLDER] [--json FILE]

"Before" is COMMIT, unpacked into a temporary folder. "After" is the tree that this script lies in. Each tree has a
process with one thread, and the two take turns. On a CPU the time is that of the process alone.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from contenders import ours
from contenders.common import BATCHES, DEVICE, SEED, Sizes, machine, sizes, summary
from step_vs_huggingface import open_loader

import fast_electra
from fast_electra.corpus.loader import Loader
from fast_electra.cost.measure import tensor_memory
from fast_electra.training.engines import DTYPES
from fast_electra.training.machine import best_dtype

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("", "kernels", "benchmarks")  # of a tree: its process imports from them
clock = time.perf_counter if DEVICE.type == "cuda" else time.process_time


def main() -> None:
    """Compare the two trees, print the ratios, and write all rounds if the command line asks for it."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("commit", metavar="COMMIT", help="the tree before")
    parser.add_argument("--recipe", choices=BATCHES, default="small")
    parser.add_argument("--length", type=int, metavar="N", help="longest sequence, in tokens; default: the recipe's")
    parser.add_argument("--full", action="store_true", help="take only sequences of exactly that length")
    parser.add_argument("--dtype", choices=DTYPES, default=best_dtype(), help="default: the fastest here")
    parser.add_argument("--rounds", type=int, default=9, help="default: 9, after one that warms up")
    parser.add_argument("--shards", type=Path, metavar="FOLDER", help="default: built from the sample corpus")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="the one that made the shards")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add all rounds to this list")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)  # in the process of a tree
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        git = ["git", "-C", str(ROOT), "archive", arguments.commit]
        done = subprocess.run(git, capture_output=True, check=False)
        if done.returncode:
            sys.exit(f"error: git has no tree {arguments.commit!r}: {done.stderr.decode().strip()}")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as packed:
            packed.extractall(folder / "before", filter="data")
        result = compare({"before": folder / "before", "after": ROOT}, arguments, folder)
    for what, ratio in result["before_over_after"].items():
        print(f"  before / after, {what}: {ratio['median']:.3f} ({ratio['lowest']:.3f} to {ratio['highest']:.3f})")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        earlier = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
        arguments.json.write_text(json.dumps([*earlier, result], indent=1) + "\n")


def compare(trees: dict[str, Path], arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the settings, the rounds of both trees, and the ratios. Shards that are not given go into `folder`."""
    size, loader = opened(arguments, folder)
    timed = [loader.batch(n)[0] for n in range(size.updates, (size.rounds + 1) * size.updates)]
    settings = {"commit": arguments.commit, "recipe": arguments.recipe, "dtype": arguments.dtype, "threads": 1}
    settings |= {"batch": size.batch, "length": size.length, "full": arguments.full}
    settings["mean_length"] = statistics.mean(batch.global_tokens for batch in timed) / size.batch
    settings["mean_longest"] = statistics.mean(batch.layout.longest for batch in timed)
    hardware = machine("torch")
    print(f"\n{hardware['cpu']}, {hardware['torch_cpu_capability']}, {hardware['gpu'] or 'no GPU'}: {settings}")
    command = [sys.executable, "-P", str(Path(__file__).resolve()), *sys.argv[1:], "--work"]
    if arguments.shards is None:
        command += ["--shards", str(folder / "shards"), "--tokenizer", str(folder / "tokenizer")]
    workers: dict[str, subprocess.Popen[str]] = {}
    for name, tree in trees.items():
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(tree / part) for part in FOLDERS)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        workers[name] = subprocess.Popen(command, env=environment, **pipes)

    def ask(name: str, question: str) -> dict[str, Any]:
        stdin, stdout = workers[name].stdin, workers[name].stdout
        assert stdin is not None and stdout is not None
        print(question, file=stdin, flush=True)
        answers = (json.loads(line) for line in stdout if line.startswith("{"))  # libraries print other lines
        return next(answers, None) or sys.exit(f"error: the process {name} COMMIT ended; it says above why")

    orders = [list(workers), list(workers)[::-1]]  # each begins every other round
    rounds = [{name: ask(name, str(n)) for name in orders[n % 2]} for n in range(size.rounds + 1)][1:]
    memory = {name: ask(name, "memory") for name in workers}
    for worker in workers.values():
        worker.communicate()
    ratios = {"time": summary(row["before"]["seconds"] / row["after"]["seconds"] for row in rounds)}
    seconds = {name: sum(row[name]["seconds"] for row in rounds) for name in workers}
    ratios["time, rounds added up"] = summary([seconds["before"] / seconds["after"]])  # batches differ in their lengths
    ratios["peak memory"] = summary([memory["before"]["peak"] / memory["after"]["peak"]])
    return {"machine": hardware, "settings": settings, "before_over_after": ratios, "memory": memory, "rounds": rounds}


def work(arguments: argparse.Namespace) -> None:
    """Answer each line of the standard input. This runs in both trees, so it may only call what both have."""
    assert Path(fast_electra.__file__).parents[1] == Path(os.environ["PYTHONPATH"].split(os.pathsep)[0])
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    size, loader = opened(arguments, Path())
    dtype = DTYPES[arguments.dtype]
    _, step = ours.plain(size, dtype)

    def updates(step: ours.Step, round_: int) -> dict[str, float]:
        began, tokens, loss = clock(), 0, 0.0
        for n in range(round_ * size.updates, (round_ + 1) * size.updates):
            (batch,) = loader.batch(n)
            tokens, loss = tokens + batch.global_tokens, float(step(batch.to(DEVICE)))
        return {"seconds": clock() - began, "tokens": tokens, "loss": loss}

    for question in map(str.strip, sys.stdin):
        if question == "memory":
            memory = tensor_memory(DEVICE, lambda: ours.plain(size, dtype)[1], lambda new: updates(new, 0) and None)
            print(json.dumps(memory._asdict()), flush=True)
        else:
            print(json.dumps(updates(step, int(question))), flush=True)


def opened(arguments: argparse.Namespace, folder: Path) -> tuple[Sizes, Loader]:
    """Return the sizes and the batches; see `open_loader`."""
    size = sizes(arguments.recipe, arguments.tokenizer, arguments.rounds)
    size = replace(size, length=arguments.length or size.length)
    loader = open_loader(arguments, size, folder)
    if arguments.full:
        sequences = loader.sequences
        full = (sequences.lengths(torch.arange(len(sequences))) == size.length).nonzero()[:, 0]
        sequences.order = lambda _, *span: (full[torch.arange(*span) % len(full)], torch.arange(*span) // len(full))
    return size, loader


if __name__ == "__main__":
    main()
