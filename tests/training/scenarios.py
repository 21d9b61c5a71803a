"""Trainings that tests start together in one launch, because starting DeepSpeed takes longer than they do.

deepspeed ... tests/training/scenarios.py --corpus FOLDER --output FOLDER NAME [NAME ...]
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from fast_electra import config, deepspeed_config
from fast_electra.jobs import preprocess, pretrain
from fast_electra.training import engines
from fast_electra.training.engines import Ranks, start_ranks, stop_ranks

CONFIGS = Path(__file__).parent.parent.parent / "ds_configs"
UPDATES = 12
Tree = dict[str, Any]


def tree(corpus: Path, run: Path, objective: str = "rtd", **section: Any) -> Tree:
    """A config small enough for seconds: fp32, torch's Adam, which resumes bit for bit."""
    auxiliary = {"auxiliary": {"run": str(run.parent / "auxiliary")}} if objective == "rtd" else {}
    sizes = {"vocabulary_size": 1000, "layers": 2, "hidden_size": 32, "ffn_size": 64, "heads": 2}
    return {
        "train_batch_size": 8,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "Adam", "params": {"lr": 3e-3, "betas": [0.9, 0.98], "eps": 1e-6, "torch_adam": True}},
        "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 3, "warmup_type": "linear"}},
        "zero_optimization": {"stage": 2},
        "fast_electra": {
            "objective": objective,
            "recipe": "tiny",
            "run": str(run),
            "updates": UPDATES,
            "log_every": 5,
            "model": sizes,
            "corpus": {"shards": str(corpus / "shards"), "tokenizer": str(corpus / "tokenizer"), "sequence_length": 32},
            "evaluation": {"sequences": 16},
            **auxiliary,
            **section,
        },
    }


def train(values: Tree, ranks: Ranks, *overrides: str) -> None:
    path = Path(values["fast_electra"]["run"]).with_suffix(f".{ranks.rank}.json")
    path.write_text(json.dumps(values))
    pretrain.train(config.load(path, list(overrides), world=ranks.world), ranks)


def auxiliary(corpus: Path, output: Path, ranks: Ranks) -> None:
    """What the other scenarios draw their replacements from."""
    train(tree(corpus, output / "auxiliary", "mlm"), ranks)


def plain(corpus: Path, output: Path, ranks: Ranks) -> None:
    """No dropout, checkpoints often; its losses are compared between numbers of ranks. Also watches the auxiliary."""
    genuine, built = pretrain.build_objective, []

    def watched(*arguments: Any) -> Any:
        objective, facts = genuine(*arguments)
        model = objective.distribution.model
        built.extend([model, {name: tensor.clone() for name, tensor in model.state_dict().items()}])
        return objective, facts

    pretrain.build_objective = watched
    try:
        train(tree(corpus, output / "plain", checkpoint={"every": 3, "keep": 10}), ranks)
    finally:
        pretrain.build_objective = genuine
    model, before = built
    facts = {
        "identical": all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()),
        "frozen": not any(parameter.requires_grad for parameter in model.parameters()),
        "eval": not any(module.training for module in model.modules()),
    }
    (output / f"auxiliary_after.{ranks.rank}.json").write_text(json.dumps(facts))


def accumulated(corpus: Path, output: Path, ranks: Ranks) -> None:
    """As `plain`, its batch in steps of one sequence."""
    train(tree(corpus, output / "accumulated"), ranks, "train_micro_batch_size_per_gpu=1")


def resumed(corpus: Path, output: Path, ranks: Ranks) -> None:
    """`plain` with dropout, uninterrupted, then from each of three cut points; with torch's Adam, with DeepSpeed's."""
    for kind in ("exact", "fused"):
        whole = output / f"{kind}_whole"
        values = tree(corpus, whole, checkpoint={"every": 3, "keep": 10})
        values["fast_electra"]["model"] |= {"dropout": 0.1, "attention_dropout": 0.1, "activation_checkpointing": True}
        values["optimizer"]["params"]["torch_adam"] = kind == "exact"
        train(values, ranks)
        for cut in (3, 6, 9):
            run = output / f"{kind}_from_{cut}"
            if ranks.rank == 0:
                _cut(whole, run, cut)
            engines.wait_for_ranks()
            train(values, ranks, f"fast_electra.run={run}")


