"""Whole runs under the real launcher that are told to stop, lose a process, or meet a second run in their folder."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from conftest import ROOT, Corpus, free_port, kill_group
from small import Record

from fast_electra.files import file_hash
from fast_electra.training.metrics import read_metrics
from fast_electra.training.signals import EXIT_CODE

UPDATES = 300
SECONDS = 20.0  # from a signal to the end
KILLS = 6


def arguments(corpus: Corpus, run: Path, **more: Any) -> list[str]:
    values = {
        "fast_electra.run": run,
        "fast_electra.updates": UPDATES,
        "fast_electra.log_every": 1,
        "fast_electra.corpus.shards": corpus.shards,
        "fast_electra.corpus.tokenizer": corpus.tokenizer,
        "fast_electra.model.vocabulary_size": corpus.vocabulary_size,
        "fast_electra.evaluation.sequences": 20,
        "optimizer.params.torch_adam": "true",
        **more,
    }
    overrides = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    return ["launch/pretrain.py", "--deepspeed_config", "ds_configs/tiny_auxiliary.json", *overrides]


class Started(NamedTuple):
    """A run that trains: the `deepspeed` command, its launch.py, its two ranks, and what they print."""

    runner: "subprocess.Popen[str]"
    launcher: psutil.Process
    ranks: list[psutil.Process]
    folder: Path

    def tell(self, whom: str, number: int) -> None:
        if whom == "all":
            os.killpg(self.runner.pid, number)
        else:
            processes = {"runner": self.runner, "launcher": self.launcher}
            process = processes[whom] if whom in processes else self.ranks[int(whom.removeprefix("rank "))]
            process.send_signal(number)

    def end(self) -> list[str]:
        """Wait until nothing of the run is alive; return its lines, without those of DeepSpeed's launcher."""
        _, alive = psutil.wait_procs([self.launcher, *self.ranks], timeout=SECONDS)
        assert not alive
        self.runner.wait(timeout=SECONDS)
        lines = self.folder.with_suffix(".log").read_text().splitlines()
        return [line for line in lines if line and not line.startswith("[20")]

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        return status


@contextmanager
def training(corpus: Corpus, folder: Path, **more: Any) -> Iterator[Started]:
    """Start a run on two ranks, and wait until it has done 5 more updates."""
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    before, deadline = len(read_metrics(folder)[0]), time.monotonic() + 120
    with folder.with_suffix(".log").open("w") as log:
        command = [*launcher, *arguments(corpus, folder, **more)]
        runner = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, text=True, start_new_session=True)
    try:
        while len(read_metrics(folder)[0]) < before + 5 and runner.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        (launch,) = psutil.Process(runner.pid).children()
        ranks = sorted(launch.children(), key=lambda rank: rank.environ()["RANK"])
        assert len(ranks) == 2, folder.with_suffix(".log").read_text()
        yield Started(runner, launch, ranks, folder)
    finally:
        kill_group(runner)
        runner.wait()


@pytest.mark.drill("signal to a process of a run")
def test_a_second_run_is_refused_and_a_signal_saves(tiny_corpus: Corpus, tmp_path: Path) -> None:
    endless = {"fast_electra.updates": 100_000}
    with training(tiny_corpus, tmp_path / "run", **endless) as run:
        command = [sys.executable, *arguments(tiny_corpus, run.folder, **endless)]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 2 and "Traceback" not in second.stderr
        assert "is being written by another process: name another run folder" in second.stderr
        assert f"process {run.ranks[0].pid} on " in second.stderr
        assert run.runner.poll() is None and run.status()["state"] == "running"
        run.tell("rank 1", signal.SIGTERM)
        lines = run.end()
    update = run.status()["update"]
    assert run.runner.returncode == EXIT_CODE
    assert lines[-1] == f"pretrain: interrupted: SIGTERM, saved after update {update}; the same command resumes"
    assert run.status()["state"] == "interrupted" and run.status()["message"] == "SIGTERM"
    assert (run.folder / "checkpoints/latest").read_text().strip() == f"update-{update:08d}"


DRILLS = [
    *(("SIGTERM", whom) for whom in ("rank 0", "launcher", "runner", "all")),
    *(("SIGINT", "all"), ("SIGUSR1", "rank 1"), ("SIGKILL", "launcher"), ("SIGKILL", "runner")),
]


