"""Generated mutations of a config: each value is refused at once, by its key and range, or is right and kept.

A table says for each key what is right. The table is this test's own: the code's schemas play no part in the decision.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fast_electra import config
from fast_electra.deepspeed_config import Machine
from fast_electra.settings import UserError

ROOT = Path(__file__).parent.parent
NAN, INFINITY = float("nan"), float("inf")


class Kind(NamedTuple):
    """What a key may hold, and what a message about it must say."""

    right: Callable[[Any], bool]
    says: tuple[str, ...]


def whole(low: int, high: int | None, says: str, null: bool = False) -> Kind:
    """A whole number in [low, high], or None if `null`."""

    def right(value: Any) -> bool:
        return null if value is None else type(value) is int and low <= value <= (high or math.inf)

    return Kind(right, (says,))


def number(test: Callable[[float], bool], says: str, null: bool = False) -> Kind:
    """A finite number that passes a test, or None if `null`."""

    def right(value: Any) -> bool:
        return null if value is None else type(value) in (int, float) and math.isfinite(value) and test(value)

    return Kind(right, (says,))


def names(*allowed: Any) -> Kind:
    """One of some names, as they are written; None means that null is right."""
    return Kind(lambda value: value in allowed and type(value) is not int, tuple(name for name in allowed if name))


FLAG = Kind(lambda value: type(value) is bool, ("true or false",))
KINDS = {
    "fast_electra.updates": whole(1, 10**9, "a whole number from 1 to 1,000,000,000"),
    "fast_electra.seed": whole(0, 2**62 - 1, "a whole number >= 0 and < 4,611,686,018,427,387,904"),
    "fast_electra.checkpoint.keep": whole(1, None, "a whole number >= 1"),
    "fast_electra.model.layers": whole(1, 1000, "a whole number from 1 to 1,000"),
    "fast_electra.model.ffn_size": whole(1, 2**18, "a whole number from 1 to 262,144"),
    "fast_electra.model.embedding_size": whole(1, 2**16, "a whole number from 1 to 65,536 or null", null=True),
    "fast_electra.corpus.sequence_length": whole(8, 2**15, "a whole number from 8 to 32,768"),
    "fast_electra.model.dropout": number(lambda x: 0 <= x < 1, "a number >= 0 and < 1"),
    "fast_electra.model.initial_std": number(lambda x: 0 < x <= 1, "a number > 0 and <= 1"),
    "fast_electra.corruption.mask_fraction": number(lambda x: 0 < x < 1, "a number > 0 and < 1"),
    "fast_electra.curriculum.rate": number(lambda x: x > 0, "a number > 0", null=True),
    "fast_electra.replacement.alpha": number(lambda x: 0 < x < 1, "a number > 0 and < 1"),
    "fast_electra.auxiliary.cuda_graph": FLAG,
    "fast_electra.recipe": names("tiny", "small", "base", "large"),
    "fast_electra.auxiliary.dtype": names("auto", "fp32", "bf16"),  # fp16 needs a GPU
    "train_micro_batch_size_per_gpu": whole(1, 64, "1", null=True),  # the whole batch has 64
    "optimizer.params.lr": number(lambda x: 0 < x <= 100, "a number > 0 and <= 100"),
    "optimizer.params.eps": number(lambda x: 0 < x <= 1, "a number > 0 and <= 1"),
    "optimizer.params.torch_adam": FLAG,
    "gradient_clipping": number(lambda x: 0 <= x <= 10**6, "a number from 0 to 1,000,000"),
    "scheduler.params.warmup_type": names("log", "linear"),
    "scheduler.params.total_num_steps": whole(1400, 10**9, "a whole number"),
    "scheduler.params.warmup_max_lr": number(lambda x: x == 0.004, "number"),  # optimizer.params.lr
    "scheduler.params.warmup_num_steps": whole(1, 10**9, "a whole number from 1 to 1,000,000,000"),
    "scheduler.params.warmup_min_lr": number(lambda x: 0 <= x <= 0.004, "a number"),
    "scheduler.params.last_batch_iteration": whole(-1, -1, "-1"),
    "zero_optimization.reduce_bucket_size": whole(1, 5 * 10**9, "a whole number from 1 to 5,000,000,000"),
    "zero_optimization.contiguous_gradients": FLAG,
    "csv_monitor.enabled": FLAG,
    "wall_clock_breakdown": FLAG,
    "steps_per_print": whole(1, 10**9, "a whole number >= 1, or null", null=True),
    "log_level": names("debug", "info", "warning", "error", "critical"),
    "communication_data_type": names("fp32", "bf16", "fp16", None),
    "data_types.grad_accum_dtype": names("fp32", "bf16", "fp16"),
    "checkpoint.tag_validation": names("Ignore", "Warn", "Fail"),
}
VALUES = [
    -1,
    0,
    1,
    2,
    0.5,
    10**30,
    1e300,
    NAN,
    INFINITY,
    -INFINITY,
    True,
    None,
    "",
    "yes",
    "FP32",
    "Linear",
    [],
    [1],
    {},
]


def mutations() -> Iterator[tuple[str, Any]]:
    """Every value for every key; names also in another case."""
    for key, kind in KINDS.items():
        yield from ((key, value) for value in VALUES)
        yield from ((key, spelt(name)) for name in kind.says for spelt in (str, str.upper, str.title))


def load(*overrides: str) -> config.Config:
    """ds_configs/tiny.json with overrides, for one process."""
    return config.load(ROOT / "ds_configs/tiny.json", overrides, Machine())


def attempt(*overrides: str) -> config.Config | str:
    """The config, or the message that refuses it; either must take no time."""
    start = time.perf_counter()
    try:
        return load(*overrides)
    except UserError as error:
        return str(error)
    finally:
        assert time.perf_counter() - start < 5


def held(loaded: config.Config, key: str) -> Any:
    """The value of a key in a resolved config."""
    tree: Any = {config.SECTION: loaded.run.model_dump()} | loaded.deepspeed
    for name in key.split("."):
        tree = tree[name]
    return tree


def test_a_value_is_right_or_refused_by_its_key_and_range() -> None:
    """DeepSpeed's and our own keys: wrong types, negative, zero, huge, NaN, null, lists, sections, wrong case."""
    refused = kept = 0
    for key, value in mutations():
        case, kind = f"{key}={json.dumps(value)}", KINDS[key]
        own = [] if key != "train_micro_batch_size_per_gpu" else ["gradient_accumulation_steps=null"]
        loaded = attempt(case, *own)
        assert isinstance(loaded, config.Config) == kind.right(value), f"{case}: {loaded}"
        if isinstance(loaded, str):
            assert key in loaded and "\n" not in loaded and all(words in loaded for words in kind.says), loaded
            refused += 1
        else:
            now = held(loaded, key)
            assert value is None or now == (float(value) if isinstance(now, float) else value), case
            kept += 1
    assert refused > 400 and kept > 70


