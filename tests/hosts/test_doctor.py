import importlib.metadata
import importlib.util
import socket
from pathlib import Path

import pytest
import torch

from fast_electra import cli
from fast_electra.hosts import doctor, operators
from fast_electra.hosts.doctor import Finding, Level
from fast_electra.training import machine


def found(what: str) -> list[Finding]:
    return [finding for finding in doctor.findings() if finding.what == what]


def test_a_machine_that_runs_the_tests_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "ready for `make quickstart`"
    for what in ("python", "torch", "megatron-core", "cpu", "precision", "fused_adam", "disk", "port"):
        assert any(line.split()[1] == what for line in lines), what


def test_no_compiler_is_a_problem_only_while_something_has_to_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(operators, "ops_ready", lambda names=None: True)
    assert [finding.level for finding in found("compiler")] == [Level.NOTE]

    monkeypatch.setattr(operators, "ops_ready", lambda names=None: False)
    assert doctor.main() == 1
    output = capsys.readouterr().out
    assert "PROBLEM compiler            no C++ compiler (no-such-compiler): install g++" in output
    assert output.endswith("1 problem: fix it before running\n")

    monkeypatch.setattr(doctor, "DISK_NEEDED", 2**62)
    assert doctor.main() == 1
    assert capsys.readouterr().out.endswith("2 problems: fix them before running\n")
    monkeypatch.setattr(operators, "on_gpu", lambda: True)  # which trains with torch's Adam instead
    assert [finding.level for finding in found("compiler")] == [Level.NOTE]


def test_operators_that_cannot_be_written_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch writes into their folder even where it only loads."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/proc/nowhere")
    for name in operators.needed_ops():
        (finding,) = found(name)
        assert finding.level is Level.PROBLEM and "set TORCH_EXTENSIONS_DIR" in finding.value


@pytest.mark.parametrize(
    ("files", "level", "text"),
    [
        (["__init__.py", "lib/__init__.py"], Level.NOTE, "unrelated web toolkit, not NVIDIA's: pip uninstall apex"),
        (["__init__.py", "optimizers/fused_adam.py"], Level.OK, "NVIDIA's, in"),
    ],
)
def test_the_two_packages_named_apex_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], level: Level, text: str
) -> None:
    for name in files:
        path = tmp_path / "apex" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise ImportError('the doctor only looks at files')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (finding,) = found("apex")
    assert finding.level == level
    assert text in finding.value


def test_nobody_is_sent_to_the_package_named_apex(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (finding,) = doctor._apex()
    assert finding.level == Level.OK
    assert finding.value.startswith("NVIDIA's is not needed. Never `pip install apex`")


def test_a_numpy_that_the_interpreter_cannot_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, too_new in (("2.3.10", False), ("2.4.0", True), ("2.10.1", True)):
        monkeypatch.setattr(importlib.metadata, "version", lambda name, version=version: version)
        notes = [finding for finding in doctor._packages() if finding.level == Level.NOTE]
        assert bool(notes) == too_new and all("pip install 'numpy<2.4'" in note.value for note in notes)


def test_devices_that_the_launcher_cannot_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f3c2d51")
    (finding,) = found("visible devices")
    assert finding.level == Level.NOTE and finding.value.startswith("GPU-8f3c2d51: the `deepspeed` launcher")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert not found("visible devices")


def test_a_taken_port_comes_with_a_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        monkeypatch.setattr(doctor, "DEFAULT_PORT", other.getsockname()[1])
        (finding,) = found("port")
    assert finding.level == Level.NOTE
    with socket.socket() as ours:
        ours.bind(("", int(finding.value.split("--master_port ")[1])))


def test_too_little_shared_memory_is_a_problem_and_leftovers_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "on_gpu", lambda: False)
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(doctor, "SHARED_MEMORY_NEEDED", 2**62)
    (finding,) = found("shared memory")
    assert finding.level == Level.PROBLEM
    assert "--shm-size" in finding.value

    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1234")
    monkeypatch.setattr(doctor, "SHARED_MEMORY_NEEDED", 0)
    left = tmp_path / f"{machine.SHARED_BUFFER}_{doctor.os.getuid()}_127.0.0.1_1234_0"
    left.write_bytes(b"x" * 10**6)
    _, finding = found("shared memory")
    assert "1 buffers left by DeepSpeed runs, 1 MB" in finding.value
    machine.unlink_shared_buffers(rank=0)
    assert len(found("shared memory")) == 1


def test_the_report_command_names_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path / "no-run")]) == 2
    assert "no-run" in capsys.readouterr().err
