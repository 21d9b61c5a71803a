"""DeepSpeed's part of a config: mistakes are refused with a remedy, what is missing or `auto` is filled in."""

from pathlib import Path
from typing import Any

import pytest

from fast_electra import config, config_file
from fast_electra.deepspeed_config import Machine, resolve
from fast_electra.deepspeed_schema import SECTIONS
from fast_electra.settings import UserError, settings_in

ROOT = Path(__file__).parent.parent
TWO = Machine(processes=2)
GPU = Machine(processes=2, best_dtype="bf16", on_gpu=True)


def tiny(*overrides: str, machine: Machine = TWO, updates: int = 700) -> dict[str, Any]:
    """DeepSpeed's part of ds_configs/tiny.json, with overrides, resolved for a machine."""
    tree = config_file.read(ROOT / "ds_configs/tiny.json", list(overrides))
    del tree[config.SECTION]
    return resolve(tree, updates, machine, "tiny.json")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gradient_cliping=1.0", "unknown key gradient_cliping; did you mean gradient_clipping?"),
        ("fast_elctra.seed=1", "unknown key fast_elctra; did you mean fast_electra?"),
        ("zero_optimization.overlap_com=true", "zero_optimization.overlap_com; did you mean overlap_comm?"),
        ('zero_optimization.offload_optimizer={"devise": "cpu"}', "offload_optimizer.devise; did you mean device?"),
        ("optimizer.params.beta=0.9", "unknown key optimizer.params.beta; did you mean betas?"),
        ("optimizer.tipe=Adam", "unknown key optimizer.tipe; did you mean type?"),
        ("scheduler.params.warmup_steps=3", "scheduler.params.warmup_steps; did you mean warmup_num_steps?"),
        ("data_types.grad_dtype=fp32", "unknown key data_types.grad_dtype; did you mean grad_accum_dtype?"),
        ("csv_monitor.enable=true", "unknown key csv_monitor.enable; did you mean enabled?"),
        ("bf16.enable=true", "unknown key bf16.enable; did you mean enabled?"),
        ("optimizer.type=Lamb", "optimizer.type must be 'Adam', 'AdamW' or 'Adamax', not 'Lamb'"),
        ("optimizer={}", "optimizer.type is missing"),
        ('optimizer={"type": "Adam", "params": {}}', "optimizer.params.lr is missing"),
        ("optimizer.params.lr=fast", "optimizer.params.lr must be a number > 0 and <= 100, not 'fast'"),
        ("optimizer.params.lr=0", "optimizer.params.lr must be a number > 0 and <= 100, not 0"),
        ("optimizer.params.lr=NaN", "optimizer.params.lr must be a number > 0 and <= 100, not nan"),
        ("optimizer.params.lr=true", "optimizer.params.lr must be a number > 0 and <= 100, not True"),
        ("optimizer.params.betas=[0.9]", "optimizer.params.betas must be two numbers in [0, 1), not [0.9]"),
        ("optimizer.params.betas=0.9", "optimizer.params.betas must be two numbers in [0, 1), not 0.9"),
        ("optimizer.params.betas=[0.9, 1.0]", "optimizer.params.betas.1 must be less than 1, not 1.0"),
        ("optimizer.params.betas=[true, 0.9]", "optimizer.params.betas.0 must be a valid number, not True"),
        (
            'optimizer.params.weight_decay="0.1"',
            "params.weight_decay must be a number from 0 to 100, not '0.1'",
        ),
        ("optimizer.params.eps=-1", "optimizer.params.eps must be a number > 0 and <= 1, not -1"),
        ("optimizer.params.torch_adam=yes", "optimizer.params.torch_adam must be true or false, not 'yes'"),
        ("optimizer.params=3", "optimizer.params is a section: write it as {...}"),
        ("gradient_clipping=-1", "gradient_clipping must be a number from 0 to 1,000,000, not -1"),
        ("gradient_clipping={}", "gradient_clipping is a value, not a section"),
        ("communication_data_type={}", "communication_data_type is a value, not a section"),
        ("wall_clock_breakdown=no", "wall_clock_breakdown must be true or false, not 'no'"),
        ("scheduler.type=Lamb", "scheduler.type must be 'WarmupDecayLR', 'WarmupLR' or 'WarmupCosineLR', not 'Lamb'"),
        (
            "scheduler.params.warmup_num_steps=x",
            "warmup_num_steps must be a whole number from 1 to 1,000,000,000 (total",
        ),
        ("scheduler.params.warmup_num_steps=auto", "(total_num_steps and warmup_max_lr can also be auto), not 'auto'"),
        ("scheduler.params.warmup_type=cubic", "scheduler.params.warmup_type must be 'log' or 'linear', not 'cubic'"),
        ("scheduler.params=3", "scheduler.params is a section: write it as {...}"),
        ("scheduler=null", "scheduler is a section: write it as {...}"),
        ("bf16.enabled=no", "bf16.enabled must be true, false or auto, not 'no'"),
        (
            "zero_optimization.stage=3",
            "zero_optimization.stage must be 2 (the checks of this trainer assume it)",
        ),
        ('zero_optimization.offload_optimizer={"device": "cpu"}', "offload_optimizer is not supported"),
        ('zero_optimization.offload_param={"device": "cpu"}', "offload_param is not supported"),
        ("zero_optimization.cpu_offload=true", "offload_optimizer is not supported"),
        (
            "zero_optimization.reduce_bucket_size=-1",
            "zero_optimization.reduce_bucket_size must be a whole number from 1 to 5,000,000,000, not -1",
        ),
        ("zero_optimization=2", "zero_optimization is a section: write it as {...}"),
        ("train_batch_size=0", 'train_batch_size must be a whole number from 1 to 1,048,576 or "auto", not 0'),
        ("train_batch_size=8.5", 'train_batch_size must be a whole number from 1 to 1,048,576 or "auto", not 8.5'),
        ("train_batch_size=true", 'train_batch_size must be a whole number from 1 to 1,048,576 or "auto", not True'),
        (
            "train_batch_size=many",
            "must be a whole number from 1 to 1,048,576 or \"auto\", not 'many'",
        ),
        ("train_batch_size=auto", "train_batch_size is missing: the sequences of one update over all processes"),
        ("train_batch_size=33", "train_micro_batch_size_per_gpu 16 x gradient_accumulation_steps 1 x 2 processes = 32"),
        ("train_batch_size=33", "; set train_batch_size to a multiple of 2"),
        ("train_batch_size=1", "train_batch_size 1 is not"),
        ("train_micro_batch_size_per_gpu=128", "train_batch_size 64 is not train_micro_batch_size_per_gpu 128 x"),
        ("train_micro_batch_size_per_gpu=128", "x 2 processes = 256; e.g. --set train_micro_batch_size_per_gpu=32"),
        ("gradient_accumulation_steps=3", "train_batch_size 64 is not"),
    ],
)
def test_mistakes_are_refused_with_a_remedy(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        tiny(override)
    assert message in str(caught.value)
    assert str(caught.value).startswith("tiny.json: ") and "\n" not in str(caught.value)


def test_an_optimizer_is_required() -> None:
    with pytest.raises(UserError, match=r"^tiny.json: optimizer is missing$"):
        resolve({"train_batch_size": 8}, 1, Machine(), "tiny.json")


def test_what_is_missing_or_auto_is_filled_in() -> None:
    tree: dict[str, Any] = {
        "train_batch_size": 8,
        "optimizer": {"type": "Adam", "params": {"lr": 0.5, "betas": (0.9, 0.98)}},
    }
    tree["scheduler"] = {"type": "WarmupLR"}
    before = str(tree)
    resolved = resolve(tree, 3, TWO, "x")
    assert str(tree) == before
    assert resolved == tree | {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 0.5}},
        "zero_optimization": {"stage": 2},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    assert tiny(updates=700)["scheduler"]["params"]["total_num_steps"] == 701
    autos = ["zero_optimization.reduce_bucket_size", "wandb.project", "steps_per_print", "gradient_accumulation_steps"]
    assert "auto" not in str(tiny(*(f"{key}=auto" for key in autos)))
    own = tiny("scheduler.params.total_num_steps=800", "scheduler.params.warmup_max_lr=0.004")["scheduler"]["params"]
    assert (own["total_num_steps"], own["warmup_max_lr"]) == (800, 0.004)


