"""What the config takes, DeepSpeed trains with: no value that was checked ends in DeepSpeed's traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_value_that_is_taken_trains(tmp_path: Path) -> None:
    script = Path(__file__).parent / "accepted_values.py"
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["failed"] == []
    assert result["taken"] > 150 and result["refused"] > 1000
