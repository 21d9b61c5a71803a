"""What a task is: columns, classes, metrics and file names. The eight tasks of Table 5, and a user's own in JSON."""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, ValidationError, model_validator

from fast_electra import config_file
from fast_electra.settings import Settings, UserError, nearest, one_line

Metric = Literal["accuracy", "f1", "matthews", "spearman", "pearson"]
METRICS: tuple[Metric, ...] = get_args(Metric)
CORRELATIONS = ("spearman", "pearson")  # the metrics of a regression


def _text(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError("must be printable text")
    return value


def _file_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
        raise ValueError("must be at most 100 letters, digits, dots and dashes")
    return value


Text = Annotated[str, AfterValidator(_text)]
FileName = Annotated[str, AfterValidator(_file_name)]


class Task(Settings):
    """A classification or a regression of one text or of a pair of texts."""

    name: FileName = Field(description="text: the name of the task")
    fields: tuple[Text, ...] = Field(
        min_length=1, max_length=2, description="a list of one or two names of columns, each with a text"
    )
    label: Text = Field(default="label", description="the name of the column that holds the label")
    labels: tuple[Text, ...] = Field(
        default=(), description="a list of the classes as text, in the order of the outputs; [] for a regression"
    )
    range: tuple[float, float] | None = Field(
        default=None, description="[lowest, highest] value of a regression, or null"
    )
    metric: Metric = Field(description=f"one of {', '.join(METRICS)}")
    also: tuple[Metric, ...] = Field(default=(), description=f"a list of further metrics: {', '.join(METRICS)}")
    files: dict[FileName, tuple[Text, ...]] = Field(
        default={"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)},
        description="a section of lists: possible names of the files of train, dev and test, with or without suffix",
    )
    header: tuple[Text, ...] = Field(
        default=(), description="a list of the names of all columns, for text files that do not begin with them"
    )
    aliases: dict[str, Text] = Field(default={}, description="a section: another name of a column, and its name")
    title: FileName | None = Field(default=None, description="a name to show and to write files with, or null")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        columns = [*self.fields, self.label]
        if len(set(columns)) < len(columns):
            raise ValueError(f"fields and label must be different columns, not {', '.join(columns)}")
        if len(set(self.labels)) < len(self.labels) or len(self.labels) == 1:
            raise ValueError("labels must be two or more different classes, or [] for a regression")
        if any(label != label.strip() for label in self.labels):
            raise ValueError("labels must have no spaces around them")
        for metric in (self.metric, *self.also):
            if (metric in CORRELATIONS) != self.regression:
                kind = "regression (labels is [])" if self.regression else "classification"
                raise ValueError(f"{metric} is no metric of a {kind}")
        if self.range and not (self.regression and self.range[0] < self.range[1]):
            raise ValueError("range must be [lowest, highest], and only for a regression")
        if self.header and not set(columns) <= set(self.header):
            raise ValueError(f"header must name all columns, among them {', '.join(columns)}")
        if "train" not in self.files or not self.dev or not all(self.files.values()):
            raise ValueError("files must name train and dev, and no list may be empty")
        if wrong := [split for split in self.files if split.split("_")[0] not in ("train", "dev", "test")]:
            raise ValueError(f"files: {wrong[0]} must be train, dev or test; dev_NAME and test_NAME are further sets")
        return self

    @property
    def regression(self) -> bool:
        """Whether the labels are numbers and not classes."""
        return not self.labels

    @property
    def outputs(self) -> int:
        """How many numbers a model has to give for each row: one for each class, or one."""
        return len(self.labels) or 1

    @property
    def dev(self) -> list[str]:
        """Names of the dev sets: two for MNLI. The first metric's mean over them chooses the best setting."""
        return [split for split in self.files if split.split("_")[0] == "dev"]

    @property
    def shown(self) -> str:
        """The name as people write it: CoLA for cola."""
        return self.title or self.name


def _files(*sets: str) -> dict[str, tuple[str, ...]]:
    """Return the names of GLUE's files: its own, and those of Hugging Face's copy."""
    files: dict[str, tuple[str, ...]] = {"train": ("train",)}
    files |= {f"dev{name}": (f"dev{name}", f"validation{name}") for name in sets}
    return files | {f"test{name}": (f"test{name}",) for name in sets}


_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")

# Labels are in the order of Hugging Face's copy, which has their numbers. Fields have the names of GLUE's own files.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="cola",
            title="CoLA",
            fields=("sentence",),
            labels=_BINARY,
            metric="matthews",
            also=("accuracy",),
            header=("source", "label", "mark", "sentence"),
        ),
        Task(name="sst2", title="SST-2", fields=("sentence",), labels=_BINARY, metric="accuracy"),
        Task(
            name="mrpc",
            title="MRPC",
            fields=("#1 String", "#2 String"),
            label="Quality",
            labels=_BINARY,
            metric="accuracy",
            also=("f1",),
            files={
                "train": ("train", "msr_paraphrase_train.txt"),
                "dev": ("dev", "validation", "msr_paraphrase_train.txt"),
                "test": ("test", "msr_paraphrase_test.txt"),
            },
            aliases={"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"},
        ),
        Task(
            name="qqp",
            title="QQP",
            fields=("question1", "question2"),
            label="is_duplicate",
            labels=_BINARY,
            metric="accuracy",
            also=("f1",),
            aliases={"label": "is_duplicate"},
        ),
        Task(
            name="stsb",
            title="STS-B",
            fields=_PAIR,
            label="score",
            range=(0.0, 5.0),
            metric="spearman",
            also=("pearson",),
            aliases={"label": "score"},
        ),
        Task(
            name="mnli",
            title="MNLI",
            fields=_PAIR,
            label="gold_label",
            labels=("entailment", "neutral", "contradiction"),
            metric="accuracy",
            files=_files("_matched", "_mismatched"),
            aliases={"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"},
        ),
        Task(name="qnli", title="QNLI", fields=("question", "sentence"), labels=_ENTAILMENT, metric="accuracy"),
        Task(name="rte", title="RTE", fields=_PAIR, labels=_ENTAILMENT, metric="accuracy"),
    )
}


def open_task(name_or_path: str) -> Task:
    """Return a GLUE task by its name, in any case and with or without dashes, or the task of a JSON file.

    Raises:
        UserError: there is no such task or file, or the file does not describe a task.
    """
    known = "".join(character for character in name_or_path.lower() if character not in "-_ ")
    if known in TASKS:
        return TASKS[known]
    path = Path(name_or_path)
    if not os.path.isfile(path):  # noqa: PTH113 - a Path would raise an OSError for a name that is too long
        file = path.suffix == ".json" or len(path.parts) > 1
        what = f"there is no file {path}" if file else f"unknown task {name_or_path!r}{nearest(known, TASKS)}"
        raise UserError(f"{what}; a task of your own is a JSON file, see docs/finetuning.md")
    try:
        return Task.model_validate_json(json.dumps(config_file.read(path), ensure_ascii=False).encode())
    except UnicodeEncodeError:
        raise UserError(f"{path} holds a lone surrogate, which is no text; remove it") from None
    except ValidationError as error:
        raise UserError(f"{path}: {one_line(error, Task).removeprefix(': ')}") from None
