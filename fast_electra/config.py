"""One JSON file to a checked, resolved configuration of a run.

The file is a DeepSpeed config with one more section, `fast_electra`. DeepSpeed's keys set batch, optimizer, precision,
ZeRO and clipping. The section `fast_electra` names a recipe and sets model, corpus, curriculum, replacement and run
folder. Every key of both parts is checked before any process group starts.
"""

import dataclasses
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Tag, ValidationError, model_validator

from fast_electra import config_file, deepspeed_config, deepspeed_schema, recipes
from fast_electra.corpus.corpus import CorpusSettings
from fast_electra.corruption import CorruptionSettings
from fast_electra.curriculum import CurriculumSettings
from fast_electra.deepspeed_config import Machine
from fast_electra.huggingface.settings import HuggingFaceSettings
from fast_electra.model.encoder import EncoderSettings
from fast_electra.objectives.joint import JointSettings
from fast_electra.replacement.settings import AuxiliarySettings, ReplacementSettings
from fast_electra.run_settings import SECTION, ResolvedConfig, RunSettings
from fast_electra.settings import UserError, one_line, one_of, settings_in

ONE_CPU = Machine()


def _is_existing(model: Any) -> bool:
    """Return whether the section `model` names an existing one."""
    return isinstance(model, HuggingFaceSettings) or (isinstance(model, dict) and "huggingface" in model)


class RunConfig(RunSettings):
    """The section `fast_electra` of a config, with the recipe's values filled in."""

    objective: Annotated[str, one_of(recipes.OBJECTIVES)]
    recipe: Annotated[str, one_of(recipes.NAMES)]
    model: Annotated[
        Annotated[EncoderSettings, Tag("of our own")] | Annotated[HuggingFaceSettings, Tag("existing")],
        Discriminator(lambda given: "existing" if _is_existing(given) else "of our own"),
    ]
    corpus: CorpusSettings
    corruption: CorruptionSettings = CorruptionSettings()
    auxiliary: AuxiliarySettings | None = None
    replacement: ReplacementSettings = ReplacementSettings()
    curriculum: CurriculumSettings = CurriculumSettings()
    joint: JointSettings | None = None

    @property
    def vocabulary_size(self) -> int | None:
        """Entries of the vocabulary that the config gives; None for an existing model, which has its own."""
        return self.model.vocabulary_size if isinstance(self.model, EncoderSettings) else None

    @model_validator(mode="after")
    def _writes_into_a_folder_of_its_own(self) -> "RunConfig":
        auxiliary, existing = (self.auxiliary.run, self.auxiliary.huggingface) if self.auxiliary else (None, None)
        read = {
            "corpus.shards": self.corpus.shards,
            "corpus.tokenizer": self.corpus.tokenizer,
            "auxiliary.run": auxiliary,
            "auxiliary.huggingface": existing,
            "replacement.store": self.replacement.store,
            "model.huggingface": self.model.huggingface if isinstance(self.model, HuggingFaceSettings) else None,
        }
        self.refuse_to_write_into(read)
        return self

    @model_validator(mode="after")
    def _fits_objective(self) -> "RunConfig":
        if self.objective != "rtd" and isinstance(self.model, HuggingFaceSettings):
            raise ValueError(
                f"model.huggingface is what objective rtd trains, and objective {self.objective} trains a model of our "
                "own: give its sizes instead"
            )
        if self.objective == "joint" and self.joint is None:
            raise ValueError("objective joint needs the section joint: leave it out to use the recipe's")
        if self.objective != "rtd":
            if self.replacement.store is not None:
                raise ValueError(
                    f"replacement.store holds what a frozen model drew, and objective {self.objective} has none: "
                    "leave it out, or train with objective rtd"
                )
            return self
        replacement, initial = self.replacement, self.curriculum.initial
        if not replacement.from_auxiliary and replacement.augmentation != "temperature":
            raise ValueError(
                f"replacement.augmentation {replacement.augmentation} acts on an auxiliary model, and "
                f"replacement.distribution {replacement.distribution} has none: leave one of the two out"
            )
        if replacement.from_auxiliary and (self.auxiliary is None or not self.auxiliary.named):
            raise ValueError(
                "objective rtd needs auxiliary.run, the run folder of an auxiliary model, or auxiliary.huggingface, "
                "the directory of one, or a replacement.distribution that needs no auxiliary"
            )
        if replacement.needs_our_encoder and self.auxiliary is not None and self.auxiliary.huggingface is not None:
            raise ValueError(
                f"replacement.augmentation {replacement.augmentation} drops inside the auxiliary by the keys of the "
                "sequences, which only our own encoder can: use another, or auxiliary.run"
            )
        parameter, floor, highest, _ = replacement.range
        if not floor <= initial <= highest:
            bounds = f"at least {floor:g}" if highest == float("inf") else f"in [{floor:g}, {highest:g}]"
            raise ValueError(f"curriculum.initial is the first {parameter}: it must be {bounds}, not {initial:g}")
        return self


