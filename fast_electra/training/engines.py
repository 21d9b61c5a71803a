"""DeepSpeed's engines. Few files import DeepSpeed: see docs/architecture.md."""

import io
import logging
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import deepspeed
import deepspeed.comm
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.profiling.flops_profiler.profiler import FlopsProfiler, get_module_flops
from deepspeed.utils import groups, safe_get_full_fp32_param
from torch import Tensor, nn
from torch.distributed import DistNetworkError
from torch.distributed.distributed_c10d import _set_pg_timeout

from fast_electra.huggingface.masked_lm import HuggingFaceMaskedLM
from fast_electra.model.encoder import Encoder
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.objectives.objective import Sums
from fast_electra.settings import UserError
from fast_electra.training import nvidia_apex
from fast_electra.training.checkpoint_files import CheckpointFiles
from fast_electra.training.graphs import LIMIT, ReplayedModel
from fast_electra.training.machine import numbered_devices, on_gpu, unlink_shared_buffers
from fast_electra.training.optimizer import DecoupledAdamax, parameter_groups, spare_reduction

Engine = Any  # deepspeed.DeepSpeedEngine, which has no type hints
T = TypeVar("T")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
START_LIMIT = timedelta(hours=2)  # rank 0 may build an operator or hash a large corpus while the others wait
UPDATE_LIMIT = timedelta(minutes=15)  # ample for rank 0 to write or hash a checkpoint; ends the job when a host is lost
WORD = 30.0  # seconds of waiting for the other ranks at the start, after which a word about it is said


class SharedError(UserError):
    """A mistake that every rank raises alike, so rank 0 speaks for all."""

    agreed = True


@dataclass(frozen=True)
class Ranks:
    """This process's place among all."""

    rank: int
    world: int
    device: torch.device


def check_launcher() -> None:
    """Refuse to start where a launcher of another kind started several processes and numbered none."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"):
        if "RANK" not in os.environ and int(os.environ.get(name, "1")) > 1:
            raise UserError(
                f"{name} says that there are several processes, but RANK is not set, so each would train alone: start "
                "them with `deepspeed` (or torchrun), one launcher a machine"
            )


def start_ranks() -> Ranks:
    """Join the process group that the launcher describes in the environment, or be alone if there is no launcher."""
    check_launcher()
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    if os.environ["WORLD_SIZE"] == "1" and "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun listens there itself
        # One process meets nobody. So any port will do, and the launcher's may be taken.
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    os.environ.setdefault("MASTER_PORT", "29500")
    local_rank = int(os.environ["LOCAL_RANK"])
    if on_gpu():
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)  # the CPU only prepares batches, and waking its threads took 8 ms an operator
        torch.cuda.set_device(local_rank)
        torch.cuda.init()  # CUDA has read the variable now, and only DeepSpeed reads it again
        if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
            os.environ["CUDA_VISIBLE_DEVICES"] = numbered_devices(visible, torch.cuda.device_count())
    # The run's config.json holds what DeepSpeed prints at each start. Warnings about its own use of torch are not ours.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    warnings.filterwarnings("ignore", message=r"barrier\(\): using the device")  # when DeepSpeed saves a checkpoint
    with _word_about_waiting(), redirect_stdout(io.StringIO()):  # DeepSpeed says of each operator that it was built
        try:
            deepspeed.init_distributed(verbose=False, timeout=START_LIMIT)
        except DistNetworkError as error:
            if "EADDRINUSE" not in str(error):
                raise
            port = f"port {os.environ['MASTER_PORT']}, where the ranks meet, is taken on this host"
            raise UserError(f"{port}: choose another, deepspeed --master_port {_free_port()} ...") from None
        wait_for_ranks()  # they have their shared buffers now
    unlink_shared_buffers(deepspeed.comm.get_rank())
    device = torch.device(get_accelerator().device_name(local_rank) if on_gpu() else "cpu")
    return Ranks(deepspeed.comm.get_rank(), deepspeed.comm.get_world_size(), device)


def limit_waits(limit: timedelta) -> None:
    """Let a rank that waits for another give up after `limit`: in the group of all, and in DeepSpeed's copy of it."""
    for group in (None, groups._get_data_parallel_group()):
        _set_pg_timeout(limit, group)


