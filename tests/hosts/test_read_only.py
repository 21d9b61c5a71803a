"""An environment that may be read and not written, as on many clusters."""

import os
from pathlib import Path

import pytest

from fast_electra.hosts import operators


@pytest.mark.parametrize("home_is_writable", [True, False])
def test_what_a_read_only_environment_holds_is_copied_to_where_torch_may_write(
    home_is_writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, home = tmp_path / "environment", tmp_path / "home"
    if not home_is_writable:
        home.write_text("no folder")
    monkeypatch.setattr("sys.prefix", str(environment))
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(operators.cpp_extension, "get_default_build_root", lambda: str(home))
    environment.mkdir()
    operators.prepare_environment()
    leaf = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    assert leaf.parent == environment / "torch_extensions"
    (leaf / "fused_adam").mkdir(parents=True)
    (leaf / "fused_adam/fused_adam.so").write_text("built")

    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(environment) and writable(path, mode))
    for _ in range(2):
        folder = operators.op_folder("fused_adam")
        assert folder == home / leaf.name / "fused_adam"
        if home_is_writable:
            assert (folder / "fused_adam.so").read_text() == "built"
            assert [path.name for path in home.iterdir()] == [leaf.name]
