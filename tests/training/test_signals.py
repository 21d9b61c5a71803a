"""Signals and lost launchers, seen from one process; tests/training/test_stopped.py has whole runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

from fast_electra.training import signals

JOB = """
import ctypes, os, sys, time
from fast_electra.jobs import launcher

def main():
    print("ready", flush=True)
    {body}

launcher.run("job", main)
"""
SLEEP = "time.sleep(60)"
STUCK = "mutex = bytes(64); lock = ctypes.CDLL(None).pthread_mutex_lock; lock(mutex); lock(mutex)"  # as in a collective
RANK_ENVIRONMENT = {"RANK": "0", "LOCAL_RANK": "0"}


def start(body: str, ignore_hangup: bool = False, **environment: str) -> "subprocess.Popen[str]":
    handler = "SIG_IGN" if ignore_hangup else "SIG_DFL"  # the tests themselves may run under nohup
    code = f"import signal\nsignal.signal(signal.SIGHUP, signal.{handler})\n{JOB.format(body=body)}"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.drill("signal to a process of a run")
@pytest.mark.parametrize("number", signals.SIGNALS)
def test_where_nothing_is_trained_a_signal_ends_a_job_at_once(number: signal.Signals) -> None:
    process = start(SLEEP)
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == signals.EXIT_CODE
    assert errors == f"job: interrupted: {number.name}; the same command resumes\n"


@pytest.mark.drill("signal to a process of a run")
def test_also_while_no_python_code_runs() -> None:
    process = start(STUCK)
    time.sleep(1)  # until it is stuck: before, Python code would answer
    process.terminate()
    _, errors = process.communicate(timeout=10)
    assert process.returncode == signals.EXIT_CODE
    assert errors == "interrupted: SIGTERM; the same command resumes\n"


def test_nohup_is_respected() -> None:
    process = start(SLEEP, ignore_hangup=True)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.terminate()
    assert process.wait(10) == signals.EXIT_CODE


@pytest.mark.drill("process of a run killed or stopped")
@pytest.mark.parametrize("deepspeed", [False, True])
def test_a_rank_ends_when_its_launcher_is_killed(deepspeed: bool) -> None:
    """Under `deepspeed` the launcher is the parent of launch.py, which may live on."""
    job = [sys.executable, "-c", JOB.format(body=SLEEP)]
    child = f"import subprocess; subprocess.run({job!r})"
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])" if deepspeed else child
    environment = os.environ | RANK_ENVIRONMENT | ({"CROSS_RANK": "0"} if deepspeed else {})
    first = subprocess.Popen(
        [sys.executable, "-c", launcher], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert first.stdout is not None and first.stdout.readline() == b"ready\n"
    descendants = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait()
    _, alive = psutil.wait_procs(descendants, timeout=10)
    assert not alive


@pytest.mark.drill("signal to a process of a run")
def test_in_training_a_signal_is_only_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    watch = signals.Watch()
    watch.trains(tmp_path / "stacks.txt", 0)
    watch._handle(signal.SIGUSR1, None)
    watch._handle(signal.SIGTERM, None)
    assert signals.reason(watch.note) == "SIGUSR1"
    with pytest.raises(signals.Interrupted, match="SIGUSR1"):  # one that came just before training begins
        watch.trains(tmp_path / "stacks.txt", 0)


@pytest.mark.drill("process of a run killed or stopped")
def test_a_rank_that_waits_too_long_writes_its_stacks(tmp_path: Path) -> None:
    body = (
        f"from pathlib import Path; launcher.signals.watch.trains(Path({str(tmp_path / 'stacks.txt')!r}), 2.0); {SLEEP}"
    )
    process = start(body)
    deadline = time.monotonic() + 10
    while not (tmp_path / "stacks.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.2)
    process.kill()
    process.communicate()
    assert "in main" in (tmp_path / "stacks.txt").read_text()


def test_a_sibling_that_is_gone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_SIZE", "1")
    assert not signals._sibling_is_gone()
    monkeypatch.setenv("LOCAL_SIZE", "1000")  # so many children this process's parent cannot have
    assert signals._sibling_is_gone()