def _cut(whole: Path, run: Path, update: int) -> None:
    """The run folder as an interruption leaves it: rows beyond `update` were logged, but their weights are lost."""
    shutil.copytree(whole, run)
    shutil.rmtree(run / "model")
    for checkpoint in (run / "checkpoints").glob("update-*"):
        if int(checkpoint.name.removeprefix("update-")) > update:
            shutil.rmtree(checkpoint)
    (run / "checkpoints" / "latest").write_text(f"update-{update:08d}\n")


def checkpointing(corpus: Path, output: Path, ranks: Ranks) -> None:
    """The same run with and without activation checkpointing, with dropout."""
    for kind in (False, True):
        run = output / f"checkpointing_{kind}"
        values = tree(corpus, run)
        values["fast_electra"]["model"] |= {"dropout": 0.1, "attention_dropout": 0.1, "activation_checkpointing": kind}
        train(values, ranks)


# Each row of the paper: a config that ships, and the one key that chooses it (the fixed auxiliary of D.2 needs two).
METHODS: dict[str, tuple[str, ...]] = {
    "uniform": ("tiny", "replacement.distribution=uniform"),
    "term_frequency": ("tiny", "replacement.distribution=term_frequency"),
    "smoothed_one_hot": ("tiny", "replacement.distribution=smoothed_one_hot"),
    "uniform_to_smoothed_one_hot": ("tiny", "replacement.distribution=uniform_to_smoothed_one_hot"),
    "term_frequency_to_smoothed_one_hot": ("tiny", "replacement.distribution=term_frequency_to_smoothed_one_hot"),
    "temperature": ("tiny",),
    "term_frequency_interpolation": ("tiny", "replacement.augmentation=term_frequency_interpolation"),
    "dropout": ("tiny", "replacement.augmentation=dropout"),
    "attention_dropout": ("tiny", "replacement.augmentation=attention_dropout"),
    "drop_token": ("tiny", "replacement.augmentation=drop_token"),
    "polynomial": ("tiny", "curriculum.schedule=polynomial"),
    "stepwise": ("tiny", "curriculum.schedule=stepwise"),
    "constant": ("tiny", "curriculum.schedule=constant"),
    "fixed": ("tiny", "curriculum.schedule=constant", "curriculum.initial=1"),
    "joint_shared": ("tiny_joint",),
    "joint_disentangled": ("tiny_joint", "joint.embedding_sharing=gradient_disentangled"),
    "joint_none": ("tiny_joint", "joint.embedding_sharing=none"),
}


def joint(corpus: Path, output: Path, ranks: Ranks) -> None:
    """Both models at once, with activation checkpointing; its losses are compared between numbers of ranks."""
    values = tree(corpus, output / "joint", "joint", joint={"auxiliary_layers": 1})
    values["fast_electra"]["model"] |= {"dropout": 0.0, "attention_dropout": 0.0, "activation_checkpointing": True}
    train(values, ranks)


def offline(corpus: Path, output: Path, ranks: Ranks) -> None:
    """One store for two schedules, beside the same two online; and a store of one value an epoch."""
    run, store = output / "offline", output / "store"
    run.mkdir(exist_ok=True)
    schedules: dict[str, Tree] = {
        "exponential": {"schedule": "exponential", "rate": 0.3},
        "stepwise": {"schedule": "stepwise", "rate": 3.0, "initial": 1.8},
        "per_epoch": {"schedule": "polynomial", "rate": 2.0, "per": "epoch"},
    }
    for name, curriculum in schedules.items():
        online = tree(corpus, run / f"{name}_online", curriculum=curriculum, checkpoint={"every": 100})
        online["fast_electra"]["auxiliary"] = {"run": str(output / "auxiliary")}
        if name == "per_epoch":
            online["fast_electra"]["replacement"] = {"augmentation": "dropout"}
        train(online, ranks)
        folder = store.with_name(f"store_{name}") if name == "per_epoch" else store
        path = run / f"{name}.{ranks.rank}.json"
        path.write_text(json.dumps(online))
        preprocess.write(config.load(path, world=ranks.world), folder, ranks, part=32)
        overrides = [
            f"fast_electra.replacement.store={folder}",
            f"fast_electra.run={run}/{name}_offline",
            "fast_electra.auxiliary.run=/nowhere",
        ]
        train(online, ranks, *overrides)


