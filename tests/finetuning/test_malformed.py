"""A hundred malformed task files and folders: each gives one clear line, no traceback, and changes no file."""

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from finetuning.glue_files import write_glue
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fast_electra.finetuning.tables import read_data
from fast_electra.finetuning.tasks import TASKS, Task, open_task
from fast_electra.settings import UserError

GOOD: dict[str, Any] = {
    "name": "reviews",
    "fields": ["sentence"],
    "label": "label",
    "labels": ["bad", "good"],
    "metric": "accuracy",
}
REGRESSION: dict[str, Any] = GOOD | {"labels": [], "metric": "pearson"}
OWN = Task.model_validate_json(json.dumps(GOOD))
NUMBER = Task.model_validate_json(json.dumps(REGRESSION | {"range": [0, 1]}))


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != key}


# Content of a task file, and what the message must contain.
FILES: list[tuple[Any, str]] = [
    (b"", "is not valid JSON"),
    (b"{", "is not valid JSON"),
    (b"\xff\xfe\x00", "is not valid JSON"),
    (b"\x80\x81\x82\x83\x84", "is not valid JSON"),
    (b"[" * 100_000, "is not valid JSON"),
    (b"[]", "must hold one JSON object"),
    (b"null", "must hold one JSON object"),
    (b'"mnli"', "must hold one JSON object"),
    (b'{"name": "a", "name": "b"}', "occurs twice"),
    (json.dumps(GOOD).encode()[:-1] + b",}", "is not valid JSON"),
    ({}, "name is missing"),
    *((without(key), f"{key} is missing") for key in ("name", "fields", "metric")),
    *(
        (GOOD | {"name": name}, "name must be")
        for name in ("", "../x", "a/b", "a b", ".hidden", "a\n", 7, None, "x" * 101)
    ),
    *((GOOD | {"title": name}, "title must be") for name in ("", "../x", 5)),
    *((GOOD | {"fields": fields}, "fields must be") for fields in ([], "sentence", ["a", "b", "c"], None)),
    (GOOD | {"fields": {"a": 1}}, "fields is a value, not a section"),
    *((GOOD | {"fields": fields}, "fields.0 must be") for fields in ([""], [3], [None], [["a"]])),
    (GOOD | {"fields": ["sentence", "sentence"]}, "different columns"),
    (GOOD | {"fields": ["label"]}, "different columns"),
    *((GOOD | {"label": label}, "label must be") for label in ("", 3, None, ["label"])),
    *(
        (GOOD | {"labels": labels}, "labels")
        for labels in (["a"], ["a", "a"], ["a", " b"], [0, 1], ["", "a"], "ab", None)
    ),
    *((GOOD | {"metric": metric}, "metric must be one of") for metric in ("acc", "", None, 1, ["f1"])),
    (GOOD | {"metric": "pearson"}, "pearson is no metric of a classification"),
    (REGRESSION | {"metric": "f1"}, "f1 is no metric of a regression"),
    (without("labels"), "accuracy is no metric of a regression (labels is [])"),
    *((GOOD | {"also": also}, "also") for also in ("f1", ["f2"], ["spearman"])),
    *(
        (REGRESSION | {"range": bounds}, "range")
        for bounds in ([0], [1, 0], [1, 1], ["0", "1"], 5, [0, 1e999], [0, 1, 2])
    ),
    (GOOD | {"range": [0, 1]}, "range must be"),
    *((GOOD | {"files": files}, "files") for files in ({}, [], {"train": ["train"]}, {"dev": ["dev"]}, "train")),
    *((GOOD | {"files": {"train": ["a"], "dev": dev}}, "files") for dev in ([], "dev", [""], [1])),
    (GOOD | {"files": {"train": ["a"], "dev": ["b"], "valid": ["c"]}}, "valid must be train, dev or test"),
    (GOOD | {"files": {"train": ["a"], "dev": ["b"], "test_../x": ["c"]}}, "letters, digits, dots and dashes"),
    (GOOD | {"header": ["text", "label"]}, "header must name all columns"),
    (GOOD | {"header": "sentence"}, "header must be"),
    (GOOD | {"aliases": ["sentence"]}, "aliases"),
    (GOOD | {"aliases": {"text": 1}}, "aliases"),
    (GOOD | {"lable": "label"}, "unknown key lable; did you mean label?"),
    (GOOD | {"name\ud800": 1}, "lone surrogate"),
    (GOOD | {"label": "\ud800"}, "lone surrogate"),
]

HEAD = b"sentence\tlabel\n"


