import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fast_electra.settings import UserError
from fast_electra.training import operators

# What DeepSpeed's builders do, with a source that compiles in a blink; a compiler that hangs stands for a slow build.
BUILD = """
import sys
from torch.utils import cpp_extension
cpp_extension.load("fused_adam", sources=[sys.argv[1]], is_python_module=False)
print("built")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for the operators of its own; the folder of one of them, not made yet."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    folder = operators.op_folder("fused_adam")
    folder.rmdir()
    return folder


def mark_built(folder: Path, **changed: str) -> Path:
    """What a finished build leaves, for this environment unless `changed`."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "fused_adam.so"
    library.touch()
    stamp = {"library": str(library), "built_for": operators._fingerprint() | changed}
    (folder / operators.STAMP).write_text(json.dumps(stamp))
    return library


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.fixture
def build(folder: Path, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts a torch build in `folder` in a process group of its own."""
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
    """SIGKILL for a build and its compilers, which ninja puts into process groups of their own."""
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


def test_ops_are_ready_only_for_what_they_were_built_for(folder: Path) -> None:
    assert not operators.ops_ready(("fused_adam",))
    library = mark_built(folder)
    assert operators.ops_ready(("fused_adam",))
    for changed in ("torch", "deepspeed", "cpu", "ninja"):
        mark_built(folder, **{changed: "another"})
        assert not operators.ops_ready(("fused_adam",)), changed
    (folder / operators.STAMP).write_text("{")
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


def test_a_missing_toolchain_is_named_with_its_remedy(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(operators.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(operators.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    problems = operators.toolchain_problems()
    assert [problem.split(":")[0].split(" (")[0] for problem in problems] == [
        "no C++ compiler",
        "no ninja on PATH",
        f"no {tmp_path}/Python.h",
    ]
    with pytest.raises(UserError, match=r"apt-get install g\+\+.*pip install ninja.*-dev"):
        operators.prebuild(("fused_adam",))


def test_the_environments_own_ninja_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions of ninja rebuild each other's work at every run."""
    other = tmp_path / "ninja"
    other.write_text("#!/bin/sh\necho 1.0\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    operators.prepare_environment()
    expected = Path(sys.executable).parent / "ninja"
    assert shutil.which("ninja") == str(expected if expected.exists() else other)


RANK = """
import json, os
import deepspeed, torch
from fast_electra.training import operators

operators.ensure(fused_adam=False)
deepspeed.init_distributed(verbose=False)
deepspeed.comm.barrier()
rank = deepspeed.comm.get_rank()
operators.unlink_shared_buffers(rank)
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


PREBUILD = [sys.executable, "-m", "fast_electra.training.operators"]
LOAD = "from deepspeed.operators.op_builder import FusedAdamBuilder; FusedAdamBuilder().load(verbose=False)"


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
