"""`fast-electra doctor`: what this machine has, what a run needs besides, and how to get it."""

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

from fast_electra.hosts import operators, toolchain
from fast_electra.training import machine, nvidia_apex
from fast_electra_kernels import default_implementation

REQUIRED = ("torch", "deepspeed", "megatron-core", "sentencepiece", "pydantic", "numpy", "safetensors", "matplotlib")
OPTIONAL = {
    "transformers": "the benchmark beside Hugging Face's ELECTRA",
    "pyarrow": ".parquet files",
    "zstandard": ".zst files",
}
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # features that determine the speed of each precision
DISK_NEEDED = 10**9  # bytes, for the quickstart
SHARED_MEMORY_NEEDED = 2 * 66 * 2**20  # bytes, for the buffers of two ranks on the CPU
DEFAULT_PORT = 29500
INTERPRETER_NUMPY = (2, 4)  # the first numpy with which Triton's interpreter does not run


class Level(StrEnum):
    """Weight of a finding."""

    OK = "ok"
    NOTE = "note"  # something is missing that some uses need
    PROBLEM = "PROBLEM"  # the quickstart cannot run


class Finding(NamedTuple):
    """One line of the report."""

    level: Level
    what: str
    value: str


def main() -> int:
    """Print all findings; return 0 if the quickstart can run here, else 1."""
    problems = 0
    for level, what, value in findings():
        print(f"{level:<8}{what:<20}{value}", flush=True)
        problems += level is Level.PROBLEM
    many = "1 problem: fix it before running" if problems == 1 else f"{problems} problems: fix them before running"
    print(many if problems else "ready for `make quickstart`")
    return int(problems > 0)


def findings() -> Iterator[Finding]:
    """Yield all findings about this machine, in the order of the report."""
    for part in (_packages, _apex, _device, _operators, _space, _network):
        yield from part()


def _either(ready: object, what: str, value: str, otherwise: str, level: Level = Level.NOTE) -> Finding:
    """Return an OK finding of `value` if it is ready, else one of `level`, which says what to do."""
    return Finding(Level.OK, what, value) if ready else Finding(level, what, otherwise)


def _packages() -> Iterator[Finding]:
    level = Level.OK if sys.version_info >= (3, 11) else Level.PROBLEM
    yield Finding(level, "python", f"{platform.python_version()} in {sys.prefix}")
    missing = "missing: run `make setup`, or pip install -e . -c constraints.txt"
    for name in REQUIRED:
        version = _version(name)
        yield _either(version, name, version, missing, Level.PROBLEM)
    for name, use in OPTIONAL.items():
        version = _version(name)
        yield _either(version, name, version, f"missing, needed only for {use}: pip install {name}")
    numpy = tuple(map(int, (_version("numpy") or "0").split(".")[:2]))
    if numpy >= INTERPRETER_NUMPY and not torch.cuda.is_available():
        value = "too new for Triton's interpreter, in which the tests run the kernels: pip install 'numpy<2.4'"
        yield Finding(Level.NOTE, "numpy", value)


def _apex() -> Iterator[Finding]:
    """Tell NVIDIA's apex, which nothing here needs, from the package of that name on PyPI."""
    folder, problem = nvidia_apex.find()
    if folder:
        yield Finding(Level.OK, "apex", f"NVIDIA's, in {folder}; runs use it with {nvidia_apex.KEY}")
    elif importlib.util.find_spec("apex"):
        yield Finding(Level.NOTE, "apex", problem)
    elif torch.cuda.is_available():
        value = "NVIDIA's is not needed. Never `pip install apex`: the PyPI package of that name is unrelated"
        yield Finding(Level.OK, "apex", value)


