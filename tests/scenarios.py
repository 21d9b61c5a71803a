"""Trainings that several tests look at. The fixture `scenario` runs each once, when a test first asks for it.

Each is a function of (corpus, output, ranks). What one needs of another is in NEEDS.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from fast_electra import config, parts
from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from fast_electra.jobs import preprocess, pretrain
from fast_electra.model.files import save_model
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.training import engines
from fast_electra.training.engines import Ranks
from fast_electra.training.loop import Run
from fast_electra.training.machine import this_machine

CONFIGS = Path(__file__).parent.parent / "ds_configs"
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


def build(values: Tree, ranks: Ranks, *overrides: str, on_gpu: bool = False) -> Run:
    path = Path(values["fast_electra"]["run"]).with_suffix(f".{ranks.rank}.json")
    path.write_text(json.dumps(values))
    machine = this_machine()
    return parts.build(config.load(path, overrides, machine._replace(on_gpu=on_gpu or machine.on_gpu)), ranks)


def train(values: Tree, ranks: Ranks, *overrides: str) -> None:
    pretrain.finish(build(values, ranks, *overrides))


def auxiliary(corpus: Path, output: Path, ranks: Ranks) -> None:
    """What the other scenarios draw their replacements from."""
    train(tree(corpus, output / "auxiliary", "mlm"), ranks)


def divisible(corpus: Path, run: Path, **section: Any) -> Tree:
    """A run whose updates do not depend on how ranks divide them: in 16 bit, a draw may depend on its neighbours.

    It has dropout on a CPU, where that is a function of the sequence.
    """
    values = tree(corpus, run, **section)
    values["fast_electra"]["auxiliary"]["dtype"] = "fp32"
    if not this_machine().on_gpu:
        values["fast_electra"]["model"] |= {"dropout": 0.1, "attention_dropout": 0.1}
    return values


def plain(corpus: Path, output: Path, ranks: Ranks) -> None:
    """Checkpoints often; its losses are compared between numbers of ranks. Also watches the auxiliary."""
    run = build(divisible(corpus, output / "plain", checkpoint={"every": 3, "keep": 10}), ranks)
    model = run.objective.distribution.model.model  # type: ignore[attr-defined]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pretrain.finish(run)
    facts = {
        "identical": all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()),
        "frozen": not any(parameter.requires_grad for parameter in model.parameters()),
        "eval": not any(module.training for module in model.modules()),
    }
    (output / f"auxiliary_after.{ranks.rank}.json").write_text(json.dumps(facts))


def accumulated(corpus: Path, output: Path, ranks: Ranks) -> None:
    """As `plain`, its batch in steps of one sequence."""
    train(divisible(corpus, output / "accumulated"), ranks, "train_micro_batch_size_per_gpu=1")


def resumed(kind: str, corpus: Path, output: Path, ranks: Ranks) -> None:
    """`plain` with dropout, uninterrupted, then from each of three cut points; with torch's Adam, or DeepSpeed's."""
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
    for later in (run / "checkpoints").glob("update-*"):
        if int(later.name.removeprefix("update-")) > update:
            shutil.rmtree(later)
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
        preprocess.write(config.load(path, [], this_machine()), folder, ranks, part=32)
        overrides = [
            f"fast_electra.replacement.store={folder}",
            f"fast_electra.run={run}/{name}_offline",
            "fast_electra.auxiliary.run=/nowhere",
        ]
        train(online, ranks, *overrides)


def method(name: str, corpus: Path, output: Path, ranks: Ranks) -> None:
    """What the paper trains with, for a few updates, from a config that ships."""
    file, *chosen = {"auxiliary": ("tiny_auxiliary",), **METHODS}[name]
    keys = {
        "updates": 4,
        "model.vocabulary_size": 1000,
        "corpus.shards": corpus / "shards",
        "corpus.tokenizer": corpus / "tokenizer",
        "evaluation.sequences": 16,
        "run": output / name,
    }
    if file == "tiny":
        keys["auxiliary.run"] = output / "auxiliary"
    overrides = [f"fast_electra.{key}={value}" for key, value in keys.items()]
    overrides += ["train_batch_size=16", *(f"fast_electra.{choice}" for choice in chosen)]
    pretrain.train(config.load(CONFIGS / f"{file}.json", overrides, this_machine()), ranks)


def golden(corpus: Path, output: Path, ranks: Ranks) -> None:
    """Ten updates of `tiny` in fp32, against an auxiliary that is as new: nothing in it was trained before."""
    run, auxiliary = output / "golden", output / "golden_auxiliary"
    keys = {
        "updates": 10,
        "run": run,
        "auxiliary.run": auxiliary,
        "auxiliary.dtype": "fp32",
        "model.vocabulary_size": 1000,
        "corpus.shards": corpus / "shards",
        "corpus.tokenizer": corpus / "tokenizer",
        "evaluation.sequences": 16,
    }
    overrides = [f"fast_electra.{key}={value}" for key, value in keys.items()]
    overrides += ["optimizer.params.torch_adam=true", "scheduler.params.warmup_num_steps=3", "bf16.enabled=false"]
    loaded = config.load(CONFIGS / "tiny.json", overrides, this_machine())
    if ranks.rank == 0:
        settings = loaded.run.model.model_copy(update={"layers": 1, "initial_std": 0.4})
        weights = MaskedLanguageModel(settings, seed=1).state_dict()
        tokenizer = SentencePieceTokenizer.load(corpus / "tokenizer").hash
        save_model(auxiliary / "model", "mlm", settings, weights, tokenizer=tokenizer, evaluation={})
    engines.wait_for_ranks()
    pretrain.train(loaded, ranks)


def sixteen_bit(corpus: Path, output: Path, ranks: Ranks) -> None:
    """bf16 training with accumulation, and a bf16 auxiliary."""
    values = tree(corpus, output / "bf16", auxiliary={"run": str(output / "auxiliary"), "dtype": "bf16"})
    train(values | {"bf16": {"enabled": True}}, ranks, "train_micro_batch_size_per_gpu=1")


def half(corpus: Path, output: Path, ranks: Ranks) -> None:
    """fp16 and its loss scale on a CPU, which DeepSpeed and our config refuse: here alone both are told otherwise."""
    accelerator = type(get_accelerator())
    refused = accelerator.is_fp16_supported
    accelerator.is_fp16_supported = lambda self: True
    try:
        values = tree(corpus, output / "fp16") | {"fp16": {"enabled": True, "initial_scale_power": 24, "hysteresis": 1}}
        pretrain.finish(build(values, ranks, on_gpu=True))
    finally:
        accelerator.is_fp16_supported = refused


def not_finite(kind: str, corpus: Path, output: Path, ranks: Ranks) -> None:
    """A run with a poisoned update, or (`forever`) one that never recovers. The last rank alone is poisoned."""
    objective, length = "joint" if kind == "joint" else "rtd", 40 if kind == "forever" else 12
    updates = set(range(5, 100)) if kind == "forever" else {5}
    values = tree(corpus, output / f"not_finite_{kind}", objective, checkpoint={"every": 4, "keep": 10}, updates=length)
    run = build(values | ({"bf16": {"enabled": True}} if kind == "bf16" else {}), ranks)
    poison(run.objective, kind, updates if ranks.rank == ranks.world - 1 else set())
    try:
        pretrain.finish(run)
    except ValueError as error:
        (output / f"not_finite_{kind}.{ranks.rank}.txt").write_text(f"{error}")


def poison(objective: Any, kind: str, updates: set[int]) -> None:
    """Make the loss of these updates, its gradient, or the auxiliary's logits not finite."""
    loss, count = objective.loss, iter(range(1, 1000))

    def poisoned(forward: Any, batch: Any, strength: Any) -> Any:
        if next(count) not in updates:
            return loss(forward, batch, strength)
        if kind == "joint":  # logits from which nothing can be drawn, as when fp16 overflows
            hook = objective.model.auxiliary.register_forward_hook(lambda _, __, logits: logits / 0)
            try:
                return loss(forward, batch, strength)
            finally:
                hook.remove()
        share, sums = loss(forward, batch, strength)
        if kind == "gradient":  # a finite loss with an infinite slope
            return share + (objective.model.output.weight.abs().sum() * 0).sqrt(), sums
        return share * torch.nan, sums

    objective.loss = poisoned


# Scenarios whose runs another one reads.
NEEDS = dict.fromkeys(
    ("plain", "accumulated", "resumed", "checkpointing", "offline", "sixteen_bit", "half"), "auxiliary"
)
NEEDS |= {"not_finite": "auxiliary"}
