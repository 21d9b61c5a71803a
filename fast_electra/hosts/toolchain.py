"""The compilers and headers that DeepSpeed's operators need, and what is missing of them."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.utils import cpp_extension

from fast_electra.training.machine import on_gpu

RUNTIME_HEADER = "cuda_runtime_api.h"
LIBRARY_HEADERS = ("cusparse.h", "cublas_v2.h", "cusolverDn.h")  # torch's headers include them; a bare nvcc lacks them


def prepare_compilers() -> None:
    """Let torch find this environment's ninja and, on a GPU, a CUDA toolkit that can compile.

    A python that was called by its full path has neither its script folder nor, maybe, any ninja on PATH.
    """
    scripts = sysconfig.get_path("scripts")
    ninja = shutil.which("ninja", path=scripts)
    if ninja and shutil.which("ninja") != ninja:
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])
    if on_gpu():
        spec = importlib.util.find_spec("nvidia")
        packages = (spec.submodule_search_locations or ()) if spec else ()
        prepare_cuda([Path("/usr/local"), Path("/opt")], list(map(Path, packages)))


def prepare_cuda(roots: Iterable[Path], packages: Iterable[Path]) -> None:
    """Set CUDA_HOME and CPLUS_INCLUDE_PATH where torch's own choice of a toolkit cannot compile.

    torch takes the folder above `nvcc`, but that nvcc may be a wrapper outside the toolkit. `roots` may hold a toolkit
    of torch's CUDA version, as `cuda-13.0`, `cuda-13*` or `cuda`. The headers of cuSPARSE, cuBLAS and cuSOLVER are
    often only in `packages`, pip's `nvidia` folders. A CUDA_HOME that the user has set stays.
    """
    version = torch.version.cuda or ""
    if not {"CUDA_HOME", "CUDA_PATH"} & os.environ.keys() and not _is_toolkit(cpp_extension.CUDA_HOME):
        names = (f"cuda-{version}", f"cuda-{version.split('.')[0]}*", "cuda")
        usual = (str(home) for root in roots for name in names for home in sorted(root.glob(name)))
        if home := next(filter(_is_toolkit, usual), None):
            os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = home  # torch read the environment at its import
    missing = _missing_headers()
    include = [folder for package in packages for folder in sorted(package.glob("*/include"))]
    if found := [str(folder) for folder in include if any((folder / name).exists() for name in missing)]:
        given = os.environ.get("CPLUS_INCLUDE_PATH")
        os.environ["CPLUS_INCLUDE_PATH"] = os.pathsep.join([given, *found] if given else found)


def toolchain_problems() -> list[str]:
    """Return what keeps this machine from compiling operators, each with its remedy; empty if nothing does."""
    prepare_compilers()
    problems = []
    compiler = cpp_extension.get_cxx_compiler().split()[0]
    if shutil.which(compiler) is None:
        problems.append(f"no C++ compiler ({compiler}): install g++ (Debian: apt-get install g++), or set CXX")
    if shutil.which("ninja") is None:
        problems.append("no ninja on PATH: pip install ninja, and activate the environment (. .venv/bin/activate)")
    if not (header := Path(sysconfig.get_paths()["include"], "Python.h")).exists():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        problems.append(f"no {header}: install Python's headers (Debian: apt-get install python{version}-dev)")
    if not on_gpu():
        return problems
    home, toolkit = cpp_extension.CUDA_HOME, f"the CUDA toolkit {torch.version.cuda}"
    if home is None:
        problems.append(f"no nvcc: install {toolkit} and set CUDA_HOME")
    elif not _is_toolkit(home):
        problems.append(f"{home} is not a whole CUDA toolkit (nvcc with {RUNTIME_HEADER}): set CUDA_HOME to {toolkit}")
    elif missing := _missing_headers():
        problems.append(f"no {', '.join(missing)}: install all of {toolkit}, or set CPATH to its headers' folders")
    return problems


def _is_toolkit(home: str | None) -> bool:
    return home is not None and Path(home, "bin", "nvcc").exists() and _has(_includes(home), RUNTIME_HEADER)


def _missing_headers() -> list[str]:
    """Return which library headers the compiler would not find."""
    variables = (os.environ.get(name, "") for name in ("CPATH", "CPLUS_INCLUDE_PATH", "CUDA_INC_PATH"))
    folders = [Path(folder) for value in variables for folder in value.split(os.pathsep) if folder]
    return [name for name in LIBRARY_HEADERS if not _has(folders + _includes(cpp_extension.CUDA_HOME), name)]


def _includes(home: str | None) -> list[Path]:
    return [Path(home, "include"), *Path(home).glob("targets/*/include")] if home else []


def _has(folders: list[Path], header: str) -> bool:
    return any((folder / header).exists() for folder in folders)
