"""This machine: its device, its CPU, and the precision in which it computes best."""

import os
import platform
import shutil
from pathlib import Path

import psutil
import torch

from fast_electra.deepspeed_config import Machine
from fast_electra.model.attention import runs_triton
from fast_electra.settings import UserError
from fast_electra_kernels.processor import multiplies_bf16

FORCED_DTYPE = "FAST_ELECTRA_DTYPE"  # environment variable: the precision that `auto` means, whatever the machine is
SHARED_MEMORY, SHARED_BUFFER = Path("/dev/shm"), "deepspeed_allreduce_buffer"
LEAST_SHARED = 32 * 2**20  # bytes free in it; with less, ranks were seen to die without a word (docker gives 64 MiB)


def on_gpu() -> bool:
    """Return whether DeepSpeed will use a CUDA device. This determines what has to be built."""
    return os.environ.get("DS_ACCELERATOR", "cuda") == "cuda" and torch.cuda.is_available()


def this_machine() -> Machine:
    """Return what a config must know of this machine. The launcher's environment gives the number of processes."""
    _check_ranks()
    _check_shared_memory()
    return Machine(int(os.environ.get("WORLD_SIZE", "1")), best_dtype(), on_gpu(), not on_gpu() or runs_triton())


def _check_ranks() -> None:
    """Refuse numbers in the environment that no launcher would set: ranks would fail, or wait for one another."""
    world, devices = os.environ.get("WORLD_SIZE", "1"), torch.cuda.device_count() if on_gpu() else 2**20
    ranks = int(world) if world.isdecimal() else 0
    for name, allowed in (
        ("WORLD_SIZE", range(1, 2**20)),
        ("RANK", range(ranks)),
        ("LOCAL_RANK", range(devices)),
        ("MASTER_PORT", range(2**16)),
    ):
        value = os.environ.get(name)
        if value is not None and not (value.isdecimal() and int(value) in allowed):
            bounds = f"a whole number from {allowed[0]} to {allowed[-1]}"
            raise UserError(
                f"{name} in the environment must be {bounds}, not {value!r}: `deepspeed` sets it, so unset it"
            )


def _check_shared_memory() -> None:
    """Refuse to start several ranks on a CPU where they have no room to exchange gradients."""
    if on_gpu() or os.environ.get("WORLD_SIZE", "1") == "1" or not SHARED_MEMORY.exists():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free if os.access(SHARED_MEMORY, os.W_OK) else 0
    if free < LEAST_SHARED:
        room = f"{SHARED_MEMORY} has room for {free / 1e6:.0f} MB, and ranks on a CPU need 70 MB each"
        raise UserError(f"{room}: remove old files there, or enlarge it (docker run --shm-size 1g)")


def device_memory() -> float:
    """Return the bytes of memory that this process may use: its GPU's, or its share of the machine's."""
    if on_gpu():
        return float(torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", "0"))).total_memory)
    processes = os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))  # deepspeed's name, torchrun's
    return float(psutil.virtual_memory().total / int(processes))


def best_dtype() -> str:
    """Return bf16 if the device multiplies matrices in it, fp16 on older GPUs, fp32 on other CPUs.

    The environment variable FAST_ELECTRA_DTYPE overrides the choice.
    """
    if forced := os.environ.get(FORCED_DTYPE):
        if forced not in ("fp32", "bf16", "fp16"):
            raise UserError(f"{FORCED_DTYPE} must be fp32, bf16 or fp16, not {forced!r}")
        return forced
    if on_gpu():
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    return "bf16" if multiplies_bf16() else "fp32"


def cpu_flags() -> set[str]:
    """Return the CPU's features, as the kernel names them; empty where there is no /proc."""
    return set(_cpuinfo("flags", "Features").split())


def cpu_name() -> str:
    """Return the CPU's model name; empty where nothing tells it."""
    return _cpuinfo("model name") or platform.processor()


def numbered_devices(visible: str, count: int) -> str:
    """Return the value of CUDA_VISIBLE_DEVICES as numbers: `visible` itself, or those of the `count` devices it names.

    DeepSpeed fails where it holds anything else, such as UUIDs.
    """
    numbers = [number.strip() for number in visible.split(",")]
    return visible if all(number.isdecimal() for number in numbers) else ",".join(map(str, range(count)))


def _cpuinfo(*names: str) -> str:
    """Return the first value in /proc/cpuinfo whose name begins with one of `names`; empty if there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")


def unlink_shared_buffers(rank: int) -> None:
    """Free deepspeed_shm_comm's 66 MiB of shared memory when this rank ends, however it ends; DeepSpeed never does.

    Call it on every rank once all have joined the process group and waited for each other. By then each has mapped all
    buffers, and their names are not needed again. Without this call every run leaves its buffers in /dev/shm.
    """
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    buffer = SHARED_MEMORY / f"{SHARED_BUFFER}_{os.getuid()}_{address}_{port}_{rank}"
    buffer.unlink(missing_ok=True)