def stop_ranks() -> None:
    """Leave the process group. gloo's threads end during the pause; without it the interpreter may abort."""
    wait_for_ranks()
    deepspeed.comm.destroy_process_group()
    time.sleep(0.5)


@contextmanager
def _word_about_waiting() -> Iterator[None]:
    """Say, on one rank of each machine, that this takes long: perhaps a host or its launcher is missing."""
    rank, world, address, port = (os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    word = f"rank {rank} has waited {WORD:.0f} s for {world} ranks to meet at {address}, port {port}: is one missing?"
    timer = threading.Timer(WORD, print, (word,), {"file": sys.stderr})
    timer.daemon = True
    if os.environ["LOCAL_RANK"] == "0":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the element-wise sum over all ranks, computed in place."""
    deepspeed.comm.all_reduce(values)
    return values


def add_over_ranks(rows: list[Sums]) -> list[Sums]:
    """Return rows of sums added over all ranks, on the CPU: one reduction for all rows.

    There is at least one row, and the names and shapes are the same on every rank.
    """
    values = [value for sums in rows for value in sums.values()]
    total = sum_over_ranks(torch.cat([value.flatten() for value in values])).cpu()
    parts = iter(total.split([value.numel() for value in values]))
    return [{name: next(parts).view(value.shape) for name, value in sums.items()} for sums in rows]


def from_rank_0(ranks: Ranks, work: Callable[[], T]) -> T:
    """Let rank 0 do something for all: return its result on every rank, or raise its error on every rank.

    Raises:
        SharedError: rank 0 met a UserError or an OSError.
    """
    found: list[Any] = [None, ""]
    if ranks.rank == 0:
        try:
            found[0] = work()
        except (UserError, OSError) as error:
            found[1] = str(error)
    if ranks.world > 1:
        deepspeed.comm.broadcast_object_list(found, src=0, device=ranks.device)
    if found[1]:
        raise SharedError(found[1])
    result: T = found[0]
    return result


def raise_together(ranks: Ranks, error: str) -> None:
    """Raise a SharedError on all ranks if any rank has an error: the first one, in rank order."""
    errors = [error] * ranks.world
    if ranks.world > 1:
        deepspeed.comm.all_gather_object(errors, error)
    if any(errors):
        raise SharedError(next(filter(None, errors)))


def tell(notes: Sequence[str], ranks: Ranks) -> None:
    """Print what a user should know, a line each, on rank 0."""
    if ranks.rank == 0:
        print("".join(f"note: {note}\n" for note in notes), end="", flush=True)


def wait_for_ranks() -> None:
    """Wait until every rank has come here. NCCL's own barrier would warn that it guesses the device."""
    int(sum_over_ranks(torch.ones((), device="cuda" if on_gpu() else "cpu")))  # `int` waits for the GPU


def highest_over_ranks(number: int, ranks: Ranks) -> int:
    """Return the highest of the numbers that the ranks give."""
    if ranks.world == 1:
        return number
    highest = torch.full((), number, device=ranks.device)
    deepspeed.comm.all_reduce(highest, op=deepspeed.comm.ReduceOp.MAX)
    return int(highest)


def training_engine(
    model: nn.Module, config: dict[str, Any], limit: timedelta = UPDATE_LIMIT, apex: bool = False
) -> Engine:
    """Return a ZeRO engine that trains `model` under a resolved DeepSpeed config; `apex`: with NVIDIA's norms and Adam.

    Gradients that are not finite never reach the weights: the engine checks them over all ranks and skips the update.
    From now on a rank that waits for another gives up after `limit`.
    """
    params = config["optimizer"].get("params", {})
    optimizer: Any = nvidia_apex.use(model, params) if apex else None  # else the one that the config names
    if config["optimizer"]["type"] == "Adamax":
        optimizer = partial(DecoupledAdamax, **params)
    parameters = parameter_groups(model, params.get("weight_decay", 0.0))
    untested = optimizer is not None  # DeepSpeed then asks for a confirmation
    # By default the host would wait for the GPU in every micro-batch, for a throughput timer that nobody reads.
    config = config | {"timers": {"throughput": {"enabled": False}}, "zero_allow_untested_optimizer": untested}
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=parameters, optimizer=optimizer, config=config, dist_init_required=False
    )
    if engine.lr_scheduler is not None:
        engine.lr_scheduler.step(1)  # DeepSpeed begins at 0 and repeats it: two updates of learning rate 0
    limit_waits(limit)
    engine.checkpoint_engine = CheckpointFiles(engine._config)
    engine._copy_recovery_script = lambda folder: None  # DeepSpeed's script, which runs code that a checkpoint holds
    engine.optimizer.check_grad_overflow = True
    if engine.optimizer.compute_grad_norm:  # the norm is not finite if a gradient is not: no need to look at each one
        engine.optimizer.has_overflow = lambda partition_gradients=True: False
    engine.optimizer.loss_scaler.raise_error_at_min_scale = False  # the loop counts such updates and ends the run
    # On a GPU the hooks cost less, and 16-bit gradients need not live until the backward pass has ended.
    plain = engine.device.type == "cpu" and engine.optimizer.gradient_accumulation_dtype == torch.float32
    if plain and deepspeed.comm.get_world_size() == 1 and not config.get("communication_data_type"):
        spare_reduction(engine.optimizer)
    for encoder in model.modules():
        if isinstance(encoder, Encoder) and encoder.settings.activation_checkpointing:
            deepspeed.checkpointing.configure(mpu_=None, deepspeed_config=config)
            encoder.checkpoint = deepspeed.checkpointing.checkpoint
    return engine


