"""The config of fine-tuning: as in pre-training, a DeepSpeed config with the section `fast_electra`, but of a task."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from fast_electra import config_file, deepspeed_config
from fast_electra.deepspeed_config import Machine
from fast_electra.run_settings import SECTION, EvaluationSettings, ResolvedConfig, RunSettings
from fast_electra.settings import LocalPath, UserError, one_line

EVERY_SEQUENCE = 1_000_000_000  # a dev set is evaluated as a whole


class FineTuningSettings(RunSettings):
    """The section `fast_electra` of a config of fine-tuning. Table 4 has the values that the paper tried."""

    run: LocalPath = ""  # by default runs/finetuned/TASK
    updates: int = Field(default=1, ge=1, le=1_000_000_000)  # follows from the epochs
    task: str  # a name of `tasks.TASKS`, or a JSON file
    data: LocalPath  # folder with the task's files
    pretrained: LocalPath  # run folder, exported directory, or any encoder of Hugging Face
    initialization: Literal["pretrained", "random"] = "pretrained"  # random: the same architecture, new weights
    tokenizer: LocalPath | None = None  # of one of our models; by default the one that its run names
    sequence_length: int = Field(default=256, ge=8, le=32_768)
    epochs: float = Field(default=3.0, gt=0, le=1000, strict=False)
    warmup: float = Field(default=0.06, ge=0, lt=1)  # share of the updates
    dropout: float = Field(default=0.1, ge=0, lt=1)  # of hidden states and attention

    @model_validator(mode="after")
    def _writes_into_a_folder_of_its_own(self) -> "FineTuningSettings":
        self.refuse_to_write_into({"pretrained": self.pretrained, "tokenizer": self.tokenizer})
        return self


@dataclass(frozen=True)
class FineTuningConfig(ResolvedConfig):
    """A resolved configuration of one fine-tuning run."""

    run: FineTuningSettings


def load(path: str | Path, overrides: Sequence[str], examples: int, machine: Machine) -> FineTuningConfig:
    """Read, override, check and resolve a config for a training set of `examples` rows.

    Raises:
        UserError: something is wrong. The message names the file, the key and the remedy.
    """
    settings, tree = read(path, overrides)
    section, where = tree.pop(SECTION), str(path)
    # The number of updates follows from the batch, and the schedule from the number of updates.
    first = deepspeed_config.resolve(_with_warmup(tree, settings.warmup, 1), 1, machine, where)
    batch = int(first["train_batch_size"])
    updates = max(1, math.ceil(settings.epochs * examples / batch))
    every = section.get("evaluation", {}).get("every", math.ceil(examples / batch))  # an epoch
    settings = settings.model_copy(
        update={"updates": updates, "evaluation": EvaluationSettings(every=every, sequences=EVERY_SEQUENCE)}
    )
    resolved = deepspeed_config.resolve(_with_warmup(tree, settings.warmup, updates), updates, machine, where)
    config = FineTuningConfig(settings, resolved, machine)
    config.check_apex(where)
    return config


def _with_warmup(tree: dict[str, Any], share: float, updates: int) -> dict[str, Any]:
    """Return the tree with `scheduler.params.warmup_num_steps`, where it is auto, as a share of the updates."""
    tree = copy.deepcopy(tree)
    scheduler = tree.get("scheduler")
    params = scheduler.get("params") if isinstance(scheduler, dict) else None
    if isinstance(params, dict) and params.get("warmup_num_steps") == "auto":
        params["warmup_num_steps"] = max(1, round(share * updates))
    return tree


def read(path: str | Path, overrides: Sequence[str]) -> tuple[FineTuningSettings, dict[str, Any]]:
    """Return the section `fast_electra`, checked, and the whole file as it is."""
    tree = config_file.read(path, overrides)
    section = tree.get(SECTION)
    if not isinstance(section, dict):
        raise UserError(f'{path} has no section "{SECTION}"; see ds_configs/finetune.json for one')
    if "recipe" in section or "objective" in section:
        raise UserError(f"{path} is a config of pre-training: start it with launch/pretrain.py")
    for key, flag in (("task", "--task NAME"), ("data", "--data FOLDER"), ("pretrained", "--checkpoint FOLDER")):
        if section.get(key) is None:
            raise UserError(f"{path}: {SECTION}.{key} is missing: pass {flag}")
    if "updates" in section:
        raise UserError(f"{path}: {SECTION}.updates follows from the number of rows: set {SECTION}.epochs")
    if isinstance(evaluation := section.get("evaluation"), dict) and "sequences" in evaluation:
        raise UserError(f"{path}: {SECTION}.evaluation.sequences is not for tasks: all rows are evaluated; remove it")
    try:
        return FineTuningSettings.model_validate(section), tree
    except ValidationError as error:
        raise UserError(f"{path}: {one_line(error, FineTuningSettings, SECTION)}") from None
