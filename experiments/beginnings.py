"""The models that transfer.py fine-tunes: two recipes of pre-training, each with a text's own tokens."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from fine_tuned import ROOT, command, settings

from fast_electra.files import read_json, write_json
from fast_electra.training.metrics import read_metrics

MODEL = {
    "embedding_size": "null",
    "hidden_size": 256,
    "ffn_size": 1024,
    "heads": 4,
    "relative_start": "local",  # with "zero", an MLM spends 1,000 updates before it uses context
    "dropout": 0,
    "attention_dropout": 0,
}
# The paper's 0.1 keeps the task easy for 12,500 of its updates, and would for 400 of ours: too few to leave the plateau
# on which a model knows tokens by their frequency alone (docs/results.md).
TAU = 0.3


@dataclass(frozen=True)
class Beginning:
    """How a model is pre-trained."""

    label: str
    config: str  # of ds_configs/
    rate: float  # the peak learning rate
    updates: int | None  # None: as many as take the time of `fast` and of what it needs
    layers: int = 4
    keys: dict[str, Any] = field(default_factory=dict)  # of the section `fast_electra`
    auxiliary: str | None = None  # name of the beginning that corrupts its text
    start: str | None = None  # name of the beginning that gives its first weights


@dataclass(frozen=True)
class Recipe:
    """The beginnings by their names, each after those that it needs."""

    vocabulary: int
    random: str  # the beginning whose sizes random weights have
    beginnings: dict[str, Beginning]

    def needs(self, name: str) -> set[str]:
        """Return a beginning and all that it needs."""
        beginning = self.beginnings[name]
        direct = {beginning.auxiliary, beginning.start} | ({"fast"} if beginning.updates is None else set())
        return {name}.union(*(self.needs(other) for other in direct if other is not None))


_MLM = Beginning("MLM, equal updates", "small_auxiliary", 0.002, 4000)
_LONGER_MLM = Beginning("MLM", "small_auxiliary", 0.002, 10_000, keys={"corruption.mask_fraction": 0.2})
# Joint training has half the rate of MLM, as in the paper.
_JOINT = Beginning("joint training, equal updates", "small_joint", 0.001, 4000, keys={"joint.auxiliary_layers": 2})
_FAST = {"curriculum.rate": TAU, "model.initial_std": 0.06}

RECIPES = {
    "brief": Recipe(
        8192,
        "fast",
        {
            "auxiliary": Beginning("the auxiliary", "small_auxiliary", 0.002, 3000, layers=2),
            "mlm": _MLM,
            "joint": _JOINT,
            "fast": Beginning("Fast-ELECTRA", "small", 0.003, 4000, keys=_FAST, auxiliary="auxiliary"),
            "mlm_time": replace(_MLM, label="MLM, equal time", updates=None),
            "joint_time": replace(_JOINT, label="joint training, equal time", updates=None),
        },
    ),
    # It reads more text, in longer tokens. Fast-ELECTRA begins with the weights of the MLM, which is its auxiliary too.
    "longer": Recipe(
        16_384,
        "mlm",
        {
            "mlm": _LONGER_MLM,
            "fast": Beginning("MLM, then Fast-ELECTRA", "continue", 0.0005, 3000, auxiliary="mlm", start="mlm"),
            "mlm_time": replace(_LONGER_MLM, label="MLM, equal time", updates=None),
        },
    ),
}


def make_all(recipe: Recipe, folder: Path, text: Path, names: list[str], workers: int) -> None:
    """Make tokenizer and shards, and pre-train some beginnings and what they need; keep what is there."""
    make_corpus(recipe, folder, text)
    wanted = set[str]().union(*(recipe.needs(name) for name in names if name != "random"))
    done: dict[str, Future[None]] = {}

    def after_its_needs(name: str) -> None:
        for other in recipe.needs(name) - {name}:
            done[other].result()
        pretrain(recipe, folder, name)

    with ThreadPoolExecutor(workers) as pool:  # it takes jobs in order, so what a job waits for has begun before it
        for name in recipe.beginnings:
            if name in wanted:
                done[name] = pool.submit(after_its_needs, name)
        for future in done.values():
            future.result()


def make_corpus(recipe: Recipe, folder: Path, text: Path) -> None:
    """Make tokenizer and shards, unless they are there."""
    tokenizer, shards = folder / "tokenizer", folder / "shards"
    if not tokenizer.exists():
        size = ("--vocabulary", recipe.vocabulary, "--max-train-bytes", 30_000_000)
        command("-m", "fast_electra.cli", "tokenizer", "--input", text, "--output", tokenizer, *size)
    if not shards.exists():
        what = ("--input", text, "--tokenizer", tokenizer, "--output", shards)
        command("-m", "fast_electra.cli", "corpus", *what, "--heldout", 0.01, "--workers", 2)


def pretrain(recipe: Recipe, folder: Path, name: str) -> None:
    """Pre-train one model, or the rest of its updates."""
    beginning, updates = recipe.beginnings[name], updates_of(recipe, folder, name)
    keys = {
        "run": folder / name,
        "corpus.shards": folder / "shards",
        "corpus.tokenizer": folder / "tokenizer",
        "corpus.sequence_length": 128,
        "updates": updates,
        "evaluation.every": 1000,
        "evaluation.sequences": 256,
        "checkpoint.every": 500,
        "checkpoint.keep": 1,
    }
    if beginning.start is None:
        sizes = MODEL | {"vocabulary_size": recipe.vocabulary, "layers": beginning.layers}
        keys |= {f"model.{key}": value for key, value in sizes.items()}
    else:
        keys |= {"model.huggingface": exported(folder / beginning.start), "auxiliary.huggingface": "null"}
    if beginning.auxiliary is not None:
        keys["auxiliary.run"] = folder / beginning.auxiliary
    deepspeed = {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 64,
        "optimizer.params.lr": beginning.rate,
        "optimizer.params.torch_adam": "false",  # but DeepSpeed's, compiled for the processor
        "scheduler.params.warmup_num_steps": updates // 10,
        "bf16.enabled": "true",
        "fp16.enabled": "false",
    }
    config = ("--deepspeed_config", ROOT / f"ds_configs/{beginning.config}.json")
    values = {f"fast_electra.{key}": value for key, value in (keys | beginning.keys).items()} | deepspeed
    command("launch/pretrain.py", *config, *settings(values), log=folder / f"{name}.log")
    print(f"{time.strftime('%H:%M')} pre-trained {name}", flush=True)


def exported(run: Path) -> Path:
    """Export a model to a directory beside its run, unless it is there."""
    place = run.with_name(f"{run.name}_exported")
    if not place.exists():
        command("-m", "fast_electra.cli", "export", run, place)
    return place


def updates_of(recipe: Recipe, folder: Path, name: str) -> int:
    """Return the number of updates of a pre-training.

    Where it follows from an equal time, it is settled when it is first asked for: a run that is resumed on another day
    may have other times.
    """
    updates, kept = recipe.beginnings[name].updates, folder / f"{name}.json"
    if updates is not None:
        return updates
    if not kept.exists():
        total = sum(updates_of(recipe, folder, each) * seconds(folder, each) for each in recipe.needs("fast"))
        write_json(kept, {"updates": round(total / seconds(folder, name.removesuffix("_time")))})
    return int(read_json(kept)["updates"])


def seconds(folder: Path, name: str) -> float:
    """Return the median time of an update of a run."""
    return median(row["tokens"] / row["tokens_per_second"] for row in read_metrics(folder / name)[0])
