"""Data of tasks: GLUE's files with their quirks, other formats of the same rows, and what is refused."""

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
import zstandard
from finetuning.glue_files import QQP_MALFORMED, examples, write_glue
from pyarrow import parquet

from fast_electra.finetuning.tables import Table, read_data, summary
from fast_electra.finetuning.tasks import TASKS, Task
from fast_electra.settings import UserError

OWN = Task(name="reviews", fields=("sentence",), labels=("bad", "good"), metric="accuracy")
PAIRS = [("a good \u2028 film", "good"), ('"not, bad', "bad"), ("two\nlines", "bad"), ("Grüße", "good")]
NAMES = {"mrpc": ("sentence1", "sentence2"), "mnli": ("premise", "hypothesis")}  # Hugging Face's, where they differ


def equal(left: Table, right: Table) -> bool:
    return left.texts == right.texts and np.array_equal(left.labels, right.labels) and left.ids == right.ids


def write_own(folder: Path, lines: list[str], name: str = "train.tsv") -> Path:
    """Write the lines as the training set, and a good dev set."""
    (folder / "dev.tsv").write_text("sentence\tlabel\nfine\tgood\nawful\tbad\n", encoding="utf-8")
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def cleaned(text: str) -> str:
    return text.replace("\r", " ").strip()


@pytest.mark.parametrize("name", TASKS)
def test_glue(tmp_path: Path, name: str) -> None:
    task = TASKS[name]
    write_glue(tmp_path, name, 12)
    data = read_data(task, tmp_path)
    assert list(data) == list(task.files)
    for split, table in data.items():
        wanted = examples(task, 12 if split == "train" else 6, split)
        assert table.texts == [tuple(map(cleaned, texts)) for texts, _ in wanted]
        if split.startswith("test"):
            assert not len(table.labels)
            assert table.ids == [str(row) for row in range(6)]
        elif task.regression:
            assert table.labels.tolist() == [float(label) for _, label in wanted]
        else:
            assert [task.labels[int(label)] for label in table.labels] == [label for _, label in wanted]
        assert len(table.skipped) == (QQP_MALFORMED if (name, split) == ("qqp", "train") else 0)


def test_skipped_rows_are_named(tmp_path: Path) -> None:
    place = write_glue(tmp_path, "qqp", 12)
    data = read_data(TASKS["qqp"], place)
    train = place / "train.tsv"
    assert data["train"].skipped == [f"{train}:3: the number of columns is 3, not 6", f"{train}:5: question2 is empty"]
    first, second = data["train"].skipped
    assert summary(data)[0] == f"train: 12 rows from train.tsv; 2 malformed and skipped: {first}; {second}"
    assert summary(data)[2] == "test: 6 rows without labels from test.tsv"


@pytest.mark.parametrize("name", TASKS)
def test_hugging_face_parquet(tmp_path: Path, name: str) -> None:
    """Hugging Face's copy has other names of columns and files, class numbers, and -1 for no label."""
    task = TASKS[name]
    ours = read_data(task, write_glue(tmp_path, name, 12))
    (folder := tmp_path / "hub" / name).mkdir(parents=True)
    for split, table in ours.items():
        labels = table.labels if len(table.labels) else np.full(len(table), -1.0)
        columns: dict[str, Any] = dict(zip(NAMES.get(name, task.fields), zip(*table.texts, strict=True), strict=True))
        columns["label"] = labels if task.regression else labels.astype(np.int64)
        columns["idx"] = range(len(table))
        half = len(table) // 2
        for part in range(2):
            rows = {key: list(column)[part * half : (part + 1) * half] for key, column in columns.items()}
            file = f"{split.replace('dev', 'validation')}-0000{part}-of-00002.parquet"
            parquet.write_table(arrow.table(rows), folder / file)
    theirs = read_data(task, folder.parent)
    assert theirs.keys() == ours.keys()
    for split, table in ours.items():
        table.ids = [str(row) for row in range(len(table))]
        assert equal(theirs[split], table)


def test_original_mrpc(tmp_path: Path) -> None:
    """Microsoft's corpus has train and dev in one file, and a test set with labels."""
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    rows = [f'{row % 2}\t{row}\t{row + 100}\tHe said "no.\tNo. {row}' for row in range(9)]
    for name, part in (("train", rows[:6]), ("test", rows[6:])):
        (tmp_path / f"msr_paraphrase_{name}.txt").write_text("\r\n".join([header, *part]) + "\r\n", newline="")
    with pytest.raises(UserError, match=r"dev_ids.tsv or mrpc_dev_ids.tsv beside it must name the dev set"):
        read_data(TASKS["mrpc"], tmp_path)
    (tmp_path / "mrpc_dev_ids.tsv").write_text("1\t101\n4\t104\n", encoding="utf-8")
    data = read_data(TASKS["mrpc"], tmp_path)
    assert [texts[1] for texts in data["dev"].texts] == ["No. 1", "No. 4"]
    assert [texts[1] for texts in data["train"].texts] == ["No. 0", "No. 2", "No. 3", "No. 5"]
    assert data["train"].labels.tolist() == [0, 0, 1, 1]
    assert data["test"].labels.tolist() == [0, 1, 0]


def _tsv(path: Path) -> None:
    lines = [f"{text.replace(chr(10), chr(13))}\t{label}" for text, label in PAIRS]
    path.write_bytes("\n".join(["sentence\tlabel", *lines]).encode())


def _csv(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("label", "sentence"), *((label, text) for text, label in PAIRS)])


def _jsonl(path: Path) -> None:
    lines = [json.dumps({"sentence": text, "label": label}, ensure_ascii=False) for text, label in PAIRS]
    path.write_text("\n".join(lines), encoding="utf-8")