def inference_engine(
    model: MaskedLanguageModel | HuggingFaceMaskedLM, dtype: str, cuda_graph: bool = True
) -> ReplayedModel:
    """Freeze a model on its device and give it to DeepSpeed's inference engine in a dtype of DTYPES.

    The CUDA graph of that engine serves a single shape, so it stays off. `ReplayedModel` has one for each shape.
    """
    model.requires_grad_(False).eval()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    engine = deepspeed.init_inference(model, config={"dtype": DTYPES[dtype], "tensor_parallel": {"tp_size": 1}})
    for name, buffer in buffers.items():  # the engine rounds these too, and angles of rotary positions need 32 bit
        place, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(place), leaf, buffer)
    return ReplayedModel(engine, model, limit=LIMIT if cuda_graph else 0)


def skipped(engine: Engine) -> bool:
    """Return whether the last step found gradients that are not finite and left the weights alone."""
    return bool(engine.optimizer.overflow)


def full_weights(engine: Engine) -> dict[str, Tensor]:
    """Return every parameter in fp32 on the CPU, from the ranks' master copies. All ranks must call this."""
    weights = {}
    for name, parameter in engine.module.named_parameters():
        full = safe_get_full_fp32_param(parameter)
        weights[name] = (parameter.detach() if full is None else full).float().cpu().clone()
    return weights


def forward_flops(models: dict[str, nn.Module], work: Callable[[], object]) -> dict[str, int]:
    """Return the FLOPs of each model's own forward passes while `work` runs, as DeepSpeed's profiler counts them."""
    profiler = FlopsProfiler(nn.ModuleDict(models))
    profiler.start_profile()
    try:
        work()
        return {name: int(get_module_flops(model)) for name, model in models.items()}
    finally:
        profiler.end_profile()
