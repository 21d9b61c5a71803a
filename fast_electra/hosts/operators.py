"""DeepSpeed's C++ and CUDA operators. They are compiled on first use; here that happens once, before any launch.

torch guards such a build by a file named `lock` in the operator's folder. Every other loader waits until that file is
gone. A killed build leaves it behind, and then every later run would wait for ever. So `prebuild` (part of
`make setup`) compiles ahead of training, and `ensure` (the first call of a launch script) makes sure that what follows
only loads. A builder keeps its `lock` open while it works: a lock that no living process holds open is stale.

An operator fits one Python, torch, DeepSpeed, ninja and processor. Each combination has a folder of its own, so
environments and hosts that share a disk never rebuild each other's operators.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import psutil
import torch
from torch.utils import cpp_extension

from fast_electra.files import write_json, write_text
from fast_electra.hosts.toolchain import prepare_compilers, toolchain_problems
from fast_electra.settings import UserError
from fast_electra.training.engines import Ranks, sum_over_ranks
from fast_electra.training.machine import cpu_flags, on_gpu

BUILDERS = {"deepspeed_shm_comm": "ShareMemCommBuilder", "fused_adam": "FusedAdamBuilder"}
BUILD_TIMEOUT = 1200.0  # seconds; both operators take about 70 s on two idle cores, several minutes on busy ones
PREFIX = "fast_electra-"  # of the folder for one environment and processor
STAMP, HOST = "fast_electra.json", "fast_electra.host"  # files in an operator's folder: it is complete; who builds it
WAITING = "waiting for another process to build DeepSpeed's operators ..."
FALLS_BACK = 3  # exit code on a GPU without DeepSpeed's fused Adam, where training uses torch's


def needed_ops(fused_adam: bool = True) -> tuple[str, ...]:
    """Return the operators that a training run loads on this machine; `fused_adam` is False for torch's own Adam."""
    shared_memory = not on_gpu() and sys.platform == "linux"
    return ("deepspeed_shm_comm",) * shared_memory + ("fused_adam",) * fused_adam


def op_folder(name: str) -> Path:
    """Make and return the folder in which torch builds an operator. Where it cannot be made, whoever writes says so."""
    prepare_environment()
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"]) / name
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def ops_ready(names: tuple[str, ...] | None = None) -> bool:
    """Return whether the operators (default: all that are needed) are built for this environment and processor."""
    return all(_is_built(op_folder(name)) for name in (needed_ops() if names is None else names))


def ensure(fused_adam: bool = True, timeout: float = BUILD_TIMEOUT) -> None:
    """Build the operators that are not built yet, before a process group starts. Takes milliseconds after `make setup`.

    The first rank of each machine builds. On a CPU the others wait, because the process group loads an operator. On a
    GPU nothing is loaded until the ranks have met, and a failed build is no error: `choose_adam` then makes all
    ranks use torch's Adam. `timeout` is the number of seconds to wait for another process's build.

    Raises:
        UserError: on a CPU, if there is no compiler, the build failed, or another process's build did not end in time.
    """
    names = needed_ops(fused_adam)
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        try:
            prebuild(names, timeout)
        except UserError as error:
            if not on_gpu():
                raise
            print(f"note: training uses torch's Adam, because DeepSpeed's is not available: {error}", flush=True)
    elif not on_gpu():
        late = f"the first rank has not built DeepSpeed's operators within {timeout:.0f} s: run `make setup` first"
        _wait_until(partial(ops_ready, names), timeout, late)


def prebuild(names: tuple[str, ...] | None = None, timeout: float = BUILD_TIMEOUT) -> None:
    """Build the operators (default: all that this machine needs) that are not built yet, one after the other.

    Raises:
        UserError: there is no compiler, the build failed, or another process's build did not end in time.
    """
    names = needed_ops() if names is None else names
    if ops_ready(names) and not any((op_folder(name) / "lock").exists() for name in names):
        return
    with _only_builder(timeout):
        for name in names:
            folder = op_folder(name)
            late = f"{folder / 'lock'} has been held for {timeout:.0f} s: remove it if {_host(folder)} builds nothing"
            _wait_until(partial(remove_stale_lock, folder), timeout, late)
            if not _is_built(folder):
                _build(name)


def choose_adam(params: dict[str, Any], ranks: Ranks) -> None:
    """Set `torch_adam` in the config's `optimizer.params`, unless every rank can load DeepSpeed's fused Adam."""
    if not params.get("torch_adam"):
        ready = torch.tensor(int(ops_ready(("fused_adam",))), device=ranks.device)
        if int(sum_over_ranks(ready)) < ranks.world:
            params["torch_adam"] = True


def remove_stale_lock(folder: Path) -> bool:
    """Remove what a killed build left in an operator's folder; return False if a living process holds its lock.

    An unfinished folder is removed as a whole: compilers that outlived the kill then write into a folder that is gone,
    and not into the next build.
    """
    lock = folder / "lock"
    try:
        made = lock.stat().st_mtime_ns
        if _is_held(lock):
            return False
        time.sleep(1.0)  # a builder closes the lock just before it removes it
        if _is_held(lock) or lock.stat().st_mtime_ns != made:
            return False
    except FileNotFoundError:
        return True
    if _is_built(folder):
        lock.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"removed what a killed build left in {folder}", flush=True)
    return True


