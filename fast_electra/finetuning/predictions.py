"""Predictions as files that the GLUE server takes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fast_electra.files import write_text
from fast_electra.finetuning.metrics import Array, predicted
from fast_electra.finetuning.tasks import Task

_SUFFIXES = {"test": "", "test_matched": "-m", "test_mismatched": "-mm"}


def write_predictions(folder: Path, task: Task, split: str, outputs: Array, ids: Sequence[str]) -> Path:
    """Write the predictions of one split, atomically, and return the file: CoLA.tsv, MNLI-mm.tsv, NAME.tsv.

    Each line has the row's index and its class, or its value within the task's range. The file of another split than a
    test set has the split in its name.

    Args:
        folder: where to write; it is made.
        task: the task.
        split: the name of the split, a key of `read_data`.
        outputs: logits of the classes [n, C], or values [n, 1].
        ids: the index of each row, as `read_data` gives it.
    """
    guesses = predicted(task, outputs)
    if task.regression:
        low, high = task.range or (-np.inf, np.inf)
        values = [np.format_float_positional(np.float32(value), trim="0") for value in guesses.clip(low, high)]
    else:
        values = [task.labels[guess] for guess in guesses]
    lines = ["index\tprediction", *(f"{index}\t{value}" for index, value in zip(ids, values, strict=True))]
    path = folder / f"{task.shown}{_SUFFIXES.get(split, f'-{split}')}.tsv"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(lines) + "\n")
    return path
