"""A run that is killed, really, and started again by the same command."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Corpus, free_port, kill_group

from fast_electra.files import file_hash
from fast_electra.training.metrics import read_metrics

pytestmark = pytest.mark.slow


def test_killed_and_started_again_ends_as_if_nothing_had_happened(
    tiny_corpus: Corpus, tmp_path: Path, launch: Callable[..., Any]
) -> None:
    """SIGKILL to the launcher and all ranks, somewhere after the second checkpoint; fp32, torch's Adam, dropout."""

    def arguments(run: str) -> list[str]:
        values = {
            "fast_electra.run": tmp_path / run,
            "fast_electra.updates": 300,
            "fast_electra.checkpoint.every": 40,
            "fast_electra.corpus.shards": tiny_corpus.shards,
            "fast_electra.corpus.tokenizer": tiny_corpus.tokenizer,
            "fast_electra.model.vocabulary_size": tiny_corpus.vocabulary_size,
            "fast_electra.model.dropout": 0.1,
            "optimizer.params.torch_adam": "true",
        }
        overrides = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
        return ["--deepspeed_config", "ds_configs/tiny_auxiliary.json", *overrides]

    launch("launch/pretrain.py", arguments("whole"))

    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    command = [*launcher, "launch/pretrain.py", *arguments("killed")]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    second = tmp_path / "killed/checkpoints/update-00000080"
    deadline = time.monotonic() + 200
    while not second.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # into the updates after it
    kill_group(process)
    process.wait()
    assert second.exists() and not (tmp_path / "killed/model").exists()

    result = launch("launch/pretrain.py", arguments("killed"))
    assert "continues after update" in result.stdout
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert file_hash(whole / "model/model.safetensors") == file_hash(killed / "model/model.safetensors")
    for left, right in zip(read_metrics(whole)[0], read_metrics(killed)[0], strict=True):
        assert (left["update"], left["loss"]) == (right["update"], right["loss"])