def put(name: str, data: bytes) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / "train.tsv").unlink()
        (folder / name).write_bytes(data)

    return harm


def rows(label: object, sentence: object = "a") -> bytes:
    return json.dumps({"sentence": sentence, "label": label}).encode()


def columns(**values: list[Any]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / "train.tsv").unlink()
        parquet.write_table(arrow.table(values), folder / "train.parquet")

    return harm


def parts(folder: Path) -> None:
    columns(sentence=["a"], label=["bad"])(folder)
    (folder / "train.parquet").rename(folder / "train-00000-of-00002.parquet")


# What is done to a folder with good files for `OWN`, and what the message must contain.
FOLDERS: list[tuple[Callable[[Path], Any], str]] = [
    (shutil.rmtree, "there is no folder"),
    (lambda folder: (folder / "train.tsv").unlink(), "no file of the train set"),
    (lambda folder: (folder / "dev.tsv").unlink(), "no file of the dev set"),
    (lambda folder: (folder / "train.tsv").rename(folder / "train.TSV"), "no file of the train set"),
    (lambda folder: (folder / "train.tsv").rename(folder / "train.arrow"), "no file of the train set"),
    (lambda folder: shutil.copy(folder / "train.tsv", folder / "train.csv"), "keep one of them"),
    (lambda folder: shutil.copy(folder / "dev.tsv", folder / "dev.tsv.gz"), "keep one of them"),
    (parts, "fetch the others"),
    (put("train.tsv", b""), "is empty"),
    (put("train.tsv", b"\n\n\n"), "is empty"),
    (put("train.tsv", b"\xef\xbb\xbf"), "is empty"),
    (put("train.tsv", HEAD), "has no rows for the train set"),
    (put("train.tsv", b"text\tlabel\na\tbad\n"), "no column 'sentence', only 'text', 'label'"),
    (put("train.tsv", b"sentence\tgrade\na\tbad\n"), "no column 'label', only 'sentence', 'grade'"),
    (put("train.tsv", b"a\tbad\nb\tgood\n"), "no column 'sentence'"),
    (put("train.tsv", b"sentence\tlabel\tlabel\na\tbad\tbad\n"), "two columns 'label'"),
    (put("train.tsv", b"sentence,label\na,bad\n"), "only 'sentence,label'"),
    (put("train.tsv", HEAD + b"a bad\n" * 3), "train.tsv:2: the number of columns is 1, not 2"),
    (put("train.tsv", HEAD + b"a\tb\tbad\n"), "number of columns is 3, not 2"),
    (put("train.tsv", HEAD + b"a\tBad\n"), "label 'Bad' is none of 'bad', 'good'"),
    (put("train.tsv", HEAD + b"a\t2\n"), "label '2' is none of 'bad', 'good'"),
    (put("train.tsv", HEAD + b"a\t" + b"1" * 5_000), "none of 'bad', 'good'"),
    (put("train.tsv", HEAD + b"a\t-1\n"), "label is empty or -1"),
    (put("train.tsv", HEAD + b"a\t\n"), "label is empty or -1"),
    (put("train.tsv", HEAD + b" \tbad\n"), "sentence is empty"),
    (put("train.tsv", HEAD + b"a\0b\tbad\n"), "NUL character"),
    (put("train.tsv", HEAD + b"caf\xe9\tbad\n"), "not UTF-8"),
    (put("train.tsv", HEAD.decode().encode("utf-16le")), "no column 'sentence'"),
    (put("train.tsv", b"\xff\xfea"), "truncated UTF-16"),
    (put("train.tsv", HEAD + b"a\tbad\n" * 50 + b"a\n" * 11), "11 of 61 rows of the train set are malformed"),
    (put("train.tsv.gz", b"a\tbad\n"), " archive: "),
    (put("train.tsv.gz", gzip.compress(HEAD + b"a\tbad\n")[:-9]), " archive: "),
    (put("train.tsv.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xff\xff\xff\xff\xff"), " archive: "),
    (put("train.tsv.xz", b"\xfd7zXZ\x00\x00"), " archive: "),
    (put("train.tsv.bz2", b"BZh91AY&SY"), " archive: "),
    (put("train.tsv.zst", b"\x28\xb5\x2f\xfd\x04"), " archive: "),
    (put("train.tsv.zst", b"no such archive"), " archive: "),
    (put("train.csv", b'sentence,label\n"a,bad\nb,good\n'), "train.csv:2: a quote opens here and is never closed"),
    (put("train.csv", b'sentence,label\n"a"b,bad\n'), "quotes do not match"),
    (put("train.csv", b"sentence;label\na;bad\n"), "no column 'sentence', only 'sentence;label'"),
    (put("train.csv", b'"sentence'), "never closed"),
    (put("train.jsonl", b"["), "is one JSON array"),
    (put("train.jsonl", b"{\n"), "train.jsonl:1: is no JSON"),
    (put("train.jsonl", b"7"), "is no JSON object"),
    (put("train.jsonl", b"{" * 99_999), "is no JSON"),
    (put("train.jsonl", b'{"text": "a", "label": "bad"}'), "has no 'sentence', only 'text', 'label'"),
    (put("train.jsonl", b'{"sentence": "a"}'), "has no 'label', only 'sentence'"),
    (put("train.jsonl", b'{"sent\\nence": "a"}'), "has no 'label'"),
    (put("train.jsonl", rows("bad", ["a"])), "sentence is no text"),
    (put("train.jsonl", rows("bad", None)), "sentence is no text"),
    (put("train.jsonl", rows("bad", "\ud800")), "lone surrogate"),
    *(
        (put("train.jsonl", rows(label)), "none of 'bad', 'good'")
        for label in (7, 0.5, True, ["bad"], {"a": "\n"}, "\ud800", 10**400, float("nan"))
    ),
    (put("train.parquet", b""), "no readable parquet file"),
    (put("train.parquet", b"PAR1" * 9), "no readable parquet file"),
    (columns(text=["a"], label=["bad"]), "no column 'sentence', only 'text', 'label'"),
    (columns(sentence=["a"]), "no column 'label'"),
    (columns(sentence=[], label=[]), "has no rows for the train set"),
    (columns(sentence=[3], label=["bad"]), "sentence is no text"),
    (columns(sentence=[None, "a"], label=["bad", None]), "2 of 2 rows"),
    (columns(sentence=[["a"]], label=[0]), "sentence is no text"),
    (
        lambda folder: (folder / "test.jsonl").write_bytes(rows("bad") + b"\n" + rows(None)),
        "1 rows with a label and 1 without",
    ),
]
NUMBERS: list[tuple[Any, str]] = [
    (label, "is no number from 0 to 1")
    for label in ("good", "nan", "inf", "1,5", 1.5, True, [1], 10**400, float("nan"))
] + [(label, "label is empty or -1") for label in (None, "", -1)]


