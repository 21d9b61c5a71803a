"""One JSON file to a checked, resolved configuration of a run.

The file is a DeepSpeed config with one more section, `fast_electra`. DeepSpeed's keys own batch, optimizer, precision,
ZeRO and clipping; `fast_electra` owns model, corpus, curriculum, replacement and run folder, on top of a recipe. Both
parts are checked key by key before any process group starts: DeepSpeed takes a misspelt top-level key in silence.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from fast_electra import deepspeed_config, recipes
from fast_electra.corruption import CorruptionSettings
from fast_electra.curriculum import CurriculumSettings
from fast_electra.model.encoder import EncoderSettings
from fast_electra.objectives.joint import JointSettings
from fast_electra.replacement.auxiliary import AuxiliarySettings
from fast_electra.replacement.distribution import ReplacementSettings
from fast_electra.settings import Settings, UserError, one_line
from fast_electra.training.operators import on_gpu
from fast_electra.training.precision import best_dtype

SECTION = "fast_electra"


class CorpusSettings(Settings):
    """Where the text is, and how it is cut."""

    shards: str = "data/shards"
    tokenizer: str = "data/tokenizer"
    sequence_length: int = Field(default=512, ge=8)


class CheckpointSettings(Settings):
    """When checkpoints are written and how many are kept. The end of a run always writes one."""

    every: int = Field(default=5000, ge=1)  # updates
    keep: int = Field(default=2, ge=1)


class EvaluationSettings(Settings):
    """When the held-out documents are evaluated, and on how many of their sequences. The end of a run always is."""

    every: int = Field(default=5000, ge=1)  # updates
    sequences: int = Field(default=2048, ge=1)


class RunConfig(Settings):
    """The section `fast_electra` of a config, with the recipe's values filled in."""

    objective: Literal["rtd", "mlm", "joint"]
    recipe: Literal["tiny", "small", "base", "large"]
    run: str
    seed: int = Field(default=0, ge=0, lt=2**62)
    updates: int = Field(ge=1)
    log_every: int = Field(default=20, ge=1)
    model: EncoderSettings
    corpus: CorpusSettings
    corruption: CorruptionSettings = CorruptionSettings()
    auxiliary: AuxiliarySettings | None = None
    replacement: ReplacementSettings = ReplacementSettings()
    curriculum: CurriculumSettings = CurriculumSettings()
    joint: JointSettings | None = None
    checkpoint: CheckpointSettings = CheckpointSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _fits_objective(self) -> "RunConfig":
        if self.objective == "joint" and self.joint is None:
            raise ValueError("objective joint needs the section joint: leave it out, and the recipe's stands")
        if self.objective != "rtd":
            if self.replacement.store is not None:
                raise ValueError(
                    f"replacement.store holds what a frozen model drew, and objective {self.objective} has none: "
                    "leave it out, or train by objective rtd"
                )
            return self
        replacement, initial = self.replacement, self.curriculum.initial
        if replacement.distribution != "auxiliary" and replacement.augmentation != "temperature":
            raise ValueError(
                f"replacement.augmentation {replacement.augmentation} acts on an auxiliary model, and "
                f"replacement.distribution {replacement.distribution} has none: leave one of the two out"
            )
        if replacement.distribution == "auxiliary" and (self.auxiliary is None or self.auxiliary.run is None):
            raise ValueError(
                "objective rtd needs auxiliary.run: the run folder of an auxiliary model (or a "
                "replacement.distribution that needs none)"
            )
        parameter, floor, highest, _ = replacement.range
        if not floor <= initial <= highest:
            bounds = f"at least {floor:g}" if highest == float("inf") else f"in [{floor:g}, {highest:g}]"
            raise ValueError(f"curriculum.initial is the first {parameter}: {bounds}, not {initial:g}")
        return self


_UNREAD = {
    "mlm": ("auxiliary", "replacement", "curriculum", "joint"),
    "joint": ("auxiliary", "replacement", "curriculum"),
    "rtd": ("joint",),
}


