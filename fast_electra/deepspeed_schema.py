"""What every key of DeepSpeed's part of a config may hold: our own settings, or DeepSpeed's schemas made strict.

DeepSpeed finds some wrong values late, in a traceback, and takes others for something else. A value that DeepSpeed
takes and this trainer cannot use is refused here, too.
"""

import inspect
from typing import Annotated, Any, Literal, get_args

from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
from deepspeed.runtime import lr_schedules
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import BaseModel, BeforeValidator, Field, StrictBool, create_model, model_validator
from pydantic.fields import FieldInfo

from fast_electra.settings import LocalPath, Settings, range_of

# An update has at most so many sequences: 16 times the largest batch known for such encoders (65,536, with LAMB).
MOST_SEQUENCES = 2**20
Rate = Annotated[float, Field(gt=0, le=100)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[list[Beta], Field(min_length=2, max_length=2, strict=False, description="two numbers in [0, 1)")]
Whole = Annotated[int, Field(ge=1, le=1_000_000_000)]
Size = Annotated[
    Annotated[int, Field(ge=1, le=MOST_SEQUENCES)] | Literal["auto"] | None,
    Field(description=f'a whole number from 1 to {MOST_SEQUENCES:,} or "auto"'),
]
Dtype = Literal["fp32", "bf16", "fp16"]
OptionalDtype = Annotated[Dtype | None, Field(description="fp32, bf16, fp16 or null")]
Level = Literal["debug", "info", "warning", "error", "critical"]
Print = Annotated[Whole | Literal["auto"] | None, Field(description="a whole number >= 1, or null for never")]
OutputPath = LocalPath | Literal[""]
Off = Annotated[Literal[False], Field(description="false (it needs offloading, which is not supported)")]
Enabled = Annotated[StrictBool, Field(description="true, false or auto")]  # DeepSpeed's schemas skip `auto` themselves
Scheduler = Literal["WarmupDecayLR", "WarmupLR", "WarmupCosineLR"]


def _strict(model: type[BaseModel], **kinds: Any) -> type[BaseModel]:
    """Return DeepSpeed's settings class without its conversions: "yes" is no boolean there, and "5" no number.

    `kinds` are fields with another type and default.
    """

    def only(field: FieldInfo, *wanted: type) -> BeforeValidator:
        def check(given: Any) -> Any:
            if given is not None and (
                not isinstance(given, wanted) or (isinstance(given, bool) and bool not in wanted)
            ):
                raise ValueError(f"must be {field.description or range_of(field)}")
            return given

        return BeforeValidator(check)

    own = create_model(model.__name__, __base__=model, **kinds)
    rules: dict[str, Any] = {}
    for name, field in own.model_fields.items():
        inside = get_args(field.annotation) or (field.annotation,)
        for wanted in ((bool,), (int, float), (str,)):
            if set(wanted) & set(inside):
                rules[name] = (Annotated[field.annotation, only(field, *wanted)], field)
    return create_model(model.__name__, __base__=own, **rules)


class AdamParams(Settings):
    """Parameters of Adam, DeepSpeed's fused one or torch's."""

    lr: Rate
    betas: Betas = [0.9, 0.999]
    eps: float = Field(default=1e-8, gt=0, le=1)  # 0 would divide by 0 where a token did not occur
    weight_decay: float = Field(default=0.0, ge=0, le=100)
    torch_adam: bool = False
    adam_w_mode: bool = True
    bias_correction: bool = True
    amsgrad: bool = False


class Optimizer(Settings):
    """Optimizer. DeepSpeed uses its fused Adam for the first two types, and AdaMax with decoupled weight decay."""

    type: Literal["Adam", "AdamW", "Adamax"]
    params: AdamParams
    legacy_fusion: Annotated[Literal[False], Field(description="false (ZeRO does not read it)")] = False


ZERO = _strict(
    DeepSpeedZeroConfig,
    reduce_bucket_size=(Annotated[int, Field(ge=1, le=5_000_000_000)], 500_000_000),
    allgather_bucket_size=(
        Annotated[int, Field(ge=0, multiple_of=2, description="an even whole number >= 0")],
        500_000_000,
    ),
    legacy_stage1=(Annotated[Literal[False], Field(description="false (DeepSpeed has it no more)")], False),
    zenflow=(Annotated[None, Field(description="null (it needs offloading, which is not supported)")], None),
    leaf_module=(Annotated[None, Field(description="null (it is for stage 3)")], None),
)


class Zero(ZERO):  # type: ignore[misc, valid-type]
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
    automatic = f"({' and '.join(AUTOS)} can also be auto)"
    steps = Annotated[Whole, Field(description=f"a whole number from 1 to 1,000,000,000 {automatic}")]
    kinds = {
        "total_num_steps": steps,
        "warmup_num_steps": steps,
        "warmup_min_lr": Annotated[float, Field(ge=0, le=100)],
        "warmup_max_lr": Annotated[Rate, Field(description=f"a number > 0 and <= 100 {automatic}")],
        "warmup_min_ratio": Annotated[float, Field(ge=0, le=1)],
        "cos_min_ratio": Annotated[float, Field(ge=0, le=1)],
        "warmup_type": Literal["log", "linear"],
        "last_batch_iteration": Annotated[Literal[-1], Field(description="-1 (a resumed run counts by itself)")],
    }
    taken = inspect.signature(getattr(lr_schedules, scheduler)).parameters
    return _section(**{name: kinds[name] for name in taken if name != "optimizer"})


AUTOS = ("total_num_steps", "warmup_max_lr")  # parameters of a scheduler
SCHEDULER_PARAMS = {scheduler: _scheduler_params(scheduler) for scheduler in get_args(Scheduler)}
SIZES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
SECTIONS: dict[str, Any] = {  # every key that is passed on to DeepSpeed, and what it holds
    **dict.fromkeys(SIZES, Size),
    "gradient_clipping": Annotated[float, Field(ge=0, le=1_000_000)],
    **dict.fromkeys(("prescale_gradients", "disable_allgather", "wall_clock_breakdown", "memory_breakdown"), bool),
    **dict.fromkeys(("dump_state", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"), bool),
    "gradient_predivide_factor": Annotated[float, Field(gt=0, le=1_000_000)],
    "steps_per_print": Print,
    "log_level": Level,
    "communication_data_type": OptionalDtype,
    "optimizer": Optimizer,
    "scheduler": create_model("Scheduler", __base__=Settings, type=(Scheduler, ...), params=(dict[str, Any], {})),
    "zero_optimization": Zero,
    "bf16": _strict(
        DeepSpeedBF16Config,
        enabled=(Enabled, False),
        **dict.fromkeys(("bf16_master_weights_and_grads", "bf16_optimizer_states"), (Off, False)),
    ),
    "fp16": _strict(
        DeepSpeedFP16Config,
        enabled=(Enabled, False),
        fp16_master_weights_and_grads=(Off, False),
        auto_cast=(Annotated[Literal[False], Field(description="false (inputs are token ids)")], False),
        initial_scale_power=(Annotated[int, Field(ge=0, le=100)], 16),
        **dict.fromkeys(("loss_scale_window", "min_loss_scale"), (Annotated[int, Field(ge=1)], 1)),
        hysteresis=(Annotated[int, Field(ge=1)], 2),
    ),
    "data_types": _section(grad_accum_dtype=Dtype),
    "activation_checkpointing": _section(
        synchronize_checkpoint_boundary=bool, profile=bool, number_checkpoints=Whole | None
    ),
    "wandb": _strict(WandbConfig),
    "comet": _strict(CometConfig, samples_log_interval=(Annotated[int, Field(ge=1)], 100)),
    "tensorboard": _strict(TensorBoardConfig, output_path=(OutputPath, "")),
    "csv_monitor": _strict(CSVConfig, output_path=(OutputPath, "")),
    "comms_logger": _strict(CommsLoggerConfig),
    "flops_profiler": _section(
        **dict.fromkeys(("enabled", "detailed"), bool),
        **dict.fromkeys(("profile_step", "top_modules"), Whole),
        module_depth=Annotated[int, Field(ge=-1, le=1000)],
        output_file=LocalPath | None,
    ),
    "checkpoint": _section(
        tag_validation=Literal["Ignore", "Warn", "Fail"],
        use_node_local_storage=Annotated[Literal[False], Field(description="false (all ranks read one folder)")],
        parallel_write=_section(pipeline_stage=bool),
    ),
}
# The section `fast_electra` is taken out before. It is known here so that a misspelling of it is recognised.
SCHEMA = create_model("DeepSpeed", __base__=_section("fast_electra", **SECTIONS), optimizer=(Optimizer, ...))