def prepare_environment() -> None:
    """Let torch find its compilers, and build into a folder for this environment and processor.

    It is in the user's TORCH_EXTENSIONS_DIR, else in the virtual environment, else where torch builds by default. torch
    writes into the folder even where it only loads. So what a read-only environment holds is copied to the default.
    """
    prepare_compilers()
    environment, default = Path(sys.prefix) / "torch_extensions", Path(cpp_extension.get_default_build_root())
    own = environment if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK) else default
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or own)
    if root.name.startswith(PREFIX):  # set by an earlier call, perhaps in another process
        root = root.parent
    leaf = f"{PREFIX}{hashlib.sha256(json.dumps(_built_for()).encode()).hexdigest()[:12]}"
    os.environ["TORCH_EXTENSIONS_DIR"] = str(root / leaf)
    if root == default and (environment / leaf).is_dir() and not (root / leaf).exists():
        copy = root / f".{leaf}.{os.getpid()}"
        with suppress(OSError):  # nothing can be written here either, or another rank was faster
            shutil.copytree(environment / leaf, copy)
            copy.rename(root / leaf)
        shutil.rmtree(copy, ignore_errors=True)


def _build(name: str) -> None:
    from deepspeed import git_version_info  # slow to import, and not needed when all is built
    from deepspeed.accelerator import get_accelerator

    accelerator, folder = get_accelerator(), op_folder(name)
    came_built = git_version_info.installed_ops.get(name) and git_version_info.accelerator_name == accelerator._name
    if not came_built:
        if problems := toolchain_problems():
            raise UserError(f"cannot build DeepSpeed's operator {name}: {'; '.join(problems)}")
        print(f"building DeepSpeed's operator {name} in {folder} (once; a minute or more)", flush=True)
    started = time.monotonic()
    write_text(folder / HOST, socket.gethostname())
    try:
        module = accelerator.create_op_builder(BUILDERS[name]).load(verbose=False)
    except Exception as error:
        log = folder / "build.log"
        log.write_text(str(error), encoding="utf-8")
        raise UserError(f"DeepSpeed's operator {name} did not build: see {log}, try `fast-electra doctor`") from error
    write_json(folder / STAMP, {"library": module.__file__, "built_for": _built_for()})
    print(f"built {name} in {time.monotonic() - started:.0f} s", flush=True)


def _is_built(folder: Path) -> bool:
    """Return whether `_build` finished in this folder."""
    try:
        return Path(json.loads((folder / STAMP).read_text(encoding="utf-8"))["library"]).exists()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _built_for() -> dict[str, object]:
    """Return what an operator is built for. The compiler uses every instruction of this CPU, or of these GPUs."""
    gpus = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    return {
        "python": f"{sys.prefix} {sys.version}",
        "ninja": shutil.which("ninja"),
        "torch": torch.__version__,
        "deepspeed": importlib.metadata.version("deepspeed"),
        "cuda": [torch.version.cuda, cpp_extension.CUDA_HOME] if on_gpu() else None,
        "processor": gpus if on_gpu() else sorted(cpu_flags()),
    }


def _host(folder: Path) -> str:
    """Return the host that builds in this folder."""
    try:
        return (folder / HOST).read_text(encoding="utf-8")
    except OSError:
        return socket.gethostname()


def _is_held(lock: Path) -> bool:
    """Return whether a living process has the file open; one of another user or host is hidden and counts as alive."""
    if os.getuid() not in (0, lock.stat().st_uid) or _host(lock.parent) != socket.gethostname():
        return True
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it ended, or it belongs to somebody else
            paths = [Path(file.path) for file in process.open_files()]
            if any(path.name == lock.name and path.exists() and path.samefile(lock) for path in paths):
                return True
    return False


def _only_builder(timeout: float) -> filelock.AcquireReturnProxy:
    """Take the lock that makes this process the only builder. The kernel releases it when the process dies."""
    path = op_folder("fused_adam").parent / "fast_electra.flock"
    lock = filelock.FileLock(path)
    try:
        with suppress(filelock.Timeout):
            return lock.acquire(timeout=min(timeout, 5.0))
        print(WAITING, flush=True)
        return lock.acquire(timeout=timeout)
    except filelock.Timeout:
        raise UserError(f"{path} has been held for {timeout:.0f} s: end the build that holds it") from None
    except (OSError, NotImplementedError) as error:
        raise UserError(
            f"cannot lock {path} ({error}): set TORCH_EXTENSIONS_DIR to a folder of yours on a local disk"
        ) from None


def _wait_until(done: Callable[[], bool], timeout: float, message: str) -> None:
    """Poll `done`, and say so; raise UserError(message) when time is up."""
    deadline = time.monotonic() + timeout
    if done():
        return
    print(WAITING, flush=True)
    while not done():
        if time.monotonic() > deadline:
            raise UserError(message)
        time.sleep(0.2)


if __name__ == "__main__":
    try:
        prebuild()
    except UserError as error:
        instead = "; training uses torch's Adam instead" if on_gpu() else ""
        print(f"DeepSpeed's operators are not ready{instead}: {error}", file=sys.stderr)
        sys.exit(FALLS_BACK if on_gpu() else 1)
    print(f"DeepSpeed's operators are ready: {', '.join(needed_ops())}")
