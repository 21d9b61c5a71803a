"""DeepSpeed's C++ and CUDA operators are compiled on first use: build them once, in one process, before any launch.

torch guards such a build by a file named `lock` in the operator's folder, and every other loader waits until that file
is gone. A killed build leaves it behind, and then every later run would wait for ever. So `prebuild` (part of
`make setup`) compiles ahead of training, and `ensure` (first thing in a launch script) makes sure that what follows
can only load.

A builder keeps its `lock` open while it works. Hence the rule: a lock that no living process of this machine holds
open is stale. Our own builds hold an flock besides, which the kernel releases when a process dies, however it dies.

An operator is rebuilt whenever the compiler's command line or the version of ninja changes, so two environments that
share a folder would rebuild at each other's every run. Hence each virtual environment has a folder of its own.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from torch.utils import cpp_extension

from fast_electra.settings import UserError

BUILDERS = {"deepspeed_shm_comm": "ShareMemCommBuilder", "fused_adam": "FusedAdamBuilder"}
SHARED_MEMORY, SHARED_BUFFER = Path("/dev/shm"), "deepspeed_allreduce_buffer"
STAMP = "fast_electra.json"
BUILD_TIMEOUT = 1200.0  # seconds; both operators take about 70 s on two idle cores, several minutes on busy ones


def on_gpu() -> bool:
    """Whether DeepSpeed will use a CUDA device, which decides what has to be built."""
    return os.environ.get("DS_ACCELERATOR", "cuda") == "cuda" and torch.cuda.is_available()


def needed_ops(fused_adam: bool = True) -> tuple[str, ...]:
    """Names of the operators that a training run loads on this machine; `fused_adam` is False for torch's own Adam."""
    shared_memory = not on_gpu() and sys.platform == "linux"
    return ("deepspeed_shm_comm",) * shared_memory + ("fused_adam",) * fused_adam


def op_folder(name: str) -> Path:
    """Where torch builds an operator: in TORCH_EXTENSIONS_DIR, which `prepare_environment` may set."""
    prepare_environment()
    return Path(cpp_extension._get_build_directory(name, verbose=False))


def ops_ready(names: tuple[str, ...] | None = None) -> bool:
    """Whether the operators (default: all that are needed) are built for this Python, torch, DeepSpeed and CPU."""
    return all(_is_built(op_folder(name)) for name in (needed_ops() if names is None else names))


def ensure(fused_adam: bool = True, timeout: float = BUILD_TIMEOUT) -> None:
    """Make sure that the operators can be loaded at once: a launch script calls it before any process group starts.

    Takes milliseconds when `make setup` has built them. Otherwise the first rank of each machine builds and the others
    wait.

    Args:
        fused_adam: whether the run uses DeepSpeed's FusedAdam.
        timeout: seconds to wait for another process's build.

    Raises:
        UserError: no compiler, the build failed, or another process's build did not end in time.
    """
    names = needed_ops(fused_adam)
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        prebuild(names, timeout)
        return
    message = f"the first rank has not built DeepSpeed's operators within {timeout:.0f} s: run `make setup` first"
    _wait_until(lambda: ops_ready(names), timeout, message)


def prebuild(names: tuple[str, ...] | None = None, timeout: float = BUILD_TIMEOUT) -> None:
    """Build the operators (default: all that this machine needs) that are not built yet, one after the other.

    Raises:
        UserError: as in `ensure`.
    """
    names = needed_ops() if names is None else names
    if ops_ready(names) and not any((op_folder(name) / "lock").exists() for name in names):
        return
    with _only_builder(timeout):
        for name in names:
            folder = op_folder(name)
            message = f"{folder / 'lock'} has been held for {timeout:.0f} s: if nothing is being built, remove it"
            _wait_until(lambda folder=folder: remove_stale_lock(folder), timeout, message)  # type: ignore[misc]
            if not _is_built(folder):
                _build(name)


def remove_stale_lock(folder: Path) -> bool:
    """Remove what a killed build left in an operator's folder; never while a build is alive.

    An unfinished folder goes as a whole: compilers that outlived the kill then write into a folder that is no more,
    not into the next build.

    Returns:
        True if the folder is free (there was no lock, or it was stale), False if a living process holds the lock.
    """
    lock = folder / "lock"
    try:
        first = lock.stat()
        if _is_held(lock):
            return False
        time.sleep(1.0)  # a builder closes the lock just before it removes it
        second = lock.stat()
        if (first.st_ino, first.st_mtime_ns) != (second.st_ino, second.st_mtime_ns) or _is_held(lock):
            return False
    except FileNotFoundError:
        return True
    if _is_built(folder):
        lock.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"removed what a killed build left in {folder}", flush=True)
    return True


