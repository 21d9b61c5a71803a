"""The scores without pre-training, of experiments/floors.py."""

import sys

import pytest
from conftest import ROOT
from finetuning.glue_files import examples

from fast_electra.finetuning.tables import Table
from fast_electra.finetuning.tasks import TASKS

sys.path.append(str(ROOT / "experiments"))
import floors
import numpy as np


def table(name: str, rows: int, split: str) -> Table:
    task = TASKS[name]
    texts, labels = zip(*examples(task, rows, split), strict=True)
    values = [float(label) if task.regression else task.labels.index(label) for label in labels]
    return Table(texts=list(texts), labels=np.array(values, dtype=float))


@pytest.mark.parametrize(("name", "majority"), [("sst2", 0.5), ("rte", 0.5), ("stsb", 0.0), ("mnli", 1 / 3)])
def test_a_word_that_tells_the_class_is_found(name: str, majority: float) -> None:
    task = TASKS[name]
    data = {split: table(name, rows, split) for split, rows in (("train", 90), (task.dev[0], 30), ("test", 60))}
    found = floors.floors(task, data)
    assert found["majority"][task.metric] == pytest.approx(majority)
    assert found["tfidf"][task.metric] > 0.9
