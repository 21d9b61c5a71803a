"""The tasks of Table 5 and tasks of JSON files."""

import subprocess
import sys
from pathlib import Path

import pytest

from fast_electra.finetuning.tasks import TASKS, open_task
from fast_electra.settings import UserError

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments" / "tasks").glob("*.json"))


def test_metrics_are_those_of_the_paper() -> None:
    """C.1: Spearman correlation on STS-B, Matthews correlation on CoLA, and accuracy on the rest."""
    special = {"stsb": "spearman", "cola": "matthews"}
    assert {name: task.metric for name, task in TASKS.items()} == {
        name: special.get(name, "accuracy") for name in TASKS
    }
    assert len(TASKS) == 8
    assert TASKS["mnli"].dev == ["dev_matched", "dev_mismatched"]
    assert TASKS["mrpc"].also == TASKS["qqp"].also == ("f1",)


@pytest.mark.parametrize("written", ["SST-2", "sst2", "sst-2", "Sst_2"])
def test_names(written: str) -> None:
    assert open_task(written) is TASKS["sst2"]


def test_nearest_name() -> None:
    with pytest.raises(UserError, match="unknown task 'mnly'; did you mean mnli"):
        open_task("mnly")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_tasks_of_the_experiments(path: Path) -> None:
    assert open_task(str(path)).name == path.stem


def test_smallest_task(tmp_path: Path) -> None:
    path = tmp_path / "own"  # any file will do
    path.write_text('\ufeff{"name": "own", "fields": ["text"], "metric": "pearson"}', encoding="utf-8")
    task = open_task(str(path))
    assert task.regression and task.outputs == 1 and task.dev == ["dev"] and task.shown == "own"


def test_the_room_is_light() -> None:
    modules = ", ".join(f"fast_electra.finetuning.{name}" for name in ("metrics", "predictions", "tables", "tasks"))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
