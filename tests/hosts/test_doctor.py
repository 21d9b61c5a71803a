import socket
from pathlib import Path

import pytest

from fast_electra import cli
from fast_electra.hosts import doctor
from fast_electra.hosts.doctor import Finding, Level
from fast_electra.training import operators


def found(what: str) -> list[Finding]:
    return [finding for finding in doctor.findings() if finding.what == what]


def test_a_machine_that_runs_the_tests_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "ready for `make quickstart`"
    for what in ("python", "torch", "megatron-core", "cpu", "precision", "fused_adam", "disk", "port"):
        assert any(line.split()[1] == what for line in lines), what


def test_no_compiler_is_a_fault_only_while_something_has_to_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(operators, "ops_ready", lambda names=None: True)
    assert [finding.level for finding in found("compiler")] == [Level.NOTE]

    monkeypatch.setattr(operators, "ops_ready", lambda names=None: False)
    assert doctor.main() == 1
    output = capsys.readouterr().out
    assert "FAULT compiler            no C++ compiler (no-such-compiler): install g++" in output
    assert output.endswith("1 fault: mend them first\n")


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
        path.write_text("raise ImportError('the doctor looks, and does not import')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (finding,) = found("apex")
    assert finding.level == level
    assert text in finding.value


def test_a_taken_port_comes_with_a_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        monkeypatch.setattr(doctor, "DEFAULT_PORT", other.getsockname()[1])
        (finding,) = found("port")
    assert finding.level == Level.NOTE
    with socket.socket() as ours:
        ours.bind(("", int(finding.value.split("--master_port ")[1])))


def test_too_little_shared_memory_is_a_fault_and_leftovers_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "on_gpu", lambda: False)
    monkeypatch.setattr(operators, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(doctor, "SHARED_MEMORY_NEEDED", 2**62)
    (finding,) = found("shared memory")
    assert finding.level == Level.FAULT
    assert "--shm-size" in finding.value

    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1234")
    monkeypatch.setattr(doctor, "SHARED_MEMORY_NEEDED", 0)
    left = tmp_path / f"{operators.SHARED_BUFFER}_{doctor.os.getuid()}_127.0.0.1_1234_0"
    left.write_bytes(b"x" * 10**6)
    _, finding = found("shared memory")
    assert "1 buffers left by DeepSpeed runs, 1 MB" in finding.value
    operators.unlink_shared_buffers(rank=0)
    assert len(found("shared memory")) == 1


def test_the_report_command_names_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path / "no-run")]) == 2
    assert "no-run" in capsys.readouterr().err
