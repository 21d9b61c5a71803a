"""DeepSpeed's engines. Nothing but this file, operators.py and deepspeed_config.py imports DeepSpeed."""

import logging
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import deepspeed
import deepspeed.comm
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.profiling.flops_profiler.profiler import FlopsProfiler, get_module_flops
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

from fast_electra.deepspeed_config import Machine
from fast_electra.model.dropout import KeyedDropout
from fast_electra.model.encoder import Encoder
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.objectives.objective import Sums
from fast_electra.settings import UserError
from fast_electra.training import operators
from fast_electra.training.graphs import Captured

Engine = Any  # deepspeed.DeepSpeedEngine, which has no type hints
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORCED_DTYPE = "FAST_ELECTRA_DTYPE"  # environment variable: the precision that `auto` means, whatever the machine is


def this_machine() -> Machine:
    """Return what a config must know of this machine. The launcher's environment gives the number of processes."""
    return Machine(int(os.environ.get("WORLD_SIZE", "1")), best_dtype(), operators.on_gpu())


def best_dtype() -> str:
    """Return bf16 if the device multiplies matrices in it, fp16 on older GPUs, fp32 on other CPUs.

    A CPU without bf16 instructions computes bf16 products many times slower than fp32 ones. The environment variable
    FAST_ELECTRA_DTYPE overrides the choice.

    Raises:
        UserError: the variable holds something else.
    """
    if forced := os.environ.get(FORCED_DTYPE):
        if forced not in DTYPES:
            raise UserError(f"{FORCED_DTYPE} must be one of {', '.join(DTYPES)}, not {forced!r}")
        return forced
    if operators.on_gpu():
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    capability = torch.backends.cpu.get_cpu_capability()
    has_bf16 = "AVX512" in capability and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if has_bf16 or torch.cpu._is_amx_tile_supported() else "fp32"


@dataclass(frozen=True)
class Ranks:
    """This process's place among all."""

    rank: int
    world: int
    device: torch.device


def start_ranks() -> Ranks:
    """Joins the process group that the launcher describes in the environment; alone without a launcher."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"):
        if "RANK" not in os.environ and int(os.environ.get(name, "1")) > 1:
            raise UserError(
                f"{name} says that there are several processes, but RANK is not set, so each would train alone: start "
                "them with `deepspeed` (or torchrun), one launcher a machine"
            )
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "29500")
    local_rank = int(os.environ["LOCAL_RANK"])
    if operators.on_gpu():
        torch.cuda.set_device(local_rank)
    # What DeepSpeed tells at each start is in the run's config.json; warnings about its own use of torch are not ours.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # Rank 0 may hash a large corpus while the others wait: the default of ten minutes is too short for that.
    deepspeed.init_distributed(verbose=False, timeout=timedelta(hours=2))
    deepspeed.comm.barrier()  # the ranks have their shared buffers
    operators.unlink_shared_buffers(deepspeed.comm.get_rank())
    device = torch.device(get_accelerator().device_name(local_rank) if operators.on_gpu() else "cpu")
    return Ranks(deepspeed.comm.get_rank(), deepspeed.comm.get_world_size(), device)


def stop_ranks() -> None:
    """Leaves the process group. The pause lets gloo's threads end before the interpreter, which else may abort."""
    deepspeed.comm.barrier()
    deepspeed.comm.destroy_process_group()
    time.sleep(0.5)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the element-wise sum over all ranks, computed in place."""
    deepspeed.comm.all_reduce(values)
    return values


def add_over_ranks(rows: list[Sums]) -> list[Sums]:
    """Return rows of sums added over all ranks, on the CPU: one reduction for all rows.

    Args:
        rows: at least one; the names and shapes are the same on every rank.
    """
    values = [value for sums in rows for value in sums.values()]
    total = sum_over_ranks(torch.cat([value.flatten() for value in values])).cpu()
    parts = iter(total.split([value.numel() for value in values]))
    return [{name: next(parts).view(value.shape) for name, value in sums.items()} for sums in rows]


def wait_for_ranks() -> None:
    deepspeed.comm.barrier()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for the optimizer: matrices decay; biases, norms, Admin's scales and the relative bias do not."""
    decayed = [p for name, p in model.named_parameters() if p.dim() > 1 and "relative_bias" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() <= 1 or "relative_bias" in name]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def training_engine(model: nn.Module, config: dict[str, Any]) -> Engine:
    """A ZeRO engine that trains `model` under a resolved DeepSpeed config.

    Gradients that are not finite never reach the weights: the engine checks them over all ranks and skips the update.
    """
    params = config["optimizer"].get("params", {})
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=parameter_groups(model, params.get("weight_decay", 0.0)),
        config=config,
        dist_init_required=False,
    )
    # In fp32 the norm is checked, which costs less; in 16 bit each gradient is, whatever the config says.
    if engine.optimizer.dtype != torch.float32 or not engine.optimizer.compute_grad_norm:
        engine.optimizer.check_grad_overflow = True
    engine.optimizer.loss_scaler.raise_error_at_min_scale = False  # the loop counts and ends such runs itself
    for encoder in model.modules():
        if isinstance(encoder, Encoder) and encoder.settings.activation_checkpointing:
            deepspeed.checkpointing.configure(mpu_=None, deepspeed_config=config)
            encoder.checkpoint = deepspeed.checkpointing.checkpoint
    return engine