def toolchain_problems() -> list[str]:
    """What keeps this machine from compiling operators, each with its remedy; empty if nothing does."""
    prepare_environment()
    problems = []
    compiler = cpp_extension.get_cxx_compiler().split()[0]
    if shutil.which(compiler) is None:
        problems.append(f"no C++ compiler ({compiler}): install g++ (Debian: apt-get install g++), or set CXX")
    if shutil.which("ninja") is None:
        problems.append("no ninja on PATH: pip install ninja, and activate the environment (. .venv/bin/activate)")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.exists():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        problems.append(f"no {header}: install Python's headers (Debian: apt-get install python{version}-dev)")
    if on_gpu() and cpp_extension.CUDA_HOME is None:
        problems.append(
            f"no nvcc: install the CUDA toolkit {torch.version.cuda} and set CUDA_HOME, or use torch's Adam "
            '("optimizer": {"params": {"torch_adam": true}} in the DeepSpeed config)'
        )
    return problems


def cpu_flags() -> set[str]:
    """The CPU's features, in the kernel's words; empty where there is no /proc."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())


def prepare_environment() -> None:
    """Let torch find this environment's ninja first, and build into this environment, unless the user said where.

    A python that was called by its full path has neither its script folder nor, maybe, any ninja on PATH.
    """
    scripts = sysconfig.get_path("scripts")
    ninja = shutil.which("ninja", path=scripts)
    if ninja and shutil.which("ninja") != ninja:
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])
    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))


def unlink_shared_buffers(rank: int) -> None:
    """Free deepspeed_shm_comm's 66 MiB of shared memory when this rank ends, however it ends; DeepSpeed never does.

    Call it on every rank once all have joined the process group and passed a barrier: by then each has mapped the
    buffers of all, and the names are needed no more. Without it every run leaves its buffers in /dev/shm.
    """
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    buffer = SHARED_MEMORY / f"{SHARED_BUFFER}_{os.getuid()}_{address}_{port}_{rank}"
    buffer.unlink(missing_ok=True)


def _build(name: str) -> None:
    if problems := toolchain_problems():
        raise UserError(f"cannot build DeepSpeed's operator {name}: {'; '.join(problems)}")
    print(f"building DeepSpeed's operator {name} in {op_folder(name)} (once; a minute or more)", flush=True)
    started = time.monotonic()
    if (op_folder(name) / STAMP).exists():  # built for something else; ninja does not notice another CPU
        shutil.rmtree(op_folder(name))
    from deepspeed.accelerator import get_accelerator  # slow to import, and not needed when all is built

    try:
        module = get_accelerator().create_op_builder(BUILDERS[name]).load(verbose=False)
    except Exception as error:
        log = op_folder(name) / "build.log"
        log.write_text(str(error), encoding="utf-8")
        raise UserError(f"DeepSpeed's operator {name} did not build: see {log}, try `fast-electra doctor`") from error
    stamp = {"library": module.__file__, "built_for": _fingerprint()}
    partial = op_folder(name) / f"{STAMP}.partial"
    partial.write_text(json.dumps(stamp), encoding="utf-8")
    partial.replace(op_folder(name) / STAMP)
    print(f"built {name} in {time.monotonic() - started:.0f} s", flush=True)


def _is_built(folder: Path) -> bool:
    """Whether `_build` finished in this folder, for what runs now."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        return bool(stamp["built_for"] == _fingerprint() and Path(stamp["library"]).exists())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fingerprint() -> dict[str, str | None]:
    """What an operator is built for. The compiler uses all that this CPU has, and a home folder may move to another."""
    return {
        "python": f"{sys.prefix} {sys.version}",
        "ninja": shutil.which("ninja"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu() else None,
        "deepspeed": importlib.metadata.version("deepspeed"),
        "cpu": hashlib.sha256(" ".join(sorted(cpu_flags())).encode()).hexdigest(),
    }


def _is_held(lock: Path) -> bool:
    """Whether a living process has the file open; that of another user, whose processes are hidden, counts as held."""
    if os.getuid() not in (0, lock.stat().st_uid):
        return True
    return any(_has_open(process, lock) for process in psutil.process_iter())


def _has_open(process: psutil.Process, lock: Path) -> bool:
    try:
        paths = [Path(file.path) for file in process.open_files()]
    except psutil.Error:  # it ended, or it belongs to somebody else
        return False
    return any(path.name == lock.name and path.exists() and path.samefile(lock) for path in paths)


@contextmanager
def _only_builder(timeout: float) -> Iterator[None]:
    """Hold the flock that makes this process the only builder among ours; it ends with the process."""
    path = op_folder("fused_adam").parent / "fast_electra.flock"

    def acquired() -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False

    with path.open("w") as file:
        _wait_until(acquired, timeout, f"{path} has been held for {timeout:.0f} s: end the build that holds it")
        yield


def _wait_until(done: Callable[[], bool], timeout: float, message: str) -> None:
    """Poll `done`; say after five seconds that there is a wait, and raise UserError(message) when time is up."""
    started = time.monotonic()
    told = False
    while not done():
        waited = time.monotonic() - started
        if waited > timeout:
            raise UserError(message)
        if waited > 5 and not told:
            print("waiting for another process to build DeepSpeed's operators ...", flush=True)
            told = True
        time.sleep(0.2)


if __name__ == "__main__":
    try:
        prebuild()
    except UserError as error:
        if not on_gpu():
            sys.exit(f"error: {error}")
        print(f"warning: {error}\nTraining on the GPU will need it and try again.")  # all else works without
        sys.exit()
    print(f"DeepSpeed's operators are ready: {', '.join(needed_ops())}")