def _parquet(path: Path) -> None:
    texts, labels = zip(*PAIRS, strict=True)
    table = arrow.table({"sentence": texts, "label": arrow.array(labels).dictionary_encode()})
    parquet.write_table(table, path, row_group_size=2)


def _utf16(path: Path) -> None:
    _tsv(path)
    path.write_bytes(path.read_bytes().decode().encode("utf-16"))


WRITERS: dict[str, Callable[[Path], None]] = {
    "train.tsv": _tsv,
    "train.txt": _utf16,
    "train.csv": _csv,
    "train.jsonl": _jsonl,
    "train.parquet": _parquet,
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.compress,
}


PACKED = [(name, packing) for name in WRITERS for packing in ("", *PACKERS) if not packing or "parquet" not in name]


@pytest.mark.parametrize(("name", "packing"), PACKED)
def test_formats(tmp_path: Path, name: str, packing: str) -> None:
    write_own(tmp_path, [], "unused")
    path = tmp_path / name
    WRITERS[name](path)
    if packing:
        data, half = path.read_bytes(), path.stat().st_size // 2
        packed = PACKERS[packing](data[:half]) + PACKERS[packing](data[half:])  # two streams in one file
        path.unlink()
        path.with_name(name + packing).write_bytes(packed)
    train = read_data(OWN, tmp_path)["train"]
    end = " " if name.endswith(("tsv", "txt")) else "\n"  # such a file cannot hold a line end
    assert train.texts == [(text.replace("\n", end),) for text, _ in PAIRS]
    assert train.labels.tolist() == [1, 0, 0, 1]
    assert not train.skipped


@pytest.mark.parametrize("ends", ["\r\n", "\r"])
def test_line_ends(tmp_path: Path, ends: str) -> None:
    write_own(tmp_path, [], "unused")
    (tmp_path / "train.tsv").write_text(ends.join(["label\tsentence", "good\tfine", "bad\tpoor", ""]), newline="")
    assert read_data(OWN, tmp_path)["train"].texts == [("fine",), ("poor",)]


@pytest.mark.parametrize("name", ["train.tsv", "train.csv", "train.jsonl"])
def test_long_text(tmp_path: Path, name: str) -> None:
    text = "word " * 60_000
    separator = "," if name.endswith("csv") else "\t"
    rows = [f"sentence{separator}label", f"{text}{separator}good"]
    write_own(tmp_path, [json.dumps({"sentence": text, "label": "good"})] if name.endswith("jsonl") else rows, name)
    assert read_data(OWN, tmp_path)["train"].texts == [(text.strip(),)]


def test_lines_of_csv_are_counted(tmp_path: Path) -> None:
    """A quote that is not closed swallows the rows up to the next one: each of their lines is counted."""
    rows = ["sentence,label", "a,good", '"b,good', "c,good", '"d,good', "e,bad", "f"]
    (skipped := read_data(OWN, write_own(tmp_path, rows, "train.csv"))["train"].skipped)
    assert [place.split(": ")[0].rsplit(":", 1)[1] for place in skipped] == ["3", "4", "5", "7"]


def test_few_malformed_rows_are_skipped_and_many_refused(tmp_path: Path) -> None:
    good = ["sentence\tlabel"] + ["fine\tgood"] * 2_000
    data = read_data(OWN, write_own(tmp_path, good + ["poor\tawful"] * 20))
    assert len(data["train"]) == 2_000 and len(data["train"].skipped) == 20
    shown = summary(data)[0]
    assert "train.tsv:2002: label 'awful' is none of 'bad', 'good'" in shown and shown.endswith("; and 17 more")
    with pytest.raises(
        UserError, match=r"21 of 2,021 rows of the train set are malformed, the first is .*tsv:2002: lab"
    ):
        read_data(OWN, write_own(tmp_path, good + ["poor\tawful"] * 21))


def test_labels_by_number(tmp_path: Path) -> None:
    rows = [{"sentence": "x", "label": label} for label in (1, 0, 1.0, "0", "good")]
    data = read_data(OWN, write_own(tmp_path, list(map(json.dumps, rows)), "train.jsonl"))
    assert data["train"].labels.tolist() == [1, 0, 1, 0, 1]
    truths = OWN.model_copy(update={"labels": ("true", "false")})
    rows = [{"sentence": "x", "label": label} for label in (True, False)]
    with pytest.raises(UserError, match="2 of 2 rows of the dev set"):
        read_data(truths, write_own(tmp_path, list(map(json.dumps, rows)), "train.jsonl"))
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nx\tfalse\n", encoding="utf-8")
    assert read_data(truths, tmp_path)["train"].labels.tolist() == [0, 1]


def test_unlabelled_rows_keep_their_place(tmp_path: Path) -> None:
    """The server wants a prediction for each row of a test set, even for an empty text."""
    write_own(tmp_path, ["sentence\tlabel", "fine\tgood"])
    (tmp_path / "test.tsv").write_text("id\tsentence\n70\ta\n71\t \n72\tb\n", encoding="utf-8")
    test = read_data(OWN, tmp_path)["test"]
    assert test.texts == [("a",), ("",), ("b",)] and test.ids == ["70", "71", "72"]


def test_missing_file_names_the_layout(tmp_path: Path) -> None:
    write_glue(tmp_path, "mnli", 6)
    (tmp_path / "MNLI" / "dev_mismatched.tsv").unlink()
    with pytest.raises(UserError) as caught:
        read_data(TASKS["mnli"], tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'MNLI'} has no file of the dev_mismatched set")
    for name in (
        "train",
        "dev_matched or validation_matched",
        "test_mismatched (optional)",
        ".tsv",
        ".parquet",
        ".zst",
    ):
        assert name in message
