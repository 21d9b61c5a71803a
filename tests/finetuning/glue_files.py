"""Small files of the eight GLUE tasks in GLUE's own layout, with the quirks of the real ones, and easy to learn.

A word in the last text of each row tells its class or value: one of `CLUES`.
"""

import random
from pathlib import Path

from fast_electra.finetuning.tasks import TASKS, Task

CLUES = ("war", "law", "money")  # one for each class
SUBJECTS = ("the captain", "my sister", "a farmer", "the old king", "her friend", "the president")
VERBS = ("spoke of", "asked about", "thought of", "wrote on")
ENDS = ("in the morning", "at home", "again", "that year", "with great care")

_NLI = ["index", "promptID", "pairID", "genre"] + [
    f"sentence{n}{kind}" for kind in ("_binary_parse", "_parse") for n in "12"
]
# Columns of train, dev and test; what a row has no value for is filled with "x".
COLUMNS = {
    "cola": [["source", "label", "mark", "sentence"]] * 2 + [["index", "sentence"]],
    "sst2": [["sentence", "label"]] * 2 + [["index", "sentence"]],
    "mrpc": [["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]] * 2
    + [["index", "#1 ID", "#2 ID", "#1 String", "#2 String"]],
    "qqp": [["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]] * 2 + [["id", "question1", "question2"]],
    "stsb": [
        ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score"]
    ]
    * 2
    + [["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2"]],
    "mnli": [
        [*_NLI, "sentence1", "sentence2", "label1", "gold_label"],
        [*_NLI, "sentence1", "sentence2", "label1", "label2", "label3", "label4", "label5", "gold_label"],
        [*_NLI, "sentence1", "sentence2"],
    ],
    "qnli": [["index", "question", "sentence", "label"]] * 2 + [["index", "question", "sentence"]],
    "rte": [["index", "sentence1", "sentence2", "label"]] * 2 + [["index", "sentence1", "sentence2"]],
}
QQP_MALFORMED = 2  # rows of QQP's training file that cannot be used: one is short, one has an empty question


def examples(task: Task, rows: int, seed: object) -> list[tuple[tuple[str, ...], str]]:
    """The texts of each row and its label as GLUE writes it. Classes are as frequent as each other."""
    rng = random.Random(f"{task.name} {seed}")
    out = []
    for row in range(rows):
        clue = row % (task.outputs if task.labels else len(CLUES))
        label = task.labels[clue] if task.labels else f"{2.5 * clue:.3f}"
        first = " ".join(map(rng.choice, (SUBJECTS, VERBS, ENDS)))
        last = " ".join((rng.choice(SUBJECTS), rng.choice(VERBS), CLUES[clue], rng.choice(ENDS)))
        # Characters that a careless reader would take for the end of a row or the beginning of a quoted one.
        last = {1: f'"{last}', 2: f"{last}\u2028then", 3: f"{last}\x85", 4: f"{last}\rthen"}.get(row, last)
        out.append(((first, last)[-len(task.fields) :], label))
    rng.shuffle(out)
    return out


def write_glue(folder: Path, task: str, rows: int) -> Path:
    """Write `rows` training rows and a half as many of each dev and test set into the task's folder; return that."""
    spec = TASKS[task]
    place = folder / spec.shown
    place.mkdir(parents=True)
    for split in spec.files:
        kind = ("train", "dev", "test").index(split.split("_")[0])
        columns = COLUMNS[task][kind]
        header = [] if task == "cola" and kind < 2 else ["\t".join(columns)]
        lines = []
        for index, (texts, label) in enumerate(examples(spec, rows if kind == 0 else rows // 2, split)):
            if task == "sst2":
                texts = (texts[0] + " ",)
            values = dict.fromkeys(("index", "id"), str(index)) | dict(zip(spec.fields, texts, strict=True))
            lines.append("\t".join((values | {spec.label: label}).get(column, "x") for column in columns))
        if task == "qqp" and kind == 0:
            lines[1:1] = ["7\t8\t9"]
            lines[3:3] = ["7\t8\t9\tWho is it?\t\t0"]
        mark = "\ufeff" if task == "mrpc" else ""
        (place / f"{split}.tsv").write_text(mark + "\n".join([*header, *lines]) + "\n", encoding="utf-8", newline="\n")
    return place
