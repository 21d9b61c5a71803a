"""Runs on two ranks that may write no more: one line names the file, nothing is lost, and the same command resumes."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Corpus, free_port
from small import Record

from fast_electra.files import file_hash

pytestmark = [pytest.mark.slow, pytest.mark.drill("full disk, or limit on the size of files")]
LIMITS = {  # bytes that a file may have, and what is then not written
    1_000: r"config\.json'",
    20_000: r"update-00000004 was not saved: .*_states\.pt cannot be written \(\[Errno 27\] File too large\)",
    300_000: r"/model cannot be written \(.*File too large",
}


def test_a_limit_on_files(tiny_corpus: Corpus, tmp_path: Path, record_property: Record) -> None:
    """A full disk is the same to a program, and needs no rights to be tried."""
    record_property("tried", len(LIMITS))

    def train(run: Path, limit: int = -1) -> tuple[int, str]:
        values = {
            "fast_electra.run": run,
            "fast_electra.updates": 8,
            "fast_electra.checkpoint.every": 4,
            "fast_electra.corpus.shards": tiny_corpus.shards,
            "fast_electra.corpus.tokenizer": tiny_corpus.tokenizer,
            "fast_electra.model.vocabulary_size": tiny_corpus.vocabulary_size,
            "optimizer.params.torch_adam": "true",
        }
        launcher = [
            str(Path(sys.executable).parent / "deepspeed"),
            "--num_gpus",
            "2",
            "--master_port",
            str(free_port()),
        ]
        command = [*launcher, "launch/pretrain.py", "--deepspeed_config", "ds_configs/tiny_auxiliary.json"]
        command += [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard)),
        )
        return done.returncode, done.stdout

    whole, run = tmp_path / "whole", tmp_path / "run"
    code, output = train(whole)
    assert code == 0, output
    for limit, message in LIMITS.items():
        if limit == 300_000:  # below a checkpoint's files, so those are there
            assert train(run)[0] == 0
            shutil.rmtree(run / "model")
        before = {path: path.stat().st_mtime_ns for path in run.rglob("update-*/*")}
        code, output = train(run, limit)
        lines = [line for line in output.splitlines() if line.startswith("pretrain: ")]
        assert code != 0 and len(lines) == 1 and re.search(message, lines[0]), output
        assert "Traceback" not in output and str(run) in lines[0]
        assert {path: path.stat().st_mtime_ns for path in run.rglob("update-*/*")} == before
        assert not list(run.rglob("partial-*")) and not list(run.rglob(".*.partial"))
        if limit > 1_000:
            assert json.loads((run / "status.json").read_text())["state"] == "failed"
    code, output = train(run)
    assert code == 0, output
    assert file_hash(run / "model/model.safetensors") == file_hash(whole / "model/model.safetensors")
