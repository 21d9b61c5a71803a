"""What needs no pre-training: the scores of the commonest answer, and of a linear model on words and pairs of words.

    python experiments/floors.py --data DIR

prints them for the test sets of the tasks in experiments/tasks/. In DIR, each task has a folder of its name. Nothing
here is random, so there is no spread over seeds.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge, RidgeClassifier

from fast_electra.files import write_json
from fast_electra.finetuning.metrics import scores
from fast_electra.finetuning.tables import Table, read_data
from fast_electra.finetuning.tasks import Task, open_task

TASKS = sorted((Path(__file__).parent / "tasks").glob("*.json"))
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the linear model: the best on the dev set is taken


def floors(task: Task, data: dict[str, Table]) -> dict[str, dict[str, float]]:
    """Scores of `majority` and `tfidf` on the test set."""
    train, dev, test = data["train"], data[task.dev[0]], data["test"]
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    vectors.fit([text for texts in train.texts for text in texts])
    train_x, dev_x, test_x = (_features(vectors, table) for table in (train, dev, test))

    def fit(penalty: float) -> Any:
        return (Ridge if task.regression else RidgeClassifier)(penalty).fit(train_x, train.labels)

    best = max(
        map(fit, PENALTIES), key=lambda model: scores(task, _outputs(task, model, dev_x), dev.labels)[task.metric]
    )
    common = [train.labels.mean()] if task.regression else np.bincount(train.labels.astype(int), minlength=task.outputs)
    return {
        "majority": scores(task, np.tile(common, (len(test), 1)), test.labels),
        "tfidf": scores(task, _outputs(task, best, test_x), test.labels),
    }


def _features(vectors: TfidfVectorizer, table: Table) -> csr_matrix:
    """TF-IDF of each text, and for a pair also their cosine: a linear model cannot compare two texts by itself."""
    parts = [vectors.transform(texts) for texts in zip(*table.texts, strict=True)]
    if len(parts) == 2:
        parts.append(csr_matrix(parts[0].multiply(parts[1]).sum(axis=1)))
    return hstack(parts).tocsr()


def _outputs(task: Task, model: Any, features: csr_matrix) -> np.ndarray:
    if task.regression:
        return model.predict(features)[:, None]
    values = model.decision_function(features)
    return values if values.ndim == 2 else np.stack([-values, values], axis=1)  # of two classes it gives one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with a folder for each task")
    parser.add_argument("--json", type=Path, help="a file to write all metrics to")
    arguments = parser.parse_args()
    found = {}
    for path in TASKS:
        task = open_task(str(path))
        found[task.name] = floors(task, read_data(task, arguments.data))
        shown = ", ".join(f"{name} {values[task.metric]:.3f}" for name, values in found[task.name].items())
        print(f"{task.name}: {task.metric} of {shown}", flush=True)
    if arguments.json:
        write_json(arguments.json, found)


if __name__ == "__main__":
    main()
