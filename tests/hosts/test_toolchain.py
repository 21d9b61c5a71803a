"""What a machine lacks for compiling is named; a CUDA toolkit that only torch cannot find is found."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from fast_electra.hosts import operators, toolchain
from fast_electra.settings import UserError
from fast_electra.training import machine


def test_a_missing_toolchain_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(toolchain.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    problems = toolchain.toolchain_problems()
    assert [problem.split(":")[0].split(" (")[0] for problem in problems] == [
        "no C++ compiler",
        "no ninja on PATH",
        f"no {tmp_path}/Python.h",
    ]
    with pytest.raises(UserError, match=r"apt-get install g\+\+.*pip install ninja.*-dev"):
        operators.prebuild(("fused_adam",))


def test_the_environments_own_ninja_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions of ninja rebuild each other's work at every run."""
    other = tmp_path / "ninja"
    other.write_text("#!/bin/sh\necho 1.0\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    toolchain.prepare_compilers()
    expected = Path(sys.executable).parent / "ninja"
    assert shutil.which("ninja") == str(expected if expected.exists() else other)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPU machine whose nvcc, in `bin`, is a wrapper outside any toolkit: torch then takes its parent for one."""
    monkeypatch.setattr(toolchain, "on_gpu", lambda: True)
    monkeypatch.setattr(toolchain, "prepare_compilers", lambda: None)  # it would find what this machine has
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    for name in ("CUDA_HOME", "CUDA_PATH", "CPATH", "CPLUS_INCLUDE_PATH", "CUDA_INC_PATH"):
        monkeypatch.setenv(name, "")  # so that it is as before after the test, whatever the test sets
        monkeypatch.delenv(name)
    touch(tmp_path / "bin" / "nvcc")
    return tmp_path


def toolkit(home: Path, headers: tuple[str, ...] = (), include: str = "include") -> Path:
    touch(home / "bin" / "nvcc", *(home / include / name for name in (toolchain.RUNTIME_HEADER, *headers)))
    return home


def test_a_wrapped_nvcc_without_a_toolkit_is_a_problem(gpu: Path) -> None:
    toolchain.prepare_cuda([gpu / "usr"], [])
    (problem,) = toolchain.toolchain_problems()
    assert problem.startswith(f"{gpu} is not a whole CUDA toolkit (nvcc with cuda_runtime_api.h): set CUDA_HOME")
    assert "CUDA_HOME" not in os.environ


def test_no_nvcc_at_all_is_a_problem(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    toolchain.prepare_cuda([gpu / "usr"], [])
    assert toolchain.toolchain_problems() == ["no nvcc: install the CUDA toolkit 13.0 and set CUDA_HOME"]


def test_the_toolkit_behind_a_wrapped_nvcc_is_found_and_headers_may_be_pips(gpu: Path) -> None:
    older = toolkit(gpu / "usr" / "cuda-12.8", toolchain.LIBRARY_HEADERS)
    (gpu / "usr" / "cuda").symlink_to(older)
    home = toolkit(gpu / "usr" / "cuda-13.0")
    toolchain.prepare_cuda([gpu / "usr"], [])
    assert os.environ["CUDA_HOME"] == cpp_extension.CUDA_HOME == str(home)
    (problem,) = toolchain.toolchain_problems()
    assert problem.startswith("no cusparse.h, cublas_v2.h, cusolverDn.h: install all of the CUDA toolkit 13.0")

    one, each = gpu / "one" / "nvidia", gpu / "each" / "nvidia"  # pip's layouts of CUDA 13 and of CUDA 12
    touch(*(one / "cu13" / "include" / name for name in toolchain.LIBRARY_HEADERS), one / "nccl" / "include" / "nccl.h")
    touch(*(each / name.partition(".")[0] / "include" / name for name in toolchain.LIBRARY_HEADERS))
    for packages, folders in ((one, 1), (each, 3)):
        os.environ["CPLUS_INCLUDE_PATH"] = "/mine"
        toolchain.prepare_cuda([gpu / "usr"], [packages])
        assert toolchain.toolchain_problems() == []
        assert os.environ["CPLUS_INCLUDE_PATH"].startswith("/mine:")
        assert len(os.environ["CPLUS_INCLUDE_PATH"].split(":")) == 1 + folders


@pytest.mark.parametrize("include", ["include", "targets/x86_64-linux/include"])
def test_a_whole_toolkit_is_left_alone(gpu: Path, monkeypatch: pytest.MonkeyPatch, include: str) -> None:
    home = toolkit(gpu / "opt" / "cuda", toolchain.LIBRARY_HEADERS, include)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(home))
    toolkit(gpu / "usr" / "cuda-13.0")
    packages = gpu / "nvidia"
    touch(*(packages / "cu13" / "include" / name for name in toolchain.LIBRARY_HEADERS))
    before = dict(os.environ)
    toolchain.prepare_cuda([gpu / "usr"], [packages])
    assert toolchain.toolchain_problems() == [] and dict(os.environ) == before


def test_a_toolkit_that_the_user_named_is_kept_and_checked(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(gpu))
    toolkit(gpu / "usr" / "cuda-13.0", toolchain.LIBRARY_HEADERS)
    toolchain.prepare_cuda([gpu / "usr"], [])
    assert os.environ["CUDA_HOME"] == cpp_extension.CUDA_HOME == str(gpu)
    assert "is not a whole CUDA toolkit" in toolchain.toolchain_problems()[0]


def test_the_cpu_has_a_name_and_features() -> None:
    assert "\n" not in machine.cpu_name() and ":" not in machine.cpu_name()
    if Path("/proc/cpuinfo").exists() and machine.platform.machine() == "x86_64":
        assert machine.cpu_name() in Path("/proc/cpuinfo").read_text() and "sse2" in machine.cpu_flags()
