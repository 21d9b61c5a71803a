"""DeepSpeed's part of a config: check every key and value, make the batch sizes consistent, and resolve `auto`.

DeepSpeed itself ignores a misspelt top-level key and leaves `auto` to others. Here each section is checked against our
settings or DeepSpeed's own schema.
"""

import copy
import inspect
from typing import Annotated, Any, Literal, NamedTuple, get_args

from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.monitor.config import DeepSpeedMonitorConfig
from deepspeed.runtime import lr_schedules
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import Field, StrictBool, ValidationError, create_model, model_validator

from fast_electra.settings import Settings, UserError, one_line

Positive = Annotated[float, Field(gt=0, description="a positive number")]
NotNegative = Annotated[float, Field(ge=0, description="a number >= 0")]
Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[list[Beta], Field(min_length=2, max_length=2, strict=False, description="two numbers in [0, 1)")]
Size = Annotated[int, Field(ge=1)] | Literal["auto"] | None
Value = Annotated[bool | float | str | None, Field(description="a single value")]
Enabled = Annotated[StrictBool, Field(description="true, false or auto")]  # DeepSpeed's schemas skip `auto` themselves
Scheduler = Literal["WarmupDecayLR", "WarmupLR", "WarmupCosineLR"]


class AdamParams(Settings):
    """Parameters of Adam, DeepSpeed's fused one or torch's."""

    lr: Positive
    betas: Betas = [0.9, 0.999]
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.0
    torch_adam: bool = False
    adam_w_mode: bool = True
    bias_correction: bool = True
    amsgrad: bool = False


class Optimizer(Settings):
    """Optimizer. DeepSpeed uses its fused Adam for either type."""

    type: Literal["Adam", "AdamW"]
    params: AdamParams
    legacy_fusion: bool = False


class Zero(DeepSpeedZeroConfig):  # type: ignore[misc]
    """ZeRO, of stage 2 and without offloading."""

    stage: Literal[2] = Field(2, description="2 (the checks of this trainer assume it)")

    @model_validator(mode="after")
    def _keeps_all_on_the_device(self) -> "Zero":
        for name in ("offload_optimizer", "offload_param"):
            if getattr(self, name):
                raise ValueError(f"{name} is not supported: the models of the paper fit into a GPU; remove it")
        return self


def _section(*names: str, **kinds: Any) -> type[Settings]:
    """Return a settings class whose fields are all optional: `names`, which hold anything, and `kinds` by name."""
    fields = {name: (kind, None) for name, kind in (dict.fromkeys(names, Any) | kinds).items()}
    return create_model("Section", __base__=Settings, **fields)  # type: ignore[call-overload]


def _scheduler_params(scheduler: str) -> type[Settings]:
    """Return a settings class for the parameters of a scheduler of DeepSpeed, after `auto` is resolved."""
    number = Annotated[NotNegative, Field(description=f"a number >= 0 ({' and '.join(AUTOS)} can also be auto)")]
    kinds = {"warmup_type": Literal["log", "linear"], "last_batch_iteration": int}
    taken = inspect.signature(getattr(lr_schedules, scheduler)).parameters
    return _section(**{name: kinds.get(name, number) for name in taken if name != "optimizer"})


