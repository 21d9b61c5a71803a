"""Configs: those that ship hold the paper's figures; mistakes are refused with a remedy before any process starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from fast_electra import config, config_file
from fast_electra.curriculum import CurriculumSettings
from fast_electra.deepspeed_config import Machine
from fast_electra.settings import UserError, settings_in

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(path for path in (ROOT / "ds_configs").glob("*.json") if path.stem != "finetune")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_resolve_for_one_and_many_processes(path: Path) -> None:
    for world in (1, 2, 8):
        resolved = config.load(path, [], Machine(world))
        ds = resolved.deepspeed
        batch = ds["train_micro_batch_size_per_gpu"] * ds["gradient_accumulation_steps"] * world
        assert batch == ds["train_batch_size"]
        assert "auto" not in json.dumps(ds)
        assert ds["zero_optimization"]["stage"] == 2 and ds["data_types"]["grad_accum_dtype"] == "fp32"


def test_a_config_of_fine_tuning_is_sent_to_its_script() -> None:
    with pytest.raises(UserError, match=r"^\S+ is a config of fine-tuning: start it with launch/finetune.py$"):
        config.load(ROOT / "ds_configs/finetune.json")


@pytest.mark.parametrize(
    ("name", "buckets", "distance", "layers", "hidden", "heads"),
    [("base", 32, 128, 12, 768, 12), ("large", 128, 256, 24, 1024, 16)],
)
def test_base_and_large_are_tables_2_and_3(
    name: str, buckets: int, distance: int, layers: int, hidden: int, heads: int
) -> None:
    main, auxiliary = (config.load(ROOT / f"ds_configs/{name}{kind}.json") for kind in ("", "_auxiliary"))
    for resolved, learning_rate, depth in ((main, 1e-3, layers), (auxiliary, 5e-4, {"base": 4, "large": 6}[name])):
        run, ds = resolved.run, resolved.deepspeed
        assert (run.updates, run.corpus.sequence_length, run.model.vocabulary_size) == (125_000, 512, 128_000)
        assert (run.model.layers, run.model.hidden_size, run.model.ffn_size, run.model.heads) == (
            depth,
            hidden,
            4 * hidden,
            heads,
        )
        assert (run.model.relative_buckets, run.model.relative_max_distance) == (buckets, distance)
        assert run.model.dropout == run.model.attention_dropout == 0.1
        assert (run.model.initialization, run.model.relative_start) == ("admin", "zero")
        assert ds["train_batch_size"] == 2048 and ds["gradient_clipping"] == 2.0
        assert ds["optimizer"] == {
            "type": "Adam",
            "params": {"lr": learning_rate, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.01},
        }
        scheduler = ds["scheduler"]["params"]
        assert (scheduler["warmup_num_steps"], scheduler["total_num_steps"]) == (10_000, 125_001)
        assert scheduler["warmup_max_lr"] == learning_rate
        assert run.corruption.mask_fraction == 0.15
    curriculum = main.run.curriculum
    assert (curriculum.schedule, curriculum.initial, curriculum.rate) == ("exponential", 2.0, 0.1)  # C.1


def tiny(tmp_path: Path, **changes: Any) -> Path:
    """ds_configs/tiny.json with changes: dotted keys written with `__`; None removes."""
    tree = json.loads((ROOT / "ds_configs/tiny.json").read_text())
    for key, value in changes.items():
        *sections, name = key.split("__")
        section = tree
        for part in sections:
            section = section.setdefault(part, {})
        if value is None:
            section.pop(name)
        else:
            section[name] = value
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tree))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fast_electra__curriculum": {"initial": 0.5}},
            "curriculum.initial is the first temperature: it must be at least 1",
        ),
        ({"gradient_cliping": 1.0}, r"unknown key gradient_cliping; did you mean gradient_clipping\?"),
        ({"fp16__enabled": True}, "fp16.enabled: fp16 needs a GPU"),
        ({"fast_electra__curriculm": {}}, r"unknown key fast_electra.curriculm; did you mean curriculum\?"),
        ({"fast_electra__curriculum": {"rat": 1}}, r"fast_electra.curriculum.rat; did you mean rate\?"),
        ({"fast_electra__model": {"hiden_size": 1}}, r"fast_electra.model.hiden_size; did you mean hidden_size\?"),
        (
            {"fast_electra__model": {"huggingface": "x", "dropout": 0.0, "hidden_size": 64}},
            "model.huggingface names a model of its own sizes: leave out fast_electra.model.hidden_size",
        ),
        (
            {"fast_electra__model": {"huggingface": "x"}, "fast_electra__run": "x"},
            "run and model.huggingface are both x",
        ),
        ({"fast_electra__model": {"heads": 5}}, "hidden_size .* is not a multiple of heads 5"),
        (
            {"fast_electra__model": {"layers": "3"}},
            "electra.model.layers must be a whole number from 1 to 1,000, not '3'",
        ),
        ({"fast_electra__model": 3}, r"fast_electra.model is a section: write it as \{...\}"),
        ({"fast_electra__seed": {}}, "fast_electra.seed is a value, not a section"),
        (
            {"fast_electra__recipe": "huge"},
            'recipe must be one of tiny, small, base, large, continue, not "huge"',
        ),
        ({"fast_electra__auxiliary": None}, "objective rtd needs auxiliary.run"),
        ({"fast_electra__replacement": {"augmentation": "temprature"}}, "fast_electra.replacement.augmentation"),
        ({"fast_electra__updates": -1}, "fast_electra.updates"),
        (
            {"fast_electra__replacement": {"augmentation": "dropout"}, "fast_electra__curriculum": {"initial": 1.0}},
            r"curriculum.initial is the first gamma: it must be in \[0, 0.99\], not 1",
        ),
        (
            {"fast_electra__replacement": {"augmentation": "dropout", "distribution": "uniform"}},
            "augmentation dropout acts on an auxiliary model",
        ),
        ({"fast_electra__replacement": {"alpha": 1.0}}, "fast_electra.replacement.alpha"),
        ({"fast_electra__curriculum": {"schedule": "stepwise", "rate": 2.5}}, "a whole number, not 2.5"),
        (
            {"fast_electra__objective": "joint", "fast_electra__joint": {"embeding_sharing": "none"}},
            r"joint.embeding_sharing; did you mean embedding_sharing\?",
        ),
        (
            {"fast_electra__objective": "joint", "fast_electra__replacement": {"store": "x"}},
            "replacement.store holds what a frozen model drew",
        ),
        ({"fast_electra": None}, 'no section "fast_electra"'),
        # Misspelt, so that a key which must be there is missing.
        ({"fast_electra__recipe": None, "fast_electra__recipe ": "tiny"}, r"electra\.recipe ; did you mean recipe\?"),
        ({"fast_electra__objective": None, "fast_electra__objectiv": "rtd"}, r"objectiv; did you mean objective\?"),
        ({"fast_electra__run": None, "fast_electra__Run": "x"}, r"electra\.Run; did you mean run\?"),
        ({"optimizer__type": None, "optimizer__typ": "Adam"}, r"unknown key optimizer\.typ; did you mean type\?"),
        ({"scheduler__type": None, "scheduler__tpye": "WarmupLR"}, r"unknown key scheduler\.tpye; did you mean type\?"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_refused_with_a_remedy(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        config.load(tiny(tmp_path, **changes), [], Machine(2))
    assert "\n" not in str(caught.value) and "config.json" in str(caught.value)


def test_overrides_reach_both_parts(tmp_path: Path) -> None:
    overrides = [
        "fast_electra.curriculum.rate=0.3",
        "train_batch_size=8",
        "train_micro_batch_size_per_gpu=2",
        "fast_electra.run=runs/a=b",
    ]
    resolved = config.load(tiny(tmp_path), overrides, Machine(2))
    assert resolved.run.curriculum.rate == 0.3 and resolved.run.run == "runs/a=b"
    assert resolved.deepspeed["gradient_accumulation_steps"] == 2
    shorter = config.load(tiny(tmp_path), ["fast_electra.updates=7"], Machine(1))
    assert shorter.deepspeed["scheduler"]["params"]["total_num_steps"] == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rate", "KEY=VALUE"),
        ("=1", "KEY=VALUE"),
        ("fast_electra.seed.x=1", "seed is a value"),
        ("sed=1", "unknown key sed"),
    ],
)
def test_bad_overrides_are_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.load(tiny(tmp_path, fast_electra__seed=1), [override], Machine(1))


def test_a_byte_order_mark_is_no_part_of_a_config(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    plain = config_file.read(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert config_file.read(path) == plain


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no config file"):
        config.load(tmp_path / "none.json")
    broken = tmp_path / "broken.json"
    broken.write_text('{"train_batch_size": 3,}')
    with pytest.raises(UserError, match="is not valid JSON"):
        config.load(broken)
    broken.write_text('{"train_batch_size": 3, "train_batch_size": 4}')
    with pytest.raises(UserError, match="'train_batch_size' occurs twice"):
        config.load(broken)


def test_every_key_is_documented() -> None:
    text = (ROOT / "docs/config.md").read_text()

    def names(model: Any, prefix: str = "") -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            nested = settings_in(field.annotation)
            found += [] if nested else [f"{prefix}{name}"]
            for section in nested:
                found += names(section, f"{prefix}{name}.")
        return found

    assert [name for name in names(config.RunConfig) if f"`{name}`" not in text] == []


def test_where_a_curriculum_begins_follows_from_what_is_scheduled(tmp_path: Path) -> None:
    """One --set chooses an augmentation or a distribution; an explicit start stays."""
    begins = {
        "augmentation=temperature": 2.0,
        "augmentation=term_frequency_interpolation": 0.5,
        "augmentation=drop_token": 0.5,
        "distribution=uniform_to_smoothed_one_hot": 1.0,
    }
    for choice, initial in begins.items():
        override = f"fast_electra.replacement.{choice}"
        assert config.load(tiny(tmp_path), [override], Machine(2)).run.curriculum.initial == initial
        own = [override, "fast_electra.curriculum.initial=1.0"]
        assert config.load(tiny(tmp_path), own, Machine(2)).run.curriculum.initial == 1.0
    for schedule, rate in (("exponential", 0.1), ("polynomial", 2.0), ("stepwise", 4.0)):
        override = f"fast_electra.curriculum.schedule={schedule}"
        assert config.load(tiny(tmp_path), [override], Machine(2)).run.curriculum.rate == rate


@pytest.mark.parametrize("name", ["tiny", "small", "base", "large"])
def test_joint_and_offline_training_differ_from_the_main_config_where_they_should(name: str) -> None:
    """Table 3: the same model, batch and updates; lambda, depth and rate are the joint method's."""
    rtd, joint = (config.load(ROOT / f"ds_configs/{file}.json", [], Machine(2)) for file in (name, f"{name}_joint"))
    store = ["fast_electra.replacement.store=data/store", "fast_electra.run=runs/offline"]
    offline = config.load(ROOT / f"ds_configs/{name}.json", store, Machine(2))
    assert joint.run.model == rtd.run.model and joint.run.updates == rtd.run.updates
    assert joint.deepspeed["train_batch_size"] == rtd.deepspeed["train_batch_size"]
    assert joint.run.joint is not None
    weight, layers = {"tiny": (50, 1), "small": (50, 4), "base": (70, 4), "large": (50, 6)}[name]
    assert (joint.run.joint.loss_weight, joint.run.joint.auxiliary_layers) == (weight, layers)
    if name in ("base", "large"):
        rates = [run.deepspeed["optimizer"]["params"]["lr"] for run in (rtd, joint)]
        assert rates == [1e-3, 5e-4]
    assert offline.run.replacement.store == "data/store"
    changed = {"run", "replacement"}
    assert offline.run.model_dump(exclude=changed) == rtd.run.model_dump(exclude=changed)
    assert offline.deepspeed == rtd.deepspeed


def test_a_value_held_through_each_epoch() -> None:
    """Updates of 4 sequences, epochs of 10: an update belongs to the epoch of its first sequence."""
    curriculum = CurriculumSettings(per="epoch")
    fractions = [curriculum.fraction(n, updates=8, batch=4, epoch=10) for n in range(1, 9)]
    assert fractions == [0, 0, 0, 10 / 32, 10 / 32, 20 / 32, 20 / 32, 20 / 32]
    assert [CurriculumSettings().fraction(n, 8, 4, 10) for n in (1, 8)] == [1 / 8, 1.0]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_parameters_behind_an_odd_size_are_aligned(path: Path) -> None:
    """Else every parameter behind a bias of 30,522 numbers is off 16 bytes, and takes slower kernels on a GPU."""
    loaded = config.load(path)
    odd = (loaded.run.vocabulary_size or 0) % 8 != 0
    assert loaded.deepspeed["zero_optimization"].get("parameter_alignment", False) == odd