_DRAWING = ("auxiliary", "replacement", "curriculum")
_UNREAD = {"mlm": (*_DRAWING, "joint"), "joint": _DRAWING, "rtd": ("joint",)}  # sections, by objective


@dataclass(frozen=True)
class Config(ResolvedConfig):
    """A resolved configuration of a pre-training run."""

    run: RunConfig

    @property
    def auxiliary_dtype(self) -> str:
        """Precision of the frozen auxiliary."""
        assert self.run.auxiliary is not None
        return self.machine.dtype(self.run.auxiliary.dtype, f"{SECTION}.auxiliary.dtype")

    def u(self, update: int, epoch: int) -> float:
        """Return u at an update, 1 ... updates, for epochs of `epoch` sequences: see `CurriculumSettings.fraction`."""
        return self.run.curriculum.fraction(update, self.run.updates, self.sequences, epoch)

    def changed(self, **changes: Any) -> "Config":
        """Return the config with other values of our part, checked again; a section is a dict of what changes."""
        return dataclasses.replace(self, run=RunConfig.model_validate(_merge(self.run.model_dump(), changes)))

    @property
    def unread(self) -> dict[str, str]:
        """Keys and sections of our part that were set and that nothing reads, each with the reason."""
        run, given = self.run, self.run.model_fields_set
        reasons = {name: f"objective {run.objective}" for name in _UNREAD[run.objective] if name in given}
        if run.objective != "rtd":
            return reasons
        replacement, drawn = run.replacement, f"replacement.distribution {run.replacement.distribution}"
        if run.auxiliary is not None and (replacement.store is not None or not replacement.from_auxiliary):
            reasons["auxiliary"] = "replacement.store" if replacement.store is not None else drawn
        if "alpha" in replacement.model_fields_set and not replacement.needs_alpha:
            reasons["replacement.alpha"] = drawn
        schedule = run.curriculum.schedule
        if not replacement.has_curriculum:
            if run.curriculum != CurriculumSettings(initial=replacement.range.initial):
                reasons["curriculum"] = drawn
        elif schedule == "constant" and run.curriculum.rate != CurriculumSettings(schedule=schedule).rate:
            reasons["curriculum.rate"] = "curriculum.schedule constant"
        return reasons


def load(path: str | Path, overrides: Sequence[str] = (), machine: Machine = ONE_CPU) -> Config:
    """Read, override, check and resolve a config for a machine: by default for one process on a CPU, in fp32.

    In an override `KEY=VALUE`, KEY is a dotted path into either part, and VALUE is JSON or a plain string.

    Raises:
        UserError: something is wrong. The message names the file, the key and the remedy.
    """
    tree = config_file.read(path, overrides)
    if not isinstance(tree.get(SECTION), dict):
        raise UserError(f'{path} has no section "{SECTION}"; see ds_configs/tiny.json for one')
    if "epochs" in tree[SECTION] and "recipe" not in tree[SECTION]:
        raise UserError(f"{path} is a config of fine-tuning: start it with launch/finetune.py")
    _check_places(tree, str(path))
    section = tree.pop(SECTION)
    run = _run_config(section, str(path))
    config = Config(run, deepspeed_config.resolve(tree, run.updates, machine, str(path)), machine)
    config.check_apex(str(path))
    return config