def methods(corpus: Path, output: Path, ranks: Ranks) -> None:
    """Everything that the paper trains with, each for a few updates, from the configs that ship."""
    small = {
        "updates": 4,
        "model.vocabulary_size": 1000,
        "corpus.shards": corpus / "shards",
        "corpus.tokenizer": corpus / "tokenizer",
        "evaluation.sequences": 16,
    }
    frozen = output / "methods" / "auxiliary"
    for name, (file, *chosen) in {"auxiliary": ("tiny_auxiliary",), **METHODS}.items():
        keys = small | {"run": output / "methods" / name}
        if file == "tiny":
            keys["auxiliary.run"] = frozen
        overrides = [f"fast_electra.{key}={value}" for key, value in keys.items()]
        overrides += ["train_batch_size=16", *(f"fast_electra.{choice}" for choice in chosen)]
        pretrain.train(config.load(CONFIGS / f"{file}.json", overrides, world=ranks.world), ranks)


def sixteen_bit(corpus: Path, output: Path, ranks: Ranks) -> None:
    """bf16 training with accumulation, and a bf16 auxiliary."""
    values = tree(corpus, output / "bf16", auxiliary={"run": str(output / "auxiliary"), "dtype": "bf16"})
    train(values | {"bf16": {"enabled": True}}, ranks, "train_micro_batch_size_per_gpu=1")


def half(corpus: Path, output: Path, ranks: Ranks) -> None:
    """fp16 and its loss scale on a CPU, which DeepSpeed and our config refuse: here alone both are told otherwise."""
    accelerator = type(get_accelerator())
    refused = accelerator.is_fp16_supported, deepspeed_config.Machine.dtype
    accelerator.is_fp16_supported = lambda self: True
    deepspeed_config.Machine.dtype = lambda self, name, key: name
    try:
        values = tree(corpus, output / "fp16") | {"fp16": {"enabled": True, "initial_scale_power": 24, "hysteresis": 1}}
        train(values, ranks)
    finally:
        accelerator.is_fp16_supported, deepspeed_config.Machine.dtype = refused


def not_finite(corpus: Path, output: Path, ranks: Ranks) -> None:
    """One poisoned update in fp32 and in bf16, then a run that never recovers. Rank 1 alone is poisoned, or rank 0."""
    genuine = pretrain.build_objective
    for kind, updates, section in (
        ("loss", {5}, {}),
        ("bf16", {5}, {"bf16": {"enabled": True}}),
        ("gradient", {5}, {}),
        ("joint", {5}, {}),
        ("forever", set(range(5, 100)), {}),
    ):
        run = output / f"not_finite_{kind}"

        def poisoned(*arguments: Any, kind: str = kind, updates: set[int] = updates) -> Any:
            objective, facts = genuine(*arguments)
            loss, count = objective.loss, iter(range(1, 1000))

            def poison(forward: Any, batch: Any, value: Any) -> Any:
                now = next(count) in updates and ranks.rank == ranks.world - 1
                if kind == "joint" and now:  # logits from which nothing can be drawn, as when fp16 overflows
                    hook = objective.model.auxiliary.register_forward_hook(lambda _, __, logits: logits / 0)
                    try:
                        return loss(forward, batch, value)
                    finally:
                        hook.remove()
                share, sums = loss(forward, batch, value)
                if now:
                    if kind == "gradient":  # a sound loss with an infinite slope
                        weight = objective.model.output.weight
                        share = share + (weight.abs().sum() * 0).sqrt()
                    else:
                        share = share * torch.nan
                return share, sums

            objective.loss = poison
            return objective, facts

        pretrain.build_objective = poisoned
        objective = "joint" if kind == "joint" else "rtd"
        length = 12 if kind != "forever" else 40
        values = tree(corpus, run, objective, checkpoint={"every": 4, "keep": 10}, updates=length) | section
        try:
            train(values, ranks)
        except ValueError as error:
            (output / f"not_finite_{kind}.{ranks.rank}.txt").write_text(f"{error}")
        finally:
            pretrain.build_objective = genuine


SCENARIOS = {
    f.__name__: f
    for f in (auxiliary, plain, accumulated, resumed, checkpointing, joint, offline, methods)
    + (sixteen_bit, half, not_finite)
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank", type=int, default=0)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("names", nargs="+", choices=SCENARIOS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ranks = start_ranks()
    for name in arguments.names:
        SCENARIOS[name](arguments.corpus, arguments.output, ranks)
    stop_ranks()


if __name__ == "__main__":
    main()
