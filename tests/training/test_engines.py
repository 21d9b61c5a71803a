"""Starting ranks with and without a launcher; what they agree on; how long one waits for another."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fast_electra.hosts import operators
from fast_electra.settings import UserError
from fast_electra.training import machine
from fast_electra.training.engines import start_ranks
from fast_electra.training.machine import numbered_devices, this_machine

SCRIPT = Path(__file__).parent / "started_ranks.py"

pytestmark = pytest.mark.timeout(900)  # where no operator is built yet, the first test waits for it


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"])
def test_several_processes_without_ranks_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each would train alone, all into one run folder."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv(name, "4")
    with pytest.raises(UserError, match=f"{name} says that there are several processes"):
        start_ranks()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("WORLD_SIZE", value) for value in ("0", "two", "-1", "")),
        *(("RANK", value) for value in ("1", "x", "-1", "0.0")),
        *(("LOCAL_RANK", value) for value in ("x", "9999999")),
        *(("MASTER_PORT", value) for value in ("abc", "65536")),
    ],
)
def test_numbers_that_no_launcher_sets_are_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a rank waits for ever for the others, or ends in a traceback."""
    for other in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name} in the environment must be a whole number from . to .*'{value}'"):
        this_machine()


@pytest.mark.skipif(operators.on_gpu(), reason="ranks on GPUs do without")
def test_too_little_shared_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the ranks die of SIGBUS, or wait for ever."""
    monkeypatch.setattr(machine, "LEAST_SHARED", 2**60)
    monkeypatch.setenv("WORLD_SIZE", "1")
    this_machine()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"/dev/shm has room for .* MB, .*: remove old files there, or enlarge it"):
        this_machine()


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        ("0,1", 2, "0,1"),
        ("3, 1", 2, "3, 1"),
        ("GPU-8f3c2d51-0000-1111-2222-333344445555", 1, "0"),
        ("GPU-8f3c,GPU-9a", 2, "0,1"),
        ("MIG-8f3c2d51-0000-1111-2222-333344445555", 1, "0"),
        ("2,", 1, "0"),
        ("1,-1,0", 1, "0"),
    ],
)
def test_devices_that_are_not_numbers_are_numbered(visible: str, count: int, expected: str) -> None:
    """DeepSpeed converts each to an int and would end in a traceback."""
    assert numbered_devices(visible, count) == expected
    [int(number) for number in numbered_devices(visible, count).split(",")]


@pytest.mark.skipif(operators.on_gpu(), reason="looks at gloo's time limits")
def test_a_process_alone_takes_a_free_port_and_makes_no_needless_waits(tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MASTER", "RANK", "WORLD"))
    }
    environment["MASTER_PORT"] = "29500"  # as the `deepspeed` launcher sets it
    with socket.socket() as other:
        with contextlib.suppress(OSError):  # somebody has it already
            other.bind(("", 29500))
            other.listen()
        subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], env=environment, check=True, timeout=600)
    found = json.loads((tmp_path / "0.json").read_text())
    assert found["world"] == 1 and found["port"] != 29500
    assert not found["timer"] and found["timed"] == 0.0
    assert not found["given"] and not found["overlap"]  # nobody communicates
    assert found["optimizer"] == "FusedAdam" and not found["torch_adam"] and not found["torch_adam_if_one_is_not_ready"]


@pytest.mark.skipif(operators.on_gpu(), reason="looks at gloo's time limits")
def test_ranks_agree_on_an_optimizer_and_give_up_on_one_that_is_lost(
    tmp_path: Path, launch: Callable[..., Any]
) -> None:
    launch(str(SCRIPT), [str(tmp_path)])
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for found in (first, second):
        assert not found["torch_adam"] and found["torch_adam_if_one_is_not_ready"] and found["optimizer"] == "AdamW"
        assert found["overlap"] and not found["timer"]
        assert found["limits"] == [900.0, 900.0]
    assert "Timed out waiting 2000ms" in first["error"] and first["waited"] < 6 < second["waited"]
