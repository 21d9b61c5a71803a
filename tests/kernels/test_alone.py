"""The kernels install and work without fast_electra."""

import shutil
import subprocess
import sys
from pathlib import Path

KERNELS = Path(__file__).parents[2] / "kernels"

USE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
import fast_electra_kernels
assert fast_electra_kernels.__file__.startswith(sys.argv[1])
hidden, weight = torch.randn(5, 8), torch.randn(100, 8)
ids = fast_electra_kernels.sample(hidden, weight, scale=0.5, keys_M=torch.randint(-(2**63), 2**63 - 1, (5,)))
assert ids.shape == (5,) and 0 <= int(ids.min()) and int(ids.max()) < 100
assert "fast_electra" not in sys.modules
"""


def test_installed_alone(tmp_path: Path) -> None:
    """Install from kernels/ into an empty folder, and use the package from there."""
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(KERNELS, source)  # a build leaves files beside its source
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    for command in ([*install, "--target", str(site), str(source)], [sys.executable, "-c", USE, str(site)]):
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
