"""setup.py names every package that the code imports, and constraints.txt pins every one that setup.py names."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent

# Where the name of the package differs from that of the module.
PACKAGES = {"megatron": "megatron-core", "sklearn": "scikit-learn"}

FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("fast_electra", "kernels/fast_electra_kernels", "launch")
    for path in (ROOT / folder).rglob("*.py")
)


def imported(file: str) -> Iterator[tuple[str, int]]:
    """Full dotted names of all that a file imports, at its top or inside functions, with the line."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: import by the full name, not relatively"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def requirements() -> set[str]:
    """Names of all packages that setup.py asks for, extras included."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if node.targets[0].id in ("REQUIRES", "EXTRAS")
    }
    texts = [*values["REQUIRES"], *(text for extra in values["EXTRAS"].values() for text in extra)]
    return {Requirement(text).name for text in texts}


def test_setup_names_what_is_imported() -> None:
    ours = {"fast_electra", "fast_electra_kernels"}
    tops = {name.split(".")[0] for file in FILES for name, _ in imported(file)} - set(sys.stdlib_module_names) - ours
    optional = {"apex"}  # NVIDIA's is on no registry
    missing = {PACKAGES.get(top, top) for top in tops} - requirements() - optional
    assert not missing, f"setup.py does not name {missing}"


def test_pypi_apex_is_never_required() -> None:
    assert "apex" not in requirements()
    assert "apex" not in pinned()


def pinned() -> set[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}


def test_constraints_pin_every_requirement() -> None:
    """A fresh environment must not drift: each package that setup.py names has a version in constraints.txt."""
    unpinned = requirements() - pinned() - {"triton"}  # torch's CUDA build brings its own
    assert not unpinned, f"constraints.txt lacks {unpinned}"
