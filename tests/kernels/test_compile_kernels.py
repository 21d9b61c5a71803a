"""The kernels compile without a GPU, spill no registers, and fit into each GPU's shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

SAMPLER, ATTENTION = ("scan", "draw"), ("forward", "backward_queries", "backward_keys", "backward_bias")


def compiler(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the compiler in another process, because this one has Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(ROOT / "benchmarks" / "compile_kernels.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def test_the_papers_base_model_on_every_generation(tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    done = compiler(
        "--arch",
        "80",
        "89",
        "90",
        "100",
        "120",
        "--dtype",
        "bf16",
        "--hidden",
        "768",
        "--head",
        "64",
        "--json",
        str(file),
    )
    assert done.returncode == 0, done.stdout + done.stderr  # each fits into the shared memory of its GPU
    rows = {(row["kernel"], row["arch"]): row for row in json.loads(file.read_text())}
    assert set(rows) == {(kernel, arch) for kernel in (*SAMPLER, *ATTENTION) for arch in (80, 89, 90, 100, 120)}
    assert all(row["spilled_bytes"] == 0 and 0 < row["registers"] <= 255 for row in rows.values())
    # Hopper's own instructions for the tensor cores.
    assert all(rows[kernel, 90]["wgmma"] == "yes" for kernel in ("scan", *ATTENTION))
    assert "sm_90" in done.stdout and "spilled bytes" in done.stdout
