import errno
import fcntl
import importlib.metadata
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from fast_electra.hosts import operators
from fast_electra.settings import UserError

# What DeepSpeed's builders do, with a source that compiles at once. A compiler that hangs stands for a slow build.
BUILD = """
import sys
from torch.utils import cpp_extension
cpp_extension.load("fused_adam", sources=[sys.argv[1]], is_python_module=False)
print("built")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one operator in an empty place of its own; it is not made yet."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    folder = operators.op_folder("fused_adam")
    folder.rmdir()
    return folder


def mark_built(folder: Path) -> Path:
    """Leave what a finished build leaves, and return the library."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "fused_adam.so"
    library.touch()
    (folder / operators.STAMP).write_text(json.dumps({"library": str(library)}))
    return library


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.fixture
def build(folder: Path, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """A function that starts a torch build in `folder`, in a process group of its own."""
    source = tmp_path / "op.cpp"
    source.write_text("int nothing() { return 0; }\n")
    hanging = tmp_path / "hanging-c++"
    hanging.write_text('#!/bin/sh\nif [ "$1" = "-MMD" ]; then sleep 300; fi\nexec c++ "$@"\n')
    hanging.chmod(0o755)
    started: list[subprocess.Popen[str]] = []

    def start(hang: bool = False) -> "subprocess.Popen[str]":
        environment = os.environ | ({"CXX": str(hanging)} if hang else {})
        process = subprocess.Popen(
            [sys.executable, "-c", BUILD, str(source)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        kill_with_children(process)


def kill_with_children(process: "subprocess.Popen[str]") -> None:
    """Kill a build and its compilers, which ninja puts into process groups of their own."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_living_builds_lock_is_kept_and_a_killed_ones_is_removed(
    folder: Path, build: Callable[..., "subprocess.Popen[str]"]
) -> None:
    lock = folder / "lock"
    living = build(hang=True)
    wait_for(lambda: lock.exists() and bool(psutil.Process(living.pid).children(recursive=True)), living)
    assert not operators.remove_stale_lock(folder)
    assert lock.exists()

    orphans = psutil.Process(living.pid).children(recursive=True)
    os.killpg(living.pid, signal.SIGKILL)  # as a user or a scheduler does: the compilers live on
    living.communicate()
    assert lock.exists()
    assert operators.remove_stale_lock(folder)
    assert not folder.exists()
    for orphan in orphans:
        if orphan.is_running():
            orphan.kill()

    again = build()
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0, output
    assert not lock.exists()


def test_a_finished_build_outlives_the_removal_of_a_stale_lock(folder: Path) -> None:
    library = mark_built(folder)
    (folder / "lock").touch()
    operators.prebuild(("fused_adam",))  # would compile for a minute if it removed too much
    assert library.exists()
    assert not (folder / "lock").exists()


def test_a_lock_of_another_host_is_never_removed(folder: Path) -> None:
    """Its processes cannot be seen from here."""
    folder.mkdir()
    (folder / "lock").touch()
    (folder / operators.HOST).write_text("another-host")
    assert not operators.remove_stale_lock(folder)
    with pytest.raises(UserError, match=r"lock has been held for 0 s: remove it if another-host builds nothing"):
        operators.prebuild(("fused_adam",), timeout=0.3)
    (folder / operators.HOST).write_text(socket.gethostname())
    assert operators.remove_stale_lock(folder)


CHANGES = {
    "torch": lambda patch: patch.setattr(torch, "__version__", "0.0"),
    "python": lambda patch: patch.setattr(sys, "version", "0.0"),
    "deepspeed": lambda patch: patch.setattr(importlib.metadata, "version", lambda name: "0.0"),
    "ninja": lambda patch: patch.setattr(shutil, "which", lambda name, path=None: f"/another/{name}"),
    "processor": lambda patch: patch.setattr(operators, "cpu_flags", lambda: {"another"}),
}


def test_operators_are_ready_only_for_what_they_were_built_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was built for something else stays: environments and hosts that share a disk do not compete."""
    assert not operators.ops_ready(("fused_adam",))
    library = mark_built(folder)
    assert operators.ops_ready(("fused_adam",))
    for name, change in CHANGES.items():
        with monkeypatch.context() as patch:
            change(patch)
            assert not operators.ops_ready(("fused_adam",)), name
            assert operators.op_folder("fused_adam").parent.parent == folder.parent.parent, name
        assert operators.ops_ready(("fused_adam",)), name
    for damaged in ("{", "[]", "{}"):
        (folder / operators.STAMP).write_text(damaged)
        assert not operators.ops_ready(("fused_adam",))
    mark_built(folder)
    library.unlink()
    assert not operators.ops_ready(("fused_adam",))


def test_later_ranks_wait_for_the_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(operators, "needed_ops", lambda fused_adam=True: ("fused_adam",))
    with pytest.raises(UserError, match=r"first rank has not built.*make setup"):
        operators.ensure(timeout=0.3)
    first_rank = threading.Timer(0.5, mark_built, [folder])
    first_rank.start()
    operators.ensure(timeout=30)
    first_rank.join()


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(300)
"""


def test_a_second_builder_waits_for_the_first_and_not_for_the_dead(folder: Path) -> None:
    flock = str(folder.parent / "fast_electra.flock")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, flock], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(UserError, match=r"fast_electra\.flock has been held"):
        operators.prebuild(("fused_adam",), timeout=0.3)
    holder.kill()
    holder.communicate()
    with operators._only_builder(timeout=5):
        pass


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"cannot lock .*fast_electra\.flock .*set TORCH_EXTENSIONS_DIR to a folder"):
        operators.prebuild(("fused_adam",))


def test_on_a_gpu_a_failed_build_ends_no_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="no-such-compiler"):
        operators.ensure()
    monkeypatch.setattr(operators, "on_gpu", lambda: True)
    operators.op_folder("fused_adam")
    began = time.monotonic()
    operators.ensure()
    *_, line = capsys.readouterr().out.splitlines()  # DeepSpeed, too, says something
    assert line.startswith("note: training uses torch's Adam, because DeepSpeed's is not available: cannot build")
    assert "no C++ compiler (no-such-compiler): install g++" in line
    monkeypatch.setenv("LOCAL_RANK", "1")
    operators.ensure(timeout=1000)  # the ranks agree later, so nobody waits for a build that may fail
    assert time.monotonic() - began < 100


def test_a_build_that_fails_leaves_its_log(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text('#!/bin/sh\nif [ "$1" = "-MMD" ]; then echo no such header >&2; exit 1; fi\nexec c++ "$@"\n')
    broken.chmod(0o755)
    result = subprocess.run(PREBUILD, env=os.environ | {"CXX": str(broken)}, capture_output=True, text=True)
    *_, last = result.stderr.splitlines()
    assert result.returncode == 1
    assert last.startswith("DeepSpeed's operators are not ready: ")
    log = re.search(r"did not build: see (\S+),", last)
    assert log is not None and "no such header" in Path(log[1]).read_text()


RANK = """
import json, os
import deepspeed, torch
from fast_electra.hosts import operators
from fast_electra.training import machine

operators.ensure(fused_adam=False)
deepspeed.init_distributed(verbose=False)
deepspeed.comm.barrier()
rank = deepspeed.comm.get_rank()
machine.unlink_shared_buffers(rank)
deepspeed.comm.barrier()
left = [name for name in os.listdir("/dev/shm") if os.environ["MASTER_PORT"] in name]
values = torch.full((3 << 20,), rank + 1.0)
deepspeed.comm.inference_all_reduce(values)  # goes through the shared buffers
with open(os.path.join(os.path.dirname(__file__), f"{rank}.json"), "w") as file:
    json.dump({"left": left, "right": bool((values == 3).all())}, file)
deepspeed.comm.barrier()
os._exit(0)
"""


@pytest.mark.skipif(operators.on_gpu(), reason="shared buffers serve ranks on the CPU")
def test_no_shared_buffer_outlives_its_run(tmp_path: Path, launch: Callable[..., Any]) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    launch(str(script))
    for rank in (0, 1):  # in files of their own: two processes' lines on one pipe may mix
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {"left": [], "right": True}


PREBUILD = [sys.executable, "-m", "fast_electra.hosts.operators"]
LOAD = "from deepspeed.ops.op_builder import FusedAdamBuilder; FusedAdamBuilder().load(verbose=False)"


@pytest.mark.drill("build of DeepSpeed's operators killed")
@pytest.mark.slow
def test_the_real_build_killed_in_the_middle_does_not_hang_the_next(folder: Path) -> None:
    for seconds in (1, 15):  # at the start of the compilation, and well within it
        killed = subprocess.Popen(PREBUILD, start_new_session=True, stdout=subprocess.PIPE, text=True)
        wait_for(lambda: any(folder.parent.glob("*/lock")), killed)
        time.sleep(seconds)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
        assert any(folder.parent.glob("*/lock"))

    began = time.monotonic()
    output = subprocess.run(PREBUILD, check=True, text=True, capture_output=True, timeout=1200).stdout
    print(output, f"{time.monotonic() - began:.0f} s")
    assert "removed what a killed build left" in output
    assert operators.ops_ready()
    ranks = [subprocess.Popen([sys.executable, "-c", LOAD]) for _ in range(2)]
    assert [rank.wait(timeout=60) for rank in ranks] == [0, 0]  # loads, and builds nothing again