class FrozenModel(NamedTuple):
    """The auxiliary in its inference engine: a `replacement.auxiliary.FrozenMaskedLM`."""

    engine: Captured
    model: MaskedLanguageModel

    @property
    def head(self) -> tuple[Tensor, Tensor]:
        """Weight [V, E] and bias [V] of the vocabulary head."""
        return self.model.head

    def hidden(
        self, tokens_BL: Tensor, attended_BL: Tensor | None, positions_M: Tensor, drop: KeyedDropout | None = None
    ) -> Tensor:
        """Return what the vocabulary head multiplies, [M, E]; see `FrozenMaskedLM`."""
        return self.engine(tokens_BL, attended_BL, positions_M, hidden_only=True, drop=drop)


def inference_engine(model: MaskedLanguageModel, dtype: str, cuda_graph: bool = True) -> FrozenModel:
    """Freeze a model and give it to DeepSpeed's inference engine, in eval mode.

    That engine's own CUDA graph would have one shape for ever, so it stays off. `Captured` has a graph for each shape.

    Args:
        model: on its device; it is changed.
        dtype: a key of DTYPES.
        cuda_graph: whether the model is replayed as CUDA graphs on a GPU.
    """
    model.requires_grad_(False)
    model.eval()
    config = {"dtype": DTYPES[dtype], "tensor_parallel": {"tp_size": 1}}
    engine = deepspeed.init_inference(model, config=config)
    return FrozenModel(Captured(engine) if cuda_graph else Captured(engine, limit=0), model)


def skipped(engine: Engine) -> bool:
    """Whether the last step found gradients that are not finite and left the weights alone."""
    return bool(engine.optimizer.overflow)


def full_weights(engine: Engine) -> dict[str, Tensor]:
    """Every parameter in fp32, gathered from the ranks' master copies. All ranks must call this; CPU tensors."""
    weights = {}
    for name, parameter in engine.module.named_parameters():
        full = safe_get_full_fp32_param(parameter)
        weights[name] = (parameter.detach() if full is None else full).float().cpu().clone()
    return weights


def forward_flops(models: dict[str, nn.Module], work: Callable[[], object]) -> dict[str, int]:
    """FLOPs of each model's own forward passes while `work` runs, as DeepSpeed's flops profiler counts them."""
    profiler = FlopsProfiler(nn.ModuleDict(models))
    profiler.start_profile()
    try:
        work()
        return {name: int(get_module_flops(model)) for name, model in models.items()}
    finally:
        profiler.end_profile()
