"""The variants that are compared. Each is a config of ds_configs/ with overrides."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from fast_electra import config
from fast_electra.config import Config

ROOT = Path(__file__).parent.parent
# With these sizes a main model begins to use context within the budget of updates; see docs/results.md.
VOCABULARY, BATCH = 384, 32
AUXILIARY_UPDATES = {1: 500, 2: 500, 3: 800}  # by depth
JUDGE = "judge"  # an auxiliary whose depth and seed no run uses
JUDGE_DEPTH, JUDGE_SEED = 2, 1000
SHARED = (JUDGE, "auxiliary_3")  # trained once and used by all seeds
CHECKPOINTS = 4  # of each traced run, evenly spaced: the curves of Figure 4 (left)
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


class Sweep(NamedTuple):
    """One setting at several values: the label of its axis, and for each method the variant at each value."""

    axis: str
    lines: dict[str, dict[float, str]]


SWEPT: dict[str, Variant] = {}  # the variants that only sweeps.py trains


def _line(known: dict[float, str], name: str, more: dict[float, Variant]) -> dict[float, str]:
    """Return the variants of a line in the order of their values, and put those that are new into SWEPT."""
    SWEPT.update({f"{name}_{value:g}": variant for value, variant in more.items()})
    return dict(sorted((known | {value: f"{name}_{value:g}" for value in more}).items()))


def _joint(key: str, value: float) -> Variant:
    return Variant({f"joint.{key}": value}, depth=0, file="tiny_joint")


def _rate(method: str, rate: float) -> Variant:
    return replace(VARIANTS[method], deepspeed=(f"optimizer.params.lr={rate}",))


HIGH_RATES = (0.008, 0.016, 0.032, 0.064)
# Figures 1, 2 and 4 of the paper, in the order of work.
SWEEPS = {
    "depth": Sweep(
        "layers of the auxiliary",
        {
            "fast": _line({1: "fast", 3: "fast_deep"}, "fast_layers", {2: Variant({}, depth=2)}),
            "fixed": _line({1: "fixed", 3: "fixed_deep"}, "fixed_layers", {2: Variant(FIXED, depth=2)}),
            "joint": _line({1: "joint"}, "joint_layers", {n: _joint("auxiliary_layers", n) for n in (2, 3)}),
        },
    ),
    "loss_weight": Sweep(
        "λ of joint training",
        {"joint": _line({50: "joint"}, "joint_lambda", {x: _joint("loss_weight", x) for x in (10, 25, 100, 200)})},
    ),
    "decay_rate": Sweep(
        "τ of Fast-ELECTRA",
        {"fast": _line({0.1: "fast"}, "fast_tau", {x: _schedule("exponential", x) for x in (0.03, 0.3, 1.0)})},
    ),
    "rate": Sweep(
        "peak learning rate",
        {
            "fast": _line({0.004: "fast"}, "fast_rate", {x: _rate("fast", x) for x in HIGH_RATES}),
            "fixed": _line({0.004: "fixed"}, "fixed_rate", {x: _rate("fixed", x) for x in HIGH_RATES}),
            "joint": _line(
                {0.002: "joint", 0.004: "joint_same_rate"}, "joint_rate", {x: _rate("joint", x) for x in HIGH_RATES}
            ),
        },
    ),
}


@dataclass(frozen=True)
class Study:
    """A set of runs to compare.

    Attributes:
        folder: the common folder of all runs.
        updates: number of updates of each main model.
        shared: auxiliaries that are trained once and used by all seeds.
        traced: variants that are scored in the course of training too.
        checkpoints: how often they are.
    """

    folder: Path
    updates: int
    shared: tuple[str, ...] = SHARED
    traced: tuple[str, ...] = TRACED
    checkpoints: int = CHECKPOINTS

    def run(self, name: str, seed: int) -> Path:
        """Return the run folder of a variant, an auxiliary or the judge."""
        return self.folder / (name if name in self.shared else f"{name}-{seed}")

    def load(self, name: str, seed: int) -> Config:
        """Return the config of a variant, an auxiliary (`auxiliary_DEPTH`) or the judge."""
        updates, keys, every = self.updates, {}, self.updates
        file, overrides = "tiny", list[str]()
        if variant := VARIANTS.get(name) or SWEPT.get(name):
            keys = dict(variant.keys)
            if variant.depth:
                keys["auxiliary.run"] = self.run(f"auxiliary_{variant.depth}", seed)
            if name in self.traced:
                every = self.updates // self.checkpoints
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
            "checkpoint.keep": self.checkpoints,
            "evaluation.every": updates,
            "evaluation.sequences": 64,
        }
        overrides += [f"{config.SECTION}.{key}={value}" for key, value in keys.items()]
        overrides += [f"train_batch_size={BATCH}", f"scheduler.params.warmup_num_steps={updates // 10}"]
        return config.load(ROOT / "ds_configs" / f"{file}.json", overrides)