def test_a_misspelt_key_is_refused_with_the_right_one() -> None:
    for key in KINDS:
        *sections, name = key.split(".")
        for wrong in (name[:-1], name.upper(), name.replace("_", "-")):
            if wrong != name:
                with pytest.raises(UserError) as caught:
                    load(f"{'.'.join([*sections, wrong])}=1")
                assert f"unknown key {'.'.join([*sections, wrong])}; did you mean " in str(caught.value)
                assert f"{name}?" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("updates=5", "fast_electra.updates"),
        ("update=5", "fast_electra.updates"),
        ("lr=1", "optimizer.params.lr"),
        ("fast_electra.lr=1", "optimizer.params.lr"),
        ("optimizer.lr=1", "optimizer.params.lr"),
        ("model.layers=3", "fast_electra.model"),
        ("fast_electra.layers=3", "fast_electra.model.layers"),
        ("fast_electra.train_batch_size=8", "train_batch_size"),
        ("warmup_num_steps=8", "scheduler.params.warmup_num_steps"),
        ("fast_electra.model.sequence_length=8", "fast_electra.corpus.sequence_length"),
    ],
)
def test_a_key_in_the_wrong_place_is_pointed_to_the_right_one(override: str, meant: str) -> None:
    with pytest.raises(UserError) as caught:
        load(override)
    assert override.startswith(str(caught.value).partition("unknown key ")[2].partition(";")[0])
    assert str(caught.value).endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["optimizer.params.amsgrad=true"], "optimizer.params.amsgrad: DeepSpeed's fused Adam has no amsgrad"),
        (
            ["optimizer.params.torch_adam=true", "optimizer.params.bias_correction=false"],
            "optimizer.params.bias_correction must be true",
        ),
        (["optimizer.type=AdamW", "optimizer.params.adam_w_mode=false"], "optimizer.params.adam_w_mode must be true"),
        (["scheduler.params.total_num_steps=1399"], ">= fast_electra.updates (1,400) or auto, not 1,399"),
        (["scheduler.params.warmup_min_lr=0.01"], "warmup_min_lr must be a number <= warmup_max_lr (0.004), not 0.01"),
        (
            ["scheduler.params.warmup_max_lr=0.01"],
            "warmup_max_lr must be the number in optimizer.params.lr (0.004) or auto, not 0.01, which would replace it",
        ),
        (["optimizer.legacy_fusion=true"], "optimizer.legacy_fusion must be false"),
        (["prescale_gradients=true"], "prescale_gradients needs zero_optimization.reduce_scatter=false"),
        (["gradient_predivide_factor=2.0"], "gradient_predivide_factor needs zero_optimization.reduce_scatter=false"),
        (["zero_optimization.compute_grad_norm=false"], "compute_grad_norm must be true with gradient_clipping"),
        (["zero_optimization.legacy_stage1=true"], "zero_optimization.legacy_stage1 must be false"),
        (["zero_optimization.zenflow={}"], "zero_optimization.zenflow is a value, not a section: null"),
        (["zero_optimization.leaf_module=yes"], "zero_optimization.leaf_module must be null"),
        (["zero_optimization.allgather_bucket_size=1"], "allgather_bucket_size must be an even whole number"),
        (["bf16.bf16_optimizer_states=true"], "bf16.bf16_optimizer_states must be false"),
        (["fp16.initial_scale_power=1000000"], "fp16.initial_scale_power must be a whole number from 0 to 100"),
        (["checkpoint.use_node_local_storage=true"], "checkpoint.use_node_local_storage must be false"),
        (["fast_electra.run=runs/quickstart/shards"], "run and corpus.shards are both runs/quickstart/shards"),
        (["fast_electra.run=./runs/quickstart/../quickstart/auxiliary/"], "run and auxiliary.run are both"),
        (
            ["train_batch_size=null", "train_micro_batch_size_per_gpu=1000000", "gradient_accumulation_steps=1000000"],
            "at most 1,048,576 sequences, not 1,000,000,000,000; lower train_micro_batch_size_per_gpu",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_values_that_contradict_each_other_are_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        load(*overrides)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(ROOT / "ds_configs/tiny.json"))


