"""The variants that are compared. Each is a config of ds_configs/ with overrides."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fast_electra import config
from fast_electra.config import Config

ROOT = Path(__file__).parent.parent
# With these sizes a main model begins to use context within the budget of updates; see docs/results.md.
VOCABULARY, BATCH = 384, 32
AUXILIARY_UPDATES = {1: 500, 2: 500, 3: 800}  # by depth
JUDGE = "judge"  # an auxiliary whose depth and seed no run uses
JUDGE_DEPTH, JUDGE_SEED = 2, 1000
SHARED = (JUDGE, "auxiliary_3")  # trained once and used by all seeds
CHECKPOINTS = 4  # of each run in TRACED, evenly spaced: the curves of Figure 4 (left)
TRACED = ("fast", "fixed")


@dataclass(frozen=True)
class Variant:
    """A run's differences from a config of ds_configs/.

    Attributes:
        keys: overrides of the section `fast_electra`.
        depth: number of layers of the frozen auxiliary that draws the replacements; 0 if there is none.
        file: name of the config.
        deepspeed: overrides of DeepSpeed's own keys.
    """

    keys: dict[str, Any]
    depth: int = 1
    file: str = "tiny"
    deepspeed: tuple[str, ...] = ()


def _distribution(name: str) -> Variant:
    return Variant({"replacement.distribution": name}, depth=0)


def _augmentation(name: str) -> Variant:
    return Variant({"replacement.augmentation": name})


def _schedule(name: str, rate: float) -> Variant:
    return Variant({"curriculum.schedule": name, "curriculum.rate": rate})


FIXED = {"curriculum.schedule": "constant", "curriculum.initial": 1.0}
# The paper prints no rates for the other schedules. With these, the task stays easy for very different lengths of time:
# averaged over training, exponential keeps 0.10 of T0 - 1, polynomial 0.33, stepwise 0.63, and constant all of it.
VARIANTS: dict[str, Variant] = {
    "fast": Variant({}),  # the paper's default: auxiliary, temperature, exponential, T0 = 2, tau = 0.1
    "joint": Variant({}, depth=0, file="tiny_joint"),  # at half the learning rate, as in the paper
    "joint_same_rate": Variant({}, depth=0, file="tiny_joint", deepspeed=("optimizer.params.lr=0.004",)),
    # Table 6
    "uniform": _distribution("uniform"),
    "term_frequency": _distribution("term_frequency"),
    "smoothed_one_hot": _distribution("smoothed_one_hot"),
    "uniform_to_smoothed_one_hot": _distribution("uniform_to_smoothed_one_hot"),
    "term_frequency_to_smoothed_one_hot": _distribution("term_frequency_to_smoothed_one_hot"),
    # Figure 4
    "fixed": Variant(FIXED),
    "fast_deep": Variant({}, depth=3),
    "fixed_deep": Variant(FIXED, depth=3),
    # Figure 5, left
    "term_frequency_interpolation": _augmentation("term_frequency_interpolation"),
    "dropout": _augmentation("dropout"),
    "attention_dropout": _augmentation("attention_dropout"),
    "drop_token": _augmentation("drop_token"),
    # Figure 5, right
    "polynomial": _schedule("polynomial", 2.0),
    "stepwise": _schedule("stepwise", 4),
    "constant": _schedule("constant", 1.0),
}


@dataclass(frozen=True)
class Study:
    """A set of runs to compare: their common folder, and the number of updates of each main model."""

    folder: Path
    updates: int

    def run(self, name: str, seed: int) -> Path:
        """Return the run folder of a variant, an auxiliary or the judge."""
        return self.folder / (name if name in SHARED else f"{name}-{seed}")

    def load(self, name: str, seed: int) -> Config:
        """Return the config of a variant, an auxiliary (`auxiliary_DEPTH`) or the judge."""
        updates, keys, every = self.updates, {}, self.updates
        file, overrides = "tiny", list[str]()
        if name in VARIANTS:
            variant = VARIANTS[name]
            keys = dict(variant.keys)
            if variant.depth:
                keys["auxiliary.run"] = self.run(f"auxiliary_{variant.depth}", seed)
            if name in TRACED:
                every = self.updates // CHECKPOINTS
            file, overrides = variant.file, list(variant.deepspeed)
        else:
            file, depth = "tiny_auxiliary", JUDGE_DEPTH if name == JUDGE else int(name.partition("_")[2])
            keys["model.layers"], updates, every = depth, AUXILIARY_UPDATES[depth], AUXILIARY_UPDATES[depth]
        keys |= {
            "run": self.run(name, seed),
            "seed": seed,
            "model.vocabulary_size": VOCABULARY,
            "updates": updates,
            "log_every": updates // 5,
            "corpus.shards": self.folder / "shards",
            "corpus.tokenizer": self.folder / "tokenizer",
            "checkpoint.every": every,
            "checkpoint.keep": CHECKPOINTS,
            "evaluation.every": updates,
            "evaluation.sequences": 64,
        }
        overrides += [f"{config.SECTION}.{key}={value}" for key, value in keys.items()]
        overrides += [f"train_batch_size={BATCH}", f"scheduler.params.warmup_num_steps={updates // 10}"]
        return config.load(ROOT / "ds_configs" / f"{file}.json", overrides)
