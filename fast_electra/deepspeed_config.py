"""DeepSpeed's part of a config: every key known, the batch arithmetic sound, every `auto` resolved.

DeepSpeed itself takes a misspelt top-level key in silence and leaves `auto` to others. Here each section is held
against DeepSpeed's own schema before any process group starts.
"""

import copy
import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
from deepspeed.runtime import lr_schedules
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import BaseModel, ValidationError

from fast_electra.settings import UserError

# Every key that we pass on: a schema of DeepSpeed's, the names of a section, or None for a plain value.
OPTIMIZERS = {"Adam", "AdamW"}
OPTIMIZER_PARAMS = {"lr", "betas", "eps", "weight_decay", "torch_adam", "adam_w_mode", "bias_correction", "amsgrad"}
SCHEDULERS = {name: getattr(lr_schedules, name) for name in ("WarmupDecayLR", "WarmupLR", "WarmupCosineLR")}
SECTIONS: dict[str, type[BaseModel] | set[str] | None] = {
    **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")),
    **dict.fromkeys(("gradient_clipping", "prescale_gradients", "gradient_predivide_factor", "disable_allgather")),
    **dict.fromkeys(("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "log_level")),
    **dict.fromkeys(("communication_data_type", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer")),
    "optimizer": {"type", "params", "legacy_fusion"},
    "scheduler": {"type", "params"},
    "zero_optimization": DeepSpeedZeroConfig,
    "bf16": DeepSpeedBF16Config,
    "fp16": DeepSpeedFP16Config,
    "data_types": {"grad_accum_dtype"},
    "activation_checkpointing": {"synchronize_checkpoint_boundary", "profile", "number_checkpoints"},
    "tensorboard": TensorBoardConfig,
    "wandb": WandbConfig,
    "csv_monitor": CSVConfig,
    "comet": CometConfig,
    "comms_logger": CommsLoggerConfig,
    "flops_profiler": {"enabled", "profile_step", "module_depth", "top_modules", "detailed", "output_file"},
    "checkpoint": {"tag_validation", "use_node_local_storage", "parallel_write"},
}


class Machine(NamedTuple):
    """What a config depends on of the machine that runs it. It is given, so any machine's config can be made."""

    processes: int = 1
    best_dtype: str = "fp32"  # what `auto` means: the fastest sound precision
    on_gpu: bool = False

    def dtype(self, name: str, key: str) -> str:
        """Return `name`, with `auto` resolved."""
        resolved = self.best_dtype if name == "auto" else name
        if resolved == "fp16" and not self.on_gpu:
            raise UserError(f"{key}: fp16 needs a GPU; use bf16, fp32 or auto")
        return resolved


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: what was probably meant, or all that there is."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def resolve(tree: dict[str, Any], updates: int, machine: Machine, where: str) -> dict[str, Any]:
    """DeepSpeed's config, checked, complete and without `auto`.

    Args:
        tree: the file without its section `fast_electra`.
        updates: optimizer updates of the run: a scheduler's `total_num_steps`.
        machine: see `Machine`.
        where: the file's name, for messages.
    """
    tree = copy.deepcopy(tree)
    try:
        _check_keys(tree)
        _optimizer(tree, updates)
        _precision(tree, machine)
        _zero(tree)
        _batch(tree, machine.processes)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return tree


def _check_keys(tree: dict[str, Any]) -> None:
    for key, value in tree.items():
        if key not in SECTIONS:
            raise UserError(f"unknown key {key}{nearest(key, [*SECTIONS, 'fast_electra'])}")
        schema = SECTIONS[key]
        if schema is None:
            if isinstance(value, dict):
                raise UserError(f"{key} is a value, not a section")
        elif not isinstance(value, dict):
            raise UserError(f"{key} is a section: write it as {{...}}")
        elif isinstance(schema, set):
            _check_names(value, schema, key)
        else:
            _check_schema(value, schema, key)


def _check_names(section: dict[str, Any], known: Iterable[str], path: str) -> None:
    for key in section:
        if key not in known:
            raise UserError(f"unknown key {path}.{key}{nearest(key, known)}")


def _check_schema(section: dict[str, Any], schema: type[BaseModel], path: str) -> None:
    aliases = {field.alias or name: field for name, field in schema.model_fields.items()}
    _check_names(section, aliases, path)
    for key, value in section.items():
        nested = [
            option
            for option in getattr(aliases[key].annotation, "__args__", (aliases[key].annotation,))
            if isinstance(option, type) and issubclass(option, BaseModel)
        ]
        if nested and isinstance(value, dict):
            _check_schema(value, nested[0], f"{path}.{key}")
    try:
        schema(**section)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([path, *map(str, first["loc"])])
        raise UserError(f"{key}: {first['msg'][:1].lower()}{first['msg'][1:]}, not {first['input']!r}") from None


def _optimizer(tree: dict[str, Any], updates: int) -> None:
    optimizer = tree.get("optimizer", {})
    params = optimizer.get("params", {})
    for name, section in (("optimizer", optimizer), ("scheduler", tree.get("scheduler", {}))):
        if not isinstance(section.get("params", {}), dict):
            raise UserError(f"{name}.params is a section: write it as {{...}}")
    if str(optimizer.get("type")) not in OPTIMIZERS:
        raise UserError(f"optimizer.type must be one of {', '.join(sorted(OPTIMIZERS))}, not {optimizer.get('type')!r}")
    _check_names(params, OPTIMIZER_PARAMS, "optimizer.params")
    _check_number("optimizer.params.lr", params.get("lr"), lambda lr: lr > 0)
    betas = params.get("betas", [0.9, 0.999])
    if not isinstance(betas, list | tuple) or len(betas) != 2:
        raise UserError(f"optimizer.params.betas must be two numbers, not {betas!r}")
    for beta in betas:
        _check_number("optimizer.params.betas", beta, lambda value: 0 <= value < 1)
    for name in {"eps", "weight_decay"} & params.keys():
        _check_number(f"optimizer.params.{name}", params[name], lambda value: value >= 0)
    if "gradient_clipping" in tree:
        _check_number("gradient_clipping", tree["gradient_clipping"], lambda norm: norm >= 0)
    scheduler = tree.get("scheduler")
    if scheduler is None:
        return
    if str(scheduler.get("type")) not in SCHEDULERS:
        raise UserError(f"scheduler.type must be one of {', '.join(SCHEDULERS)}, not {scheduler.get('type')!r}")
    known = inspect.signature(SCHEDULERS[scheduler["type"]].__init__).parameters
    autos = {"total_num_steps": updates, "warmup_max_lr": params["lr"]}
    values = scheduler.setdefault("params", {})
    _check_names(values, [name for name in known if name not in ("self", "optimizer")], "scheduler.params")
    for name, value in autos.items():
        if name in known and values.get(name, "auto") == "auto":
            values[name] = value
    for name in values.keys() - {"warmup_type", "last_batch_iteration"}:
        if values[name] == "auto":
            raise UserError(f"scheduler.params.{name} cannot be auto; {' and '.join(autos)} can")
        _check_number(f"scheduler.params.{name}", values[name], lambda value: value >= 0)


def _check_number(name: str, value: Any, sound: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not sound(value):
        raise UserError(f"{name} is no sound number: {value!r}")


def _precision(tree: dict[str, Any], machine: Machine) -> None:
    """Resolves `auto` in bf16.enabled and fp16.enabled to what is fastest and right on this device."""
    best = machine.best_dtype
    for name in ("bf16", "fp16"):
        enabled = tree.get(name, {}).get("enabled", False)
        if enabled not in (True, False, "auto"):
            raise UserError(f"{name}.enabled must be true, false or auto, not {enabled!r}")
        if enabled == "auto":
            tree[name]["enabled"] = best == name
    enabled = [name for name in ("bf16", "fp16") if tree.get(name, {}).get("enabled")]
    if len(enabled) == 2:
        raise UserError("bf16.enabled and fp16.enabled are both true; keep one")
    for name in enabled:
        machine.dtype(name, f"{name}.enabled")
    # Gradients of many micro-batches lose their small parts when they are added up in 16 bit.
    tree.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")


def _zero(tree: dict[str, Any]) -> None:
    zero = tree.setdefault("zero_optimization", {})
    if zero.setdefault("stage", 2) != 2:
        raise UserError(
            f"zero_optimization.stage must be 2, not {zero['stage']!r}: what this trainer checks rests on it"
        )
    for name in ("offload_optimizer", "offload_param"):
        if zero.get(name):
            raise UserError(
                f"zero_optimization.{name} is not supported: the models of the paper fit into a GPU; remove it"
            )


def _batch(tree: dict[str, Any], world: int) -> None:
    """train_batch_size = train_micro_batch_size_per_gpu x gradient_accumulation_steps x processes; fills in one."""
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    total, micro, steps = (None if tree.get(name) == "auto" else tree.get(name) for name in names)
    for name, value in zip(names, (total, micro, steps), strict=True):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{name} must be a whole number >= 1, not {value!r}")
    if total is None:
        if micro is None:
            raise UserError("train_batch_size is missing: the sequences of one update over all processes")
        total = micro * (steps or 1) * world
    if micro is None:
        micro = total // (world * (steps or 1))
    if steps is None:
        steps = total // (micro * world)
    if micro * steps * world != total or not micro * steps:
        each, left = divmod(total, world)
        fits = [size for size in range(1, each + 1) if each % size == 0 and size <= max(micro, 1)]
        remedy = (
            f"set train_batch_size to a multiple of {world}"
            if left or not each
            else f"e.g. --set train_micro_batch_size_per_gpu={fits[-1]} and leave gradient_accumulation_steps out"
        )
        raise UserError(
            f"train_batch_size {total} is not train_micro_batch_size_per_gpu {micro} x gradient_accumulation_steps "
            f"{max(steps, 1)} x {world} processes = {micro * max(steps, 1) * world}; {remedy}"
        )
    tree.update(zip(names, (total, micro, steps), strict=True))