@pytest.mark.parametrize(
    ("sizes", "filled"),
    [
        ((64, None, None), (64, 32, 1)),
        ((64, 8, None), (64, 8, 4)),
        ((64, None, 4), (64, 8, 4)),
        ((64, "auto", "auto"), (64, 32, 1)),
        (("auto", 8, None), (16, 8, 1)),
        ((None, 8, 3), (48, 8, 3)),
    ],
)
def test_batch_sizes_are_filled_in(sizes: tuple[Any, ...], filled: tuple[int, ...]) -> None:
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    overrides = [f"{name}={'null' if size is None else size}" for name, size in zip(names, sizes, strict=True)]
    resolved = tiny(*overrides)
    assert tuple(resolved[name] for name in names) == filled


@pytest.mark.parametrize("best", ["fp32", "bf16", "fp16"])
def test_auto_means_what_is_best_on_the_machine(best: str) -> None:
    machine = GPU._replace(best_dtype=best)
    resolved = tiny("bf16.enabled=auto", "fp16.enabled=auto", machine=machine)
    assert [resolved[name]["enabled"] for name in ("bf16", "fp16")] == [best == "bf16", best == "fp16"]
    assert (machine.dtype("auto", "key"), machine.dtype("fp32", "key")) == (best, "fp32")


def test_one_precision_is_enough() -> None:
    with pytest.raises(UserError, match=r"^tiny.json: bf16.enabled and fp16.enabled are both true; keep one$"):
        tiny("bf16.enabled=true", "fp16.enabled=true", machine=GPU)


def test_fp16_needs_a_gpu() -> None:
    assert GPU.dtype("fp16", "key") == "fp16"
    assert tiny("fp16.enabled=true", machine=GPU)["fp16"]["enabled"] is True
    cpu = GPU._replace(on_gpu=False)
    with pytest.raises(UserError, match=r"^auxiliary.dtype: fp16 needs a GPU; use bf16, fp32 or auto$"):
        cpu.dtype("fp16", "auxiliary.dtype")
    with pytest.raises(UserError, match=r"^tiny.json: fp16.enabled: fp16 needs a GPU"):
        tiny("fp16.enabled=true", machine=cpu)


def test_communication_overlaps_only_between_processes() -> None:
    """DeepSpeed's overlap_comm waits for the whole device in each micro-batch."""
    overlap = [tiny(machine=Machine(processes))["zero_optimization"]["overlap_comm"] for processes in (1, 2)]
    assert overlap == [False, True]


def test_every_section_is_documented() -> None:
    text = (ROOT / "docs/config.md").read_text()
    sections = [name for name, kind in SECTIONS.items() if settings_in(kind)]
    assert len(sections) == 14
    assert [name for name in sections if f"`{name}" not in text] == []