def _keys(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Return the dotted path of every key, and of every section, in a settings class."""
    found = set()
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        found |= {key}.union(*(_keys(section, f"{key}.") for section in settings_in(field.annotation)))
    return found


KEYS = {f"{SECTION}.{key}" for key in _keys(RunConfig)} | _keys(deepspeed_schema.SCHEMA)
KEYS |= {f"scheduler.params.{key}" for params in deepspeed_schema.SCHEDULER_PARAMS.values() for key in _keys(params)}


def _check_places(tree: dict[str, Any], where: str, prefix: str = "") -> None:
    """Refuse a key whose name belongs elsewhere, and say where: `updates` means `fast_electra.updates`."""
    siblings = {rest for key in KEYS if key.startswith(prefix) and "." not in (rest := key.removeprefix(prefix))}
    leaves = {key.rpartition(".")[2] for key in KEYS}
    for name, value in tree.items():
        if name in siblings:
            if isinstance(value, dict):
                _check_places(value, where, f"{prefix}{name}.")
        elif name in leaves or not difflib.get_close_matches(name.lower(), siblings, n=1):
            close = difflib.get_close_matches(name.lower(), leaves, n=1)
            meant = sorted(key for key in KEYS if close and key.rpartition(".")[2] == close[0])
            if 1 <= len(meant) <= 3:  # `enabled` is in too many sections to say which
                raise UserError(f"{where}: unknown key {prefix}{name}; did you mean {' or '.join(meant)}?")


def _merge(preset: Any, own: Any) -> Any:
    """Return `preset` with the values of `own`, section by section."""
    if isinstance(preset, dict) and isinstance(own, dict):
        return {key: _merge(preset.get(key), own[key]) if key in own else preset[key] for key in preset | own}
    return own


def _run_config(section: dict[str, Any], where: str) -> RunConfig:
    for key, allowed in (("recipe", recipes.NAMES), ("objective", recipes.OBJECTIVES)):
        if key not in section and (close := difflib.get_close_matches(key, section, n=1)):
            raise UserError(f"{where}: unknown key {SECTION}.{close[0]}; did you mean {key}?")
        if section.get(key) not in allowed:
            given = json.dumps(section.get(key))
            raise UserError(f"{where}: {SECTION}.{key} must be one of {', '.join(allowed)}, not {given}")
    preset = recipes.recipe(section["recipe"], section["objective"])
    model = section.get("model")
    if isinstance(model, dict) and "huggingface" in model:  # whose sizes are its own
        preset["model"] = {}
        if sizes := sorted(set(model) & set(EncoderSettings.model_fields) - set(HuggingFaceSettings.model_fields)):
            key = f"{SECTION}.model.{sizes[0]}"
            raise UserError(f"{where}: {SECTION}.model.huggingface names a model of its own sizes: leave out {key}")
    merged = _merge(preset, section)
    try:
        return RunConfig.model_validate(_with_initial(merged) if section["objective"] == "rtd" else merged)
    except ValidationError as error:
        raise UserError(f"{where}: {one_line(error, RunConfig, SECTION)}") from None


def _with_initial(tree: dict[str, Any]) -> dict[str, Any]:
    """Return `tree` with the default of `curriculum.initial`, which depends on what is scheduled."""
    curriculum = tree["curriculum"]
    if not isinstance(curriculum, dict) or curriculum.get("initial") is not None:
        return tree
    try:
        initial = ReplacementSettings.model_validate(tree.get("replacement", {})).range.initial
    except ValidationError:
        return tree  # it is validated as a whole next, and that message names the whole key
    return tree | {"curriculum": curriculum | {"initial": initial}}