def _device() -> Iterator[Finding]:
    cuda = torch.cuda.is_available()
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(Level.OK, f"gpu {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if visible and machine.numbered_devices(visible, torch.cuda.device_count()) != visible:
        value = f"{visible}: the `deepspeed` launcher can read only numbers, see nvidia-smi -L; torchrun reads all"
        yield Finding(Level.NOTE, "visible devices", value)
    flags, memory = machine.cpu_flags(), psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    known = ", ".join(flag for flag in CPU_FLAGS if flag in flags) or "none of " + ", ".join(CPU_FLAGS)
    yield Finding(Level.OK, "cpu", f"{machine.cpu_name()}: {cores} cores, {known}")
    yield Finding(Level.OK, "memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free")
    yield Finding(Level.OK, "precision", f"auto means {machine.best_dtype()} here")
    sampler = default_implementation(torch.device("cuda" if cuda else "cpu"))
    draws = f"{sampler} draws the replacements"
    yield _either(sampler == "triton" or not cuda, "sampler", draws, f"{draws}: pip install triton, which is faster")
    if torch.version.cuda and not cuda:
        value = f"torch, built for CUDA {torch.version.cuda}, finds no device, so runs use the CPU: see nvidia-smi"
        yield Finding(Level.NOTE, "gpu", value)


def _operators() -> Iterator[Finding]:
    """Look for DeepSpeed's operators and for what builds them. A GPU can do without: it has torch's Adam."""
    ready = operators.ops_ready()
    for name in operators.needed_ops():
        folder, missing = operators.op_folder(name), "not built: run `make setup`, or let the first run build it"
        if not os.access(folder, os.W_OK):
            value = f"{folder} cannot be written, not even to load what was built: set TORCH_EXTENSIONS_DIR"
            yield Finding(Level.PROBLEM, name, value)
            continue
        yield _either(operators.ops_ready((name,)), name, f"built, in {folder}", missing)
    if problems := toolchain.toolchain_problems():
        level = Level.NOTE if ready or operators.on_gpu() else Level.PROBLEM
        yield from (Finding(level, "compiler", problem) for problem in problems)
    else:
        yield Finding(Level.OK, "compiler", f"{_first_line(cpp_extension.get_cxx_compiler())}; Python.h is installed")
        yield Finding(Level.OK, "ninja", f"{_first_line('ninja')} ({shutil.which('ninja')})")


def _space() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    text = f"{free / 1e9:.1f} GB free in {Path.cwd()}"
    short = f"{text}: the quickstart needs {DISK_NEEDED / 1e9:.0f} GB"
    yield _either(free >= DISK_NEEDED, "disk", text, short, Level.PROBLEM)
    if not machine.SHARED_MEMORY.exists():
        return
    free = shutil.disk_usage(machine.SHARED_MEMORY).free
    text, needed = f"{free / 1e6:,.0f} MB free in {machine.SHARED_MEMORY}", f"{SHARED_MEMORY_NEEDED / 1e6:.0f} MB"
    short = f"{text}, but two ranks need {needed}: enlarge it (docker run --shm-size 1g)"
    enough = free >= SHARED_MEMORY_NEEDED or operators.on_gpu()
    yield _either(enough, "shared memory", text, short, Level.PROBLEM)
    if left := list(machine.SHARED_MEMORY.glob(f"{machine.SHARED_BUFFER}_{os.getuid()}_*")):
        size = sum(path.stat().st_size for path in left) / 1e6
        remedy = f"unless one is running, rm {machine.SHARED_MEMORY / machine.SHARED_BUFFER}_*"
        value = f"{len(left)} buffers left by DeepSpeed runs, {size:,.0f} MB: {remedy}"
        yield Finding(Level.NOTE, "shared memory", value)


def _network() -> Iterator[Finding]:
    for program, package in (("ssh", "openssh-client"), ("pdsh", "pdsh")):
        path = shutil.which(program) or ""
        missing = f"missing, needed only for runs on several machines: apt-get install {package}"
        yield _either(path, program, path, missing)
    port = f"{DEFAULT_PORT}, DeepSpeed's default, is"
    with socket.socket() as listener:
        try:
            listener.bind(("", DEFAULT_PORT))
            yield Finding(Level.OK, "port", f"{port} free")
        except OSError:
            listener.bind(("", 0))
            yield Finding(Level.NOTE, "port", f"{port} taken: deepspeed --master_port {listener.getsockname()[1]}")


def _version(package: str) -> str:
    """Return the version of an installed package, or an empty text."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _first_line(program: str) -> str:
    """Return the first line of `program --version`; the program exists."""
    result = subprocess.run([*program.split(), "--version"], capture_output=True, text=True, timeout=30, check=False)
    return (result.stdout.splitlines() or [program])[0]
