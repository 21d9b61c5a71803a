"""`fast-electra doctor`: what this machine has, what it lacks for a run, and the remedy for each lack."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch.utils import cpp_extension

from fast_electra.training import operators
from fast_electra.training.engines import best_dtype
from fast_electra_kernels import default_implementation

REQUIRED = ("torch", "deepspeed", "megatron-core", "sentencepiece", "pydantic", "numpy", "safetensors", "matplotlib")
OPTIONAL = {
    "transformers": "the benchmark beside Hugging Face's ELECTRA",
    "pyarrow": ".parquet files",
    "zstandard": ".zst files",
}
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # what the speed of each precision hangs on
DISK_NEEDED = 10**9  # bytes, for the quickstart
SHARED_MEMORY_NEEDED = 2 * 66 * 2**20  # bytes, for the buffers of two ranks on the CPU
DEFAULT_PORT = 29500


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"  # something may be wanting, some day
    FAULT = "FAULT"  # the quickstart cannot run


class Finding(NamedTuple):
    """One line of the report."""

    level: Level
    what: str
    value: str


def main() -> int:
    """Print all findings; 0 if the quickstart can run here, else 1."""
    faults = 0
    for level, what, value in findings():
        print(f"{level:<6}{what:<20}{value}", flush=True)
        faults += level is Level.FAULT
    print(f"{faults} fault{'s' * (faults > 1)}: mend them first" if faults else "ready for `make quickstart`")
    return int(faults > 0)


def findings() -> Iterator[Finding]:
    """All that is known of this machine, in the order of the report."""
    for part in (_packages, _apex, _device, _operators, _space, _network):
        yield from part()


def _packages() -> Iterator[Finding]:
    level = Level.OK if sys.version_info >= (3, 11) else Level.FAULT
    yield Finding(level, "python", f"{platform.python_version()} in {sys.prefix}")
    for name in REQUIRED:
        version = _version(name)
        missing = "missing: run `make setup`, or pip install -e . -c constraints.txt"
        yield Finding(Level.OK if version else Level.FAULT, name, version or missing)
    for name, use in OPTIONAL.items():
        version = _version(name)
        yield Finding(Level.OK if version else Level.NOTE, name, version or f"missing; for {use}: pip install {name}")


def _apex() -> Iterator[Finding]:
    """NVIDIA's apex, which some set-ups of DeepSpeed use; the package of that name on PyPI is something else."""
    spec = importlib.util.find_spec("apex")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    if any((folder / "optimizers" / "fused_adam.py").exists() for folder in folders):
        yield Finding(Level.OK, "apex", f"NVIDIA's, in {folders[0]}")
    elif spec:
        value = "PyPI's unrelated web toolkit, not NVIDIA's: pip uninstall apex"
        yield Finding(Level.NOTE, "apex", value)
    elif torch.cuda.is_available():
        value = "missing (optional): build NVIDIA's from its source; pip install apex fetches an unrelated package"
        yield Finding(Level.NOTE, "apex", value)


def _device() -> Iterator[Finding]:
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(Level.OK, f"gpu {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    flags = operators.cpu_flags()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    known = ", ".join(flag for flag in CPU_FLAGS if flag in flags) or "none of " + ", ".join(CPU_FLAGS)
    yield Finding(Level.OK, "cpu", f"{cores} cores, {known}")
    yield Finding(Level.OK, "memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free")
    yield Finding(Level.OK, "precision", f"auto means {best_dtype()} here")
    sampler = default_implementation(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if torch.cuda.is_available() and sampler != "triton":
        yield Finding(Level.NOTE, "sampler", f"{sampler}; pip install triton makes drawing faster")
    else:
        yield Finding(Level.OK, "sampler", f"{sampler} draws the replacements")
    if torch.version.cuda and not torch.cuda.is_available():
        value = f"torch is a CUDA {torch.version.cuda} build but finds no device: see nvidia-smi; runs use the CPU"
        yield Finding(Level.NOTE, "gpu", value)


def _operators() -> Iterator[Finding]:
    """DeepSpeed's operators, and what is needed to build them."""
    ready = operators.ops_ready()
    for name in operators.needed_ops():
        built = operators.ops_ready((name,))
        value = (
            f"built, in {operators.op_folder(name)}"
            if built
            else "not built: run `make setup`, or the first run does it"
        )
        yield Finding(Level.OK if built else Level.NOTE, name, value)
    if problems := operators.toolchain_problems():
        yield from (Finding(Level.NOTE if ready else Level.FAULT, "compiler", problem) for problem in problems)
    else:
        yield Finding(Level.OK, "compiler", f"{_first_line(cpp_extension.get_cxx_compiler())}; Python.h is there")
        yield Finding(Level.OK, "ninja", f"{_first_line('ninja')} ({shutil.which('ninja')})")


def _space() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    text = f"{free / 1e9:.1f} GB free in {Path.cwd()}"
    if free < DISK_NEEDED:
        yield Finding(Level.FAULT, "disk", f"{text}: the quickstart needs {DISK_NEEDED / 1e9:.0f} GB")
    else:
        yield Finding(Level.OK, "disk", text)
    if not operators.SHARED_MEMORY.exists():
        return
    free = shutil.disk_usage(operators.SHARED_MEMORY).free
    text = f"{free / 1e6:,.0f} MB free in {operators.SHARED_MEMORY}"
    if free < SHARED_MEMORY_NEEDED and not operators.on_gpu():
        remedy = f"two ranks need {SHARED_MEMORY_NEEDED / 1e6:.0f}: enlarge it (docker run --shm-size 1g)"
        yield Finding(Level.FAULT, "shared memory", f"{text}, {remedy}")
    else:
        yield Finding(Level.OK, "shared memory", text)
    left = list(operators.SHARED_MEMORY.glob(f"{operators.SHARED_BUFFER}_{os.getuid()}_*"))
    if left:
        size = sum(path.stat().st_size for path in left) / 1e6
        remedy = f"unless one is running, rm {operators.SHARED_MEMORY / operators.SHARED_BUFFER}_*"
        value = f"{len(left)} buffers left by DeepSpeed runs, {size:,.0f} MB: {remedy}"
        yield Finding(Level.NOTE, "shared memory", value)


def _network() -> Iterator[Finding]:
    for program, package in (("ssh", "openssh-client"), ("pdsh", "pdsh")):
        path = shutil.which(program)
        value = path or f"missing; for runs on several machines: apt-get install {package}"
        yield Finding(Level.OK if path else Level.NOTE, program, value)
    with socket.socket() as listener:
        try:
            listener.bind(("", DEFAULT_PORT))
            yield Finding(Level.OK, "port", f"{DEFAULT_PORT}, DeepSpeed's default, is free")
        except OSError:
            listener.bind(("", 0))
            value = (
                f"{DEFAULT_PORT}, DeepSpeed's default, is taken: deepspeed --master_port {listener.getsockname()[1]}"
            )
            yield Finding(Level.NOTE, "port", value)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(program: str) -> str:
    """What `program --version` says first; it exists."""
    result = subprocess.run([*program.split(), "--version"], capture_output=True, text=True, timeout=30, check=False)
    return (result.stdout.splitlines() or [program])[0]
