"""What a job tries before any work: its folder, the packages that its config needs, and the port of its ranks."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, free_port

from fast_electra import config
from fast_electra.deepspeed_config import Machine
from fast_electra.jobs import launcher
from fast_electra.locks import only_writer
from fast_electra.settings import UserError
from fast_electra.training.signals import EXIT_CODE

MEET = """
from fast_electra.jobs import launcher
from fast_electra.training import engines
engines.WORD = 1.0
launcher.run("job", engines.start_ranks)
"""


def meet(port: int) -> "subprocess.Popen[str]":
    """Rank 0 of two."""
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", MEET]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | names, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("section", launcher.MONITORS)
def test_a_monitor_that_is_not_installed_is_refused_before_anything_starts(
    section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(launcher.MONITORS, section, "no_such_package")  # it may be installed here
    settled = config.load("ds_configs/tiny_auxiliary.json", [f"{section}.enabled=true"], Machine())
    with pytest.raises(UserError, match=f"{section}.enabled needs the package no_such_package.*pip install"):
        launcher.begin(settled)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with (
            pytest.raises(UserError, match=r"cannot be made or written.*: do this"),
            launcher.only_job(folder, "do this"),
        ):
            pass


def test_a_job_that_writes_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wrong"), launcher.only_job(tmp_path / "run", "do this"):
        raise UserError("wrong")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with launcher.only_job(tmp_path / "mine", "do this"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_the_second_writer_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    code = f"""
import time
from pathlib import Path
from fast_electra.locks import only_writer
with only_writer(Path({str(lock)!r}), Path("run"), "name another"):
    print("ready", flush=True)
    time.sleep(60)
"""
    first = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None and first.stdout.readline() == "ready\n"
    named = rf"another process: do this \(it is process {first.pid} on {socket.gethostname()}\)"
    for _ in range(2):  # a refusal leaves the holder's name alone
        with pytest.raises(UserError, match=named), launcher.only_job(tmp_path, "do this"):
            pass
    first.kill()
    first.wait()
    assert lock.exists()
    with launcher.only_job(tmp_path, "do this"):
        assert str(os.getpid()) in lock.read_text()
    assert not lock.exists()


def test_a_file_system_without_locks_is_used_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    for _ in range(2):
        with only_writer(tmp_path / "lock", tmp_path, "do this"), only_writer(tmp_path / "lock", tmp_path, "do this"):
            pass


def test_wrong_arguments_are_one_line() -> None:
    with pytest.raises(UserError, match="--deepspeed_config; see --help"):
        launcher.parser("").parse_args([])


def test_a_port_that_is_taken_is_one_line_with_the_remedy() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        process = meet(port)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith(f"job: error: port {port}, where the ranks meet, is taken on this host")
    assert "--master_port" in errors and "Traceback" not in errors


def test_a_rank_that_does_not_come_is_spoken_of_and_the_wait_can_be_ended() -> None:
    port = free_port()
    process = meet(port)
    assert process.stderr is not None
    word = next(line for line in process.stderr if "has waited" in line)
    assert word.startswith(f"rank 0 has waited 1 s for 2 ranks to meet at 127.0.0.1, port {port}")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == EXIT_CODE
    process.stderr.close()