AUTOS = ("total_num_steps", "warmup_max_lr")  # parameters of a scheduler
SCHEDULER_PARAMS = {scheduler: _scheduler_params(scheduler) for scheduler in get_args(Scheduler)}
SIZES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
SECTIONS: dict[str, Any] = {  # every key that is passed on to DeepSpeed, and what it holds
    **dict.fromkeys(SIZES, Annotated[Size, Field(description='a whole number >= 1 or "auto"')]),
    "gradient_clipping": NotNegative,
    **dict.fromkeys(("prescale_gradients", "disable_allgather", "wall_clock_breakdown", "memory_breakdown"), bool),
    **dict.fromkeys(("dump_state", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"), bool),
    **dict.fromkeys(("gradient_predivide_factor", "steps_per_print", "log_level", "communication_data_type"), Value),
    "optimizer": Optimizer,
    "scheduler": create_model("Scheduler", __base__=Settings, type=(Scheduler, ...), params=(dict[str, Any], {})),
    "zero_optimization": Zero,
    "bf16": create_model("BF16", __base__=DeepSpeedBF16Config, enabled=(Enabled, False)),
    "fp16": create_model("FP16", __base__=DeepSpeedFP16Config, enabled=(Enabled, False)),
    "data_types": _section("grad_accum_dtype"),
    "activation_checkpointing": _section("synchronize_checkpoint_boundary", "profile", "number_checkpoints"),
    **{name: field.annotation for name, field in DeepSpeedMonitorConfig.model_fields.items()},
    "comms_logger": CommsLoggerConfig,
    "flops_profiler": _section("enabled", "profile_step", "module_depth", "top_modules", "detailed", "output_file"),
    "checkpoint": _section("tag_validation", "use_node_local_storage", "parallel_write"),
}
# The section `fast_electra` is taken out before. It is known here so that a misspelling of it is recognised.
SCHEMA = create_model("DeepSpeed", __base__=_section("fast_electra", **SECTIONS), optimizer=(Optimizer, ...))


class Machine(NamedTuple):
    """Facts about the machine that runs a config. They are given, so that a config can be checked for any machine."""

    processes: int = 1
    best_dtype: str = "fp32"  # what `auto` means: the fastest precision that computes correctly there
    on_gpu: bool = False

    def dtype(self, name: str, key: str) -> str:
        """Return the precision `name`, with `auto` resolved; raise a UserError that names `key` if it has none."""
        resolved = self.best_dtype if name == "auto" else name
        if resolved == "fp16" and not self.on_gpu:
            raise UserError(f"{key}: fp16 needs a GPU; use bf16, fp32 or auto")
        return resolved


def resolve(tree: dict[str, Any], updates: int, machine: Machine, where: str) -> dict[str, Any]:
    """Return DeepSpeed's config, checked, complete and without `auto`.

    `tree` is the file without its section `fast_electra`, and `where` its name in messages. The number of updates is a
    scheduler's `total_num_steps`. In one process `zero_optimization.overlap_comm` becomes false: there is no
    communication that could overlap, and DeepSpeed would only wait for the whole device in each micro-batch.

    Raises:
        UserError: a key is unknown or a value is wrong.
    """
    tree = copy.deepcopy(tree)
    try:
        _check(SCHEMA, tree, "")
        if "scheduler" in tree:
            _resolve_scheduler(tree["scheduler"], updates, tree["optimizer"]["params"]["lr"])
        _resolve_precision(tree, machine)
        tree = _without_auto(tree)
        _resolve_batch(tree, machine.processes)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    tree.setdefault("zero_optimization", {}).setdefault("stage", 2)
    if machine.processes == 1:
        tree["zero_optimization"]["overlap_comm"] = False
    # Gradients of many micro-batches lose their small parts when they are added up in 16 bit.
    tree.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    return tree


def _check(model: type[Settings], tree: dict[str, Any], prefix: str) -> None:
    try:
        model.model_validate(tree)
    except ValidationError as error:
        raise UserError(one_line(error, model, prefix)) from None


def _resolve_scheduler(scheduler: dict[str, Any], updates: int, learning_rate: float) -> None:
    params, schema = scheduler.setdefault("params", {}), SCHEDULER_PARAMS[scheduler["type"]]
    for name, value in zip(AUTOS, (updates, learning_rate), strict=True):
        if name in schema.model_fields and params.get(name, "auto") == "auto":
            params[name] = value
    _check(schema, params, "scheduler.params")


def _resolve_precision(tree: dict[str, Any], machine: Machine) -> None:
    enabled = []
    for name in ("bf16", "fp16"):
        section = tree.get(name, {})
        if section.get("enabled") == "auto":
            section["enabled"] = machine.best_dtype == name
        if section.get("enabled"):
            enabled.append(machine.dtype(name, f"{name}.enabled"))
    if len(enabled) > 1:
        raise UserError("bf16.enabled and fp16.enabled are both true; keep one")


def _without_auto(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree without any `auto` that is left, which means DeepSpeed's default."""
    return {k: _without_auto(v) if isinstance(v, dict) else v for k, v in tree.items() if v != "auto"}


def _resolve_batch(tree: dict[str, Any], processes: int) -> None:
    """Fill in the missing sizes of train_batch_size = micro-batch x accumulation steps x processes, and check them."""
    total, micro, steps = (tree.get(name) for name in SIZES)
    if total is None:
        if micro is None:
            raise UserError("train_batch_size is missing: the sequences of one update over all processes")
        total = micro * (steps or 1) * processes
    if steps is None:
        steps = 1 if micro is None else total // (micro * processes)
    if micro is None:
        micro = total // (steps * processes)
    if micro * steps * processes != total or not micro * steps:
        each, left = divmod(total, processes)
        remedy = f"set train_batch_size to a multiple of {processes}"
        if each and not left:
            size = max(size for size in range(1, max(micro, 1) + 1) if each % size == 0)
            remedy = f"e.g. --set train_micro_batch_size_per_gpu={size} and leave gradient_accumulation_steps out"
        raise UserError(
            f"train_batch_size {total} is not train_micro_batch_size_per_gpu {micro} x gradient_accumulation_steps "
            f"{max(steps, 1)} x {processes} processes = {micro * max(steps, 1) * processes}; {remedy}"
        )
    tree.update(zip(SIZES, (total, micro, steps), strict=True))