@pytest.mark.drill("signal to a process of a run")
@pytest.mark.slow
def test_whoever_is_told_the_same_command_goes_on_to_the_same_model(
    tiny_corpus: Corpus, tmp_path: Path, launch: Callable[..., Any], record_property: Record
) -> None:
    """One run, stopped again and again."""
    record_property("tried", len(DRILLS))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    longer = {"fast_electra.updates": 900}
    launch("launch/pretrain.py", arguments(tiny_corpus, whole, **longer)[1:])
    for name, whom in DRILLS:
        with training(tiny_corpus, stopped, **longer) as run:
            before = run.status()["update"]
            time.sleep(0.3)
            run.tell(whom, getattr(signal, name))
            run.end()
        assert run.status()["state"] == "interrupted", (name, whom)
        assert before < run.status()["update"] < 900
    result = launch("launch/pretrain.py", arguments(tiny_corpus, stopped, **longer)[1:])
    assert "continues after update" in result.stdout
    assert file_hash(whole / "model/model.safetensors") == file_hash(stopped / "model/model.safetensors")


@pytest.mark.drill("full disk, or limit on the size of files")
def test_rank_0_that_cannot_write_its_rows_ends_the_run_with_one_line(
    tiny_corpus: Corpus, tmp_path: Path, launch: Callable[..., Any]
) -> None:
    """The disk is full for metrics.jsonl alone."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").symlink_to("/dev/full")
    result = launch("launch/pretrain.py", arguments(tiny_corpus, run)[1:], check=False)
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("pretrain: ")]
    assert result.returncode != 0 and "Traceback" not in result.stdout
    assert line == f"pretrain: error: [Errno 28] No space left on device: '{run}/metrics.jsonl'"
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "failed" and "metrics.jsonl" in status["message"]


@pytest.mark.drill("SIGKILL of a whole run at a random time")
@pytest.mark.slow
def test_killed_at_random_times_it_ends_as_if_nothing_had_happened(
    tiny_corpus: Corpus, tmp_path: Path, launch: Callable[..., Any], record_property: Record
) -> None:
    """Launcher and ranks at once, again and again. A killed session saves so often that some kills meet a save."""
    whole, killed, chosen = tmp_path / "whole", tmp_path / "killed", random.Random(10)
    keys = {"fast_electra.updates": 600, "fast_electra.model.dropout": 0.1}
    launch("launch/pretrain.py", arguments(tiny_corpus, whole, **keys)[1:])
    record_property("tried", KILLS)
    for _ in range(KILLS):
        with training(tiny_corpus, killed, **keys | {"fast_electra.checkpoint.every": 2}) as run:
            time.sleep(chosen.uniform(0, 1))
            assert run.runner.poll() is None
        assert run.status()["state"] == "running" and not (killed / "model").exists()
    result = launch("launch/pretrain.py", arguments(tiny_corpus, killed, **keys)[1:])
    assert "continues after update" in result.stdout
    assert file_hash(whole / "model/model.safetensors") == file_hash(killed / "model/model.safetensors")
    for left, right in zip(read_metrics(whole)[0], read_metrics(killed)[0], strict=True):
        assert (left["update"], left["loss"]) == (right["update"], right["loss"])


@pytest.mark.drill("process of a run killed or stopped")
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_noticed_with_one_line(rank: int, tiny_corpus: Corpus, tmp_path: Path) -> None:
    with training(tiny_corpus, tmp_path / "run") as run:
        run.tell(f"rank {rank}", signal.SIGKILL)
        began = time.monotonic()
        lines = run.end()
    assert time.monotonic() - began < 10
    assert "another rank is gone or hangs" in lines[-1] and not any("Traceback" in line for line in lines)


@pytest.mark.drill("process of a run killed or stopped")
@pytest.mark.slow
def test_a_stopped_rank_is_noticed_and_stacks_are_written(tiny_corpus: Corpus, tmp_path: Path) -> None:
    with training(tiny_corpus, tmp_path / "run", **{"fast_electra.wait_minutes": 0.1}) as run:
        run.tell("rank 1", signal.SIGSTOP)
        psutil.wait_procs(run.ranks[:1], timeout=30)
        assert not run.ranks[0].is_running()
        assert run.status()["state"] == "failed" and "Timed out waiting" in run.status()["message"]
        assert "in update" in (run.folder / "stacks-rank-0.txt").read_text()