def test_values_that_look_odd_and_are_right_are_taken() -> None:
    adam = load(
        "optimizer.params.torch_adam=true", "optimizer.params.amsgrad=true", "optimizer.params.bias_correction=true"
    )
    assert adam.deepspeed["optimizer"]["params"]["amsgrad"] is True
    assert "bias_correction" not in adam.deepspeed["optimizer"]["params"]  # torch's Adam would refuse the key
    assert load("zero_optimization.reduce_scatter=false", "prescale_gradients=true").deepspeed["prescale_gradients"]
    assert load("zero_optimization.reduce_bucket_size=5e8").deepspeed["zero_optimization"]["stage"] == 2
    assert load("fast_electra.updates=10").deepspeed["scheduler"]["params"]["warmup_num_steps"] == 140  # a short trial


UNREAD = [
    (["replacement.alpha=0.5"], {"replacement.alpha": "replacement.distribution auxiliary"}),
    (["curriculum.schedule=constant", "curriculum.rate=0.3"], {"curriculum.rate": "curriculum.schedule constant"}),
    (["joint.loss_weight=1"], {"joint": "objective rtd"}),
    (["replacement.store=there"], {"auxiliary": "replacement.store"}),
    (
        ["replacement.distribution=uniform", "replacement.alpha=0.5", "curriculum.initial=0.5"],
        dict.fromkeys(("auxiliary", "replacement.alpha", "curriculum"), "replacement.distribution uniform"),
    ),
    (["replacement.distribution=smoothed_one_hot", "auxiliary=null", "replacement.alpha=0.5"], {}),
    (["curriculum.schedule=constant"], {}),
    (["curriculum.rate=0.3"], {}),
]


@pytest.mark.parametrize(("overrides", "unread"), UNREAD, ids=lambda value: " ".join(value))
def test_a_value_that_nothing_reads_is_taken_and_named(overrides: list[str], unread: dict[str, str]) -> None:
    """Whoever compares distributions or schedules changes one key and leaves the others."""
    assert load(*(f"fast_electra.{override}" for override in overrides)).unread == unread


@pytest.mark.parametrize(
    "key", ["fast_electra.checkpoint.keep", "fp16.loss_scale", "gradient_clipping", "steps_per_print"]
)
def test_a_number_of_a_thousand_digits_is_refused(key: str) -> None:
    with pytest.raises(UserError) as caught:
        load(f"{key}={10**1000}")
    assert key in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("processes", [65, 128, 10**9])
def test_a_batch_smaller_than_the_number_of_processes_is_refused(processes: int) -> None:
    for own in ([], ["train_micro_batch_size_per_gpu=4"], ["gradient_accumulation_steps=4"]):
        with pytest.raises(UserError, match=f"train_batch_size 64 is not enough for {processes} processes"):
            config.load(ROOT / "ds_configs/tiny.json", own, Machine(processes))
