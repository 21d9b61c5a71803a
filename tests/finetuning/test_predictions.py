"""Predictions as the GLUE server takes them, read back by the standard library alone."""

import csv
from pathlib import Path

import numpy as np
import pytest
from finetuning.glue_files import write_glue

from fast_electra.finetuning.predictions import write_predictions
from fast_electra.finetuning.tables import read_data
from fast_electra.finetuning.tasks import TASKS, Task

SERVER = {
    "cola": ["CoLA.tsv"],
    "sst2": ["SST-2.tsv"],
    "mrpc": ["MRPC.tsv"],
    "qqp": ["QQP.tsv"],
    "stsb": ["STS-B.tsv"],
    "mnli": ["MNLI-m.tsv", "MNLI-mm.tsv"],
    "qnli": ["QNLI.tsv"],
    "rte": ["RTE.tsv"],
}


@pytest.mark.parametrize("name", TASKS)
def test_round_trip(tmp_path: Path, name: str) -> None:
    task, folder = TASKS[name], tmp_path / "predictions"
    data = read_data(task, write_glue(tmp_path, name, 12))
    rng = np.random.default_rng(0)
    for split, file in zip([split for split in data if split.startswith("test")], SERVER[name], strict=True):
        outputs = rng.normal(size=(6, task.outputs), scale=4)
        path = write_predictions(folder, task, split, outputs, data[split].ids)
        assert path == folder / file
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        assert list(rows[0]) == ["index", "prediction"]
        assert [row["index"] for row in rows] == [str(number) for number in range(6)]
        if task.regression:
            found = [float(row["prediction"]) for row in rows]
            assert found == pytest.approx(outputs[:, 0].clip(0, 5), rel=1e-6)
        else:
            assert [task.labels.index(row["prediction"]) for row in rows] == outputs.argmax(axis=1).tolist()
    assert sorted(path.name for path in folder.iterdir()) == SERVER[name]


def test_own_task(tmp_path: Path) -> None:
    """Nothing clips the values of a task without a range, and none is written with an exponent."""
    task = Task(name="stars", fields=("text",), metric="pearson")
    path = write_predictions(tmp_path, task, "test", np.array([[1e-7], [-12345678.0], [2.0]]), ["a", "b", "c"])
    assert path.read_text(encoding="utf-8").splitlines()[1:] == ["a\t0.0000001", "b\t-12345678.0", "c\t2.0"]
    assert path.name == "stars.tsv"
    assert write_predictions(tmp_path, task, "dev", np.zeros((1, 1)), ["a"]).name == "stars-dev.tsv"


def test_nothing_half_written(tmp_path: Path) -> None:
    path = write_predictions(tmp_path, TASKS["rte"], "test", np.zeros((2, 2)), ["0", "1"])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="longer"):
        write_predictions(tmp_path, TASKS["rte"], "test", np.zeros((3, 2)), ["0", "1"])
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]
