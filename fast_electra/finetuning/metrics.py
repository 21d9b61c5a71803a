"""The figures of a task: scores on a dev set, the confusion matrix, and the average of Table 5."""

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics

from fast_electra.finetuning.tasks import CORRELATIONS, TASKS, Metric, Task
from fast_electra.settings import UserError

Array = np.ndarray[Any, np.dtype[Any]]


def _f1(labels: Array, predicted: Array, classes: int) -> float:
    """Return the F1 of the second of two classes, as MRPC and QQP have it, or the mean F1 of more classes."""
    average = "binary" if classes == 2 else "macro"
    return float(metrics.f1_score(labels, predicted, labels=range(classes), average=average, zero_division=0))


_FORMULAS: dict[Metric, Callable[[Array, Array, int], float]] = {
    "accuracy": lambda labels, predicted, _: float(metrics.accuracy_score(labels, predicted)),
    "f1": _f1,
    "matthews": lambda labels, predicted, _: float(metrics.matthews_corrcoef(labels, predicted)),
    "spearman": lambda labels, predicted, _: float(stats.spearmanr(labels, predicted).statistic),
    "pearson": lambda labels, predicted, _: float(stats.pearsonr(labels, predicted).statistic),
}


def predicted(task: Task, outputs: Array) -> Array:
    """Return the predictions of outputs [n, C] or [n, 1]: class numbers, int64 [n], or values, float64 [n]."""
    return outputs[:, 0].astype(np.float64) if task.regression else outputs.argmax(axis=1)


def scores(task: Task, outputs: Array, labels: Array) -> dict[str, float]:
    """Return the task's metrics, the first one first.

    Where a correlation is not defined, because all predictions or all labels are equal, it is 0; `note` says so. All
    metrics are 0 for outputs that are not finite.

    Args:
        task: the task.
        outputs: logits of the classes [n, C], or values [n, 1].
        labels: class numbers or values [n].
    """
    wanted = (task.metric, *task.also)
    if not np.isfinite(outputs).all():
        return dict.fromkeys(wanted, 0.0)
    guesses = predicted(task, outputs)
    truth = labels if task.regression else labels.astype(np.int64)
    undefined = (*CORRELATIONS, "matthews") if _constant(guesses) or _constant(labels) else ()
    return {
        metric: 0.0 if metric in undefined else _FORMULAS[metric](truth, guesses, task.outputs) for metric in wanted
    }


def note(task: Task, outputs: Array, labels: Array) -> str | None:
    """Return a sentence about scores that say little: predictions that are all equal or not finite, or None."""
    if not np.isfinite(outputs).all():
        return "the model's outputs are not finite, so all metrics are set to 0"
    guesses = predicted(task, outputs)
    if _constant(guesses):
        value = f"{guesses[0]:.4g}" if task.regression else task.labels[guesses[0]]
        return f"all {len(guesses):,} predictions are {value}: the model learnt nothing that tells the rows apart"
    if _constant(labels) and {task.metric, *task.also} & {*CORRELATIONS, "matthews"}:
        return f"all {len(labels):,} labels are equal, so a correlation is not defined and set to 0"
    return None


def confusion(task: Task, outputs: Array, labels: Array) -> Array:
    """Return how many rows of each class were taken for each class, int64 [C, C]: true classes are the rows."""
    matrix: Array = metrics.confusion_matrix(
        labels.astype(np.int64), predicted(task, outputs), labels=range(task.outputs)
    )
    return matrix


def glue_average(scores_by_task: Mapping[str, Mapping[str, float]]) -> float:
    """Return the "Average Score" of Table 5: the mean of eight tasks, each the mean of its dev sets.

    So MNLI enters as the mean of matched and mismatched. Only that gives the averages of RoBERTa and MC-BERT in the
    table; where one of the two is not known, the other one alone is meant.

    Args:
        scores_by_task: for each task, the first metric on each dev set: {"mnli": {"dev_matched": ...}, ...}.

    Raises:
        UserError: a task is missing.
    """
    if missing := [TASKS[name].shown for name in TASKS if not scores_by_task.get(name)]:
        raise UserError(f"the GLUE average needs all eight tasks; {', '.join(missing)} is missing")
    return fmean(fmean(scores_by_task[name].values()) for name in TASKS)


def _constant(values: Array) -> bool:
    return bool((values == values[0]).all())
