"""The kernels compile for GPUs that are not there, without spilling registers."""

import json
import os
import subprocess
import sys
from pathlib import Path


def compiler(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """In a process of its own, because this one has Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "fast_electra_kernels.ahead_of_time", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def test_the_papers_base_model_on_both_generations(tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    done = compiler("--arch", "80", "90", "--dtype", "bf16", "--hidden", "768", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {(row["kernel"], row["arch"]): row for row in json.loads(file.read_text())}
    assert set(rows) == {(kernel, arch) for kernel in ("scan", "draw") for arch in (80, 90)}
    assert all(row["spilled_bytes"] == 0 and 0 < row["registers"] <= 255 for row in rows.values())
    assert rows["scan", 90]["wgmma"] == "yes"  # the tensor cores are used as that generation wants it
    assert "sm_90" in done.stdout and "spilled bytes" in done.stdout


def test_an_unknown_generation_is_refused() -> None:
    done = compiler("--arch", "42")
    assert done.returncode == 2 and "invalid choice: 42" in done.stderr