@dataclass(frozen=True)
class Config:
    """A resolved configuration: our part, and DeepSpeed's part as plain JSON without `auto`."""

    run: RunConfig
    deepspeed: dict[str, Any]

    def clock(self, epoch: int) -> Callable[[int], float]:
        """u as a function of the update, for epochs of so many sequences: see `CurriculumSettings.fraction`."""
        run, batch = self.run, self.deepspeed["train_batch_size"]
        return lambda update: run.curriculum.fraction(update, run.updates, batch, epoch)

    @property
    def unread(self) -> list[str]:
        """Sections of the config that its objective makes no use of."""
        return [name for name in _UNREAD[self.run.objective] if name in self.run.model_fields_set]

    def to_json(self) -> dict[str, Any]:
        return {SECTION: self.run.model_dump(), "deepspeed": self.deepspeed}


def load(path: str | Path, overrides: list[str] | None = None, world: int | None = None) -> Config:
    """Reads, overrides, checks and resolves a config.

    Args:
        overrides: `KEY=VALUE` strings, KEY a dotted path into either part, VALUE JSON or a plain string.
        world: number of processes; by default the launcher's WORLD_SIZE.

    Raises:
        UserError: naming the key, the file and the remedy.
    """
    tree = read(path, overrides)
    section = tree.pop(SECTION, None)
    if not isinstance(section, dict):
        raise UserError(f'{path}: there is no section "{SECTION}"; see ds_configs/tiny.json for one')
    run = _run_config(section, str(path))
    world = int(os.environ.get("WORLD_SIZE", "1")) if world is None else world
    machine = deepspeed_config.Machine(world, best_dtype(), on_gpu())
    return Config(run, deepspeed_config.resolve(tree, run.updates, machine, str(path)))


def read(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The file's JSON with its overrides, before anything is checked or resolved."""
    tree = _read(Path(path))
    for override in overrides or []:
        _override(tree, override)
    return tree


def _read(path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{path}: the key {twice!r} stands twice in one section; keep one")
        return tree

    try:
        tree = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"there is no config file {path}; those that ship stand in ds_configs/") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no valid JSON: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold one JSON object")
    return tree


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, name = key.split(".")
    if not equals or not all([*sections, name]):
        raise UserError(f"--set {override}: write KEY=VALUE, e.g. --set fast_electra.curriculum.rate=0.3")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"--set {override}: {section} is a value, not a section")
    tree[name] = value


def _merge(preset: Any, own: Any) -> Any:
    if isinstance(preset, dict) and isinstance(own, dict):
        return {key: _merge(preset.get(key), own[key]) if key in own else preset[key] for key in preset | own}
    return own


def _run_config(section: dict[str, Any], where: str) -> RunConfig:
    names = {"recipe": tuple(recipes.NAMES), "objective": tuple(recipes.OBJECTIVES)}
    for key, allowed in names.items():
        if section.get(key) not in allowed:
            given = json.dumps(section.get(key))
            raise UserError(f"{where}: {SECTION}.{key} must be one of {', '.join(allowed)}, not {given}")
    preset = recipes.recipe(section["recipe"], section["objective"])
    try:
        merged = _merge(preset, section)
        return RunConfig.model_validate(_with_initial(merged) if section["objective"] == "rtd" else merged)
    except ValidationError as error:
        raise UserError(f"{where}: {one_line(error, RunConfig, SECTION)}") from None


def _with_initial(tree: dict[str, Any]) -> dict[str, Any]:
    """Where the curriculum begins, unless the config says so, depends on what is scheduled."""
    replacement, curriculum = tree.get("replacement", {}), tree.get("curriculum", {})
    if not isinstance(curriculum, dict) or curriculum.get("initial") is not None:
        return tree
    try:
        initial = ReplacementSettings.model_validate(replacement).range.initial
    except ValidationError:
        return tree  # which is validated as a whole, and the message then names the whole key
    return tree | {"curriculum": curriculum | {"initial": initial}}
