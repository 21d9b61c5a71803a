"""The page of a fine-tuning run: dev scores as a curve, and what was taken for what."""

import json
from pathlib import Path
from typing import Any

import pytest
from pages import Page, train

from fast_electra.report.page import write_report
from fast_electra.training.metrics import Metrics

MATRIX = [[30, 10], [5, 15]]


def tuned(run: Path, scores: Any) -> Page:
    train(run, 20)
    settings = json.loads((run / "config.json").read_text())
    settings["fast_electra"] = {"run": str(run), "task": "rte", "updates": 20}
    (run / "config.json").write_text(json.dumps(settings))
    metrics = Metrics(run, 20, 20)
    metrics.evaluation({"update": 20, "heldout_loss": 0.5, "heldout_accuracy": 0.75, "heldout_score": 0.75})
    metrics.close()
    (run / "scores.json").write_text(json.dumps(scores))
    return Page(write_report([run], run / "report.html").read_text())


def test_a_task_has_its_score_its_curve_and_its_confusion_matrix(tmp_path: Path) -> None:
    labels = ["entailment", "not <entailment>"]
    page = tuned(tmp_path / "run", {"labels": labels, "confusion": {"dev": MATRIX}})
    assert "dev score 0.750" in page.text("li") and "Results on the dev set" in page.text("h3")
    assert "Dev score" in [attributes.get("aria-label") for tag, attributes in page.elements if tag == "svg"]
    assert "predicted entailment predicted not <entailment> entailment not <entailment>" in page.text("th")
    cells = page.text("td", "span")
    assert "30 75% 10 25%" in cells and "5 25% 15 75%" in cells


@pytest.mark.parametrize(
    "scores",
    [
        {"labels": ["a", "b"], "confusion": {"dev": [[1, 2]]}},
        {"labels": ["a", "b"], "confusion": {"dev": [[1, 2], [3, "4"]]}},
        {"labels": ["a", "b"], "confusion": [MATRIX]},
        {"labels": 2, "confusion": {"dev": MATRIX}},
        {"labels": [], "confusion": {}},
        [],
        None,
    ],
)
def test_a_matrix_of_another_shape_is_left_out(tmp_path: Path, scores: Any) -> None:
    page = tuned(tmp_path / "run", scores)
    assert "What was taken for what" not in page.text("h3") and "dev score 0.750" in page.text("li")
