"""The scores of several runs side by side."""

import json
from pathlib import Path
from typing import Any

import pytest

from fast_electra.files import write_sealed
from fast_electra.finetuning.scoreboard import entries, to_json, to_text
from fast_electra.finetuning.tasks import TASKS
from fast_electra.settings import UserError

# Fast-ELECTRA's base row of Table 5, with MNLI as the mean of 89.4 and 88.8.
TABLE_5 = {"mnli": 89.1, "qqp": 92.1, "qnli": 93.8, "sst2": 94.5, "cola": 71.4, "rte": 85.6, "mrpc": 91.4, "stsb": 91.6}


def run(folder: Path, task: str, score: float) -> Path:
    folder.mkdir(parents=True)
    values: dict[str, Any] = {"task": task, "metric": "accuracy", "dev": {"heldout_score": score}}
    write_sealed(folder / "scores.json", values)
    return folder


def search(folder: Path, task: str, scores: list[float]) -> Path:
    folder.mkdir(parents=True)
    settings = [{"setting": "epochs=3", "scores": scores}, {"setting": "epochs=2", "scores": [0.0]}]
    (folder / "results.json").write_text(json.dumps({"task": task, "metric": "accuracy", "settings": settings}))
    return folder


def test_the_average_is_that_of_table_5(tmp_path: Path) -> None:
    for task, score in TABLE_5.items():
        if task == "rte":  # a search counts by the median of its best setting
            search(tmp_path / task, task, [0.1, score / 100, 0.99])
        else:
            run(tmp_path / task, task, score / 100)
    found = entries([tmp_path])
    assert len(found) == len(TASKS) and "GLUE average, as in Table 5: 88.7" in to_text(found)
    (line,) = [line for line in to_text(found).splitlines() if line.startswith("RTE")]
    assert "0.8560     3: 0.1000 to 0.9900  epochs=3" in line
    assert {row["task"]: row["median"] for row in json.loads(to_json(found))} == pytest.approx(
        {task: score / 100 for task, score in TABLE_5.items()}
    )


def test_without_all_tasks_the_missing_ones_are_named(tmp_path: Path) -> None:
    runs = [run(tmp_path / task, task, 0.5) for task in TASKS if task not in ("cola", "rte")]
    assert to_text(entries(runs)).splitlines()[-1] == "no GLUE average: CoLA, RTE missing"
    own = run(tmp_path / "own", "reviews", 0.5)
    assert "GLUE" not in to_text(entries([own]))


def test_two_runs_of_one_task_make_no_average(tmp_path: Path) -> None:
    runs = [run(tmp_path / task, task, 0.5) for task in TASKS]
    again = run(tmp_path / "again", "rte", 0.6)
    assert to_text(entries([*runs, again])).splitlines()[-1] == "no GLUE average: a task is there twice"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"task": "rte"}', '{"task": 1, "metric": 2, "settings": []}'])
@pytest.mark.parametrize("name", ["scores.json", "results.json"])
def test_a_damaged_file_is_one_line(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"^[^\n]*{name} cannot be read [^\n]*$"):
        entries([tmp_path])


def test_a_folder_without_runs_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no scores.json or results.json: name a run of launch/finetune.py"):
        entries([tmp_path])