def one_line(error: UserError, wanted: str) -> None:
    message = str(error)
    assert re.search(r"[\n\r]", message) is None and message.isprintable() and len(message) < 800, message
    assert wanted in message, message


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("content", "wanted"), FILES)
def test_task_files(tmp_path: Path, content: Any, wanted: str) -> None:
    path = tmp_path / "task.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(UserError) as caught:
        open_task(str(path))
    one_line(caught.value, wanted)
    assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("harm", "wanted"), FOLDERS)
def test_folders(tmp_path: Path, harm: Callable[[Path], None], wanted: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_bytes(HEAD + b"fine\tgood\npoor\tbad\n")
    read_data(OWN, folder)
    harm(folder)
    before = contents(tmp_path)
    with pytest.raises(UserError) as caught:
        read_data(OWN, folder)
    one_line(caught.value, wanted)
    assert str(folder) in str(caught.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("label", "wanted"), NUMBERS)
def test_values(tmp_path: Path, label: Any, wanted: str) -> None:
    (tmp_path / "dev.jsonl").write_bytes(rows(0.5))
    (tmp_path / "train.jsonl").write_bytes(rows(label))
    with pytest.raises(UserError) as caught:
        read_data(NUMBER, tmp_path)
    one_line(caught.value, wanted)


def test_there_are_a_hundred() -> None:
    assert len(FILES) + len(FOLDERS) + len(NUMBERS) >= 100


@pytest.mark.parametrize("name", ["mlni", "", "glue", "x" * 5_000, "a\0b", "/no/such/task.json", "."])
def test_unknown_tasks(name: str) -> None:
    with pytest.raises(UserError, match=r"unknown task|there is no file"):
        open_task(name)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever happens to the bytes of a file, its rows are read, or one line says why not."""
    folder = tmp_path_factory.mktemp("glue")
    name = data.draw(st.sampled_from(["cola", "mrpc", "stsb"]))
    path = write_glue(folder, name, 8) / "train.tsv"
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=4))
    path.write_bytes(content)
    try:
        table = read_data(TASKS[name], folder)["train"]
        assert len(table.texts) == len(table.labels) == len(table.ids) > 0
    except UserError as error:
        one_line(error, str(path))
