"""Metrics beside formulas of their own, the cases that have no correlation, and the averages of Table 5."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fast_electra.finetuning.metrics import confusion, glue_average, note, scores
from fast_electra.finetuning.tasks import TASKS, Task
from fast_electra.settings import UserError

CLASSES = Task(name="own", fields=("text",), labels=("a", "b", "c"), metric="accuracy", also=("f1", "matthews"))
VALUES = TASKS["stsb"]


def logits(classes: list[int], count: int) -> np.ndarray:
    return np.eye(count)[classes] - 0.25


def test_binary_against_counts() -> None:
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    guess[:120] = truth[:120]
    tp, fp = np.sum((guess == 1) & (truth == 1)), np.sum((guess == 1) & (truth == 0))
    fn, tn = np.sum((guess == 0) & (truth == 1)), np.sum((guess == 0) & (truth == 0))
    outputs = logits(guess.tolist(), 2)
    matthews = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert scores(TASKS["cola"], outputs, truth.astype(float)) == pytest.approx(
        {"matthews": matthews, "accuracy": (tp + tn) / 200}
    )
    assert scores(TASKS["mrpc"], outputs, truth.astype(float)) == pytest.approx(
        {"accuracy": (tp + tn) / 200, "f1": 2 * tp / (2 * tp + fp + fn)}
    )
    assert confusion(TASKS["cola"], outputs, truth.astype(float)).tolist() == [[tn, fp], [fn, tp]]


def test_three_classes_against_covariances() -> None:
    """Matthews correlation is that of the one-hot vectors; F1 is the mean over the classes."""
    truth, guess = [0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 0, 1, 1, 2, 0, 2, 2]
    left, right = (np.eye(3)[rows] - np.eye(3)[rows].mean(axis=0) for rows in (truth, guess))
    matthews = (left * right).sum() / math.sqrt((left**2).sum() * (right**2).sum())
    found = scores(CLASSES, logits(guess, 3), np.array(truth, dtype=float))
    f1 = (2 * 2 / (3 + 3) + 2 * 2 / (2 + 3) + 2 * 3 / (4 + 3)) / 3
    assert found == pytest.approx({"accuracy": 7 / 9, "f1": f1, "matthews": matthews})
    assert confusion(CLASSES, logits([1, 1], 3), np.array([0.0, 1.0])).tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-9, 9)), min_size=3, max_size=30))
def test_correlations_against_ranks(pairs: list[tuple[int, int]]) -> None:
    truth, guess = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    if len(set(truth)) == 1 or len(set(guess)) == 1:
        wanted = {"spearman": 0.0, "pearson": 0.0}
    else:
        ranks = [[(np.sum(rows < row) + np.sum(rows <= row)) / 2 for row in rows] for rows in (truth, guess)]
        wanted = {"spearman": np.corrcoef(*ranks)[0, 1], "pearson": np.corrcoef(truth, guess)[0, 1]}
    assert scores(VALUES, guess[:, None], truth) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.filterwarnings("error")  # scipy and scikit-learn warn where they return NaN or leave a class out
@pytest.mark.parametrize("name", TASKS)
def test_constant_predictions(name: str) -> None:
    task = TASKS[name]
    outputs = np.zeros((6, task.outputs), dtype=np.float32)
    labels = np.arange(6) % max(task.outputs, 2) * 1.0
    found = scores(task, outputs, labels)
    assert all(math.isfinite(value) for value in found.values())
    if task.metric != "accuracy":
        assert found[task.metric] == 0
    sentence = note(task, outputs, labels)
    assert sentence is not None and sentence.startswith("all 6 predictions are ")


@pytest.mark.filterwarnings("error")
def test_what_says_little_is_noted() -> None:
    labels = np.array([0.0, 1.0, 2.0])
    good = np.array([[0.1], [0.7], [2.5]])
    assert note(VALUES, good, labels) is None
    assert scores(VALUES, np.array([[0.1], [math.nan], [2.5]]), labels) == {"spearman": 0, "pearson": 0}
    assert "not finite" in str(note(VALUES, np.array([[0.1], [math.inf], [2.5]]), labels))
    assert scores(VALUES, good, np.ones(3)) == {"spearman": 0, "pearson": 0}
    assert "labels are equal" in str(note(VALUES, good, np.ones(3)))
    assert "labels are equal" in str(note(CLASSES, logits([0, 1], 3), np.ones(2)))
    assert note(TASKS["rte"], logits([0, 1], 2), np.ones(2)) is None  # an accuracy says as much as ever
    assert scores(TASKS["cola"], logits([1, 1], 2), np.ones(2)) == {"matthews": 0, "accuracy": 1}


# Rows of Table 5: MNLI matched and mismatched, QQP, QNLI, SST-2, CoLA, RTE, MRPC, STS-B, and the average score. That of
# COCO-LM follows from neither reading of the table.
ORDER = ("qqp", "qnli", "sst2", "cola", "rte", "mrpc", "stsb")
TABLE_5 = {
    "BERT": ((84.5,), 91.3, 91.7, 93.2, 58.9, 68.6, 87.3, 89.5, 83.1),
    "RoBERTa": ((85.8, 85.5), 91.3, 92.0, 93.7, 60.1, 68.2, 87.3, 88.5, 83.3),
    "TUPE": ((86.2, 86.2), 91.3, 92.2, 93.3, 63.6, 73.6, 89.9, 89.2, 84.9),
    "ELECTRA": ((86.9, 86.7), 91.9, 92.6, 93.6, 66.2, 75.1, 88.2, 89.7, 85.5),
    "MC-BERT": ((85.7, 85.2), 89.7, 91.3, 92.3, 62.1, 75.0, 86.0, 88.0, 83.7),
    "AMOS": ((88.9, 88.7), 92.3, 93.6, 94.2, 70.7, 86.6, 90.9, 91.6, 88.6),
    "METRO": ((89.0, 88.8), 92.2, 93.4, 95.0, 70.6, 86.5, 91.2, 91.2, 88.6),
    "Fast-ELECTRA base": ((89.4, 88.8), 92.1, 93.8, 94.5, 71.4, 85.6, 91.4, 91.6, 88.7),
    "RoBERTa large": ((89.0,), 91.9, 93.9, 95.3, 66.3, 84.5, 90.2, 91.6, 87.8),
    "METRO large": ((89.9, 90.2), 92.5, 94.5, 94.3, 69.7, 88.8, 91.9, 91.6, 89.2),
    "Fast-ELECTRA large": ((90.1, 90.2), 92.4, 94.5, 95.1, 72.1, 87.4, 90.7, 91.9, 89.3),
}


@pytest.mark.parametrize("model", TABLE_5)
def test_average_of_table_5(model: str) -> None:
    mnli, *rest, average = TABLE_5[model]
    found = {"mnli": dict(zip(TASKS["mnli"].dev, mnli, strict=False))}
    found |= {name: {"dev": score} for name, score in zip(ORDER, rest, strict=True)}
    assert round(glue_average(found), 1) == average


def test_average_needs_every_task() -> None:
    with pytest.raises(UserError, match="STS-B, QNLI is missing"):
        glue_average({name: {"dev": 1.0} for name in TASKS if name not in ("stsb", "qnli")})
