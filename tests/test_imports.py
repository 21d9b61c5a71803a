"""The house's order: imports point left only, DeepSpeed has its few places, and setup.py names what is imported."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent

# Left to right; a module may import from its own group and from those before it.
ORDER = [
    {"fast_electra_kernels"},
    {"batch", "curriculum", "randomness", "settings", "files"},
    {"corpus", "model"},
    {"replacement"},
    {"corruption"},
    {"objectives"},
    {"training"},
    {"glue", "cost"},
    {"config", "recipes"},
    {"assembly", "pretraining", "preprocessing", "provenance", "launching", "measuring", "estimation", "calibration"},
    {"cli", "doctor", "launch"},
]
LEVEL = {name: level for level, group in enumerate(ORDER) for name in group}

DEEPSPEED = {
    "fast_electra/training/engines.py",
    "fast_electra/training/ops.py",
    "fast_electra/training/deepspeed_config.py",  # its keys, to refuse unknown ones
}
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


def concept(name: str) -> str | None:
    """The part of the house that a dotted name belongs to; None for what is not ours, or the bare package."""
    parts = name.split(".")
    if parts[0] == "fast_electra":
        return parts[1] if len(parts) > 1 and parts[1] != "__version__" else None
    return parts[0] if parts[0] in LEVEL else None


def concept_of(file: str) -> str | None:
    path = Path(file).with_suffix("")
    if path.parts[0] == "launch":
        return "launch"
    parts = path.parts[1:] if path.parts[0] == "kernels" else path.parts
    return concept(".".join(part for part in parts if part != "__init__"))


@pytest.mark.parametrize("file", FILES)
def test_imports_point_left(file: str) -> None:
    own = concept_of(file)
    if own is None:  # fast_electra/__init__.py
        assert not list(imported(file)), "the package itself must stay free of imports"
        return
    assert own in LEVEL, f"{file}: give `{own}` its place in ORDER"
    for name, line in imported(file):
        if (other := concept(name)) is not None:
            assert other in LEVEL, f"{file}:{line}: `{name}` has no place in ORDER"
            assert LEVEL[other] <= LEVEL[own], (
                f"{file}:{line}: `{own}` may not import `{name}`, which stands to its right"
            )


def test_deepspeed_has_its_few_places() -> None:
    found = {file for file in FILES for name, _ in imported(file) if name.split(".")[0] == "deepspeed"}
    assert found <= DEEPSPEED
    assert "fast_electra/training/engines.py" in found  # the test looks in the right place


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
