"""Whatever is wrong with a run, a model or the output: one clear line, and nothing is written."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exporting
import pytest
import torch
from conftest import Corpus
from safetensors.torch import load_file, save_file

from fast_electra.cli import main
from fast_electra.files import file_hash
from fast_electra.model.files import Description


class Lab:
    """A run folder with a small model, its tokenizer, and a place to export to."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.run, self.output = folder / "run", folder / "exported" / "model"
        self.model, self.weights = self.run / "model", self.run / "model" / "model.safetensors"
        exporting.save_config(self.run, tokenizer)
        self.save()

    def save(self, kind: str = "rtd", labels: list[str] | None = None, **changes: Any) -> None:
        model = exporting.shaken(kind, max(1, len(labels or ())), **{"layers": 1} | changes)
        exporting.save(self.model, kind, model, self.tokenizer, labels)

    def describe(self, **changes: Any) -> None:
        """Change model.json, and seal it as if it were right."""
        path = self.model / "model.json"
        content = json.loads(path.read_text())
        del content["checksum"]
        description = Description.model_validate(content | {"weights": file_hash(self.weights)} | changes)
        exporting.reseal(path, **description.model_dump(exclude_unset=True) | {"hash": description.identity})

    def tensors(self, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
        weights = load_file(self.weights)
        change(weights)
        save_file(weights, self.weights)
        self.describe()

    def config(self, **section: Any) -> None:
        exporting.save_config(self.run, self.tokenizer, **section)

    def own_tokenizer(self) -> Path:
        """A copy of the tokenizer, which the run names."""
        copy = self.folder / "tokenizer"
        copy.mkdir()
        for file in self.tokenizer.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        exporting.save_config(self.run, copy)
        return copy


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def omega(value: float) -> Callable[[Lab], None]:
    return lambda lab: lab.tensors(lambda weights: weights["encoder.layers.0.ffn_omega"][3:4].fill_(value))


def norm(value: float) -> Callable[[Lab], None]:
    return lambda lab: lab.tensors(lambda weights: weights["encoder.embedding_norm.weight"][3:4].fill_(value))


def other_tokenizer(lab: Lab) -> None:
    copy = lab.own_tokenizer()
    model = (copy / "tokenizer.model").read_bytes() + b"\x12\x00"  # an empty message more: read, and another hash
    (copy / "tokenizer.model").write_bytes(model)
    edit(copy / "tokenizer.json", '"sha256": "', f'"sha256": "{hashlib.sha256(model).hexdigest()}", "was": "')


def pickled(lab: Lab) -> None:
    torch.save({"a": torch.ones(1)}, lab.weights)
    lab.describe()


def folder_of_weights(lab: Lab) -> None:
    lab.weights.unlink()
    lab.weights.mkdir()


def filled(*names: str) -> Callable[[Lab], None]:
    def fill(lab: Lab) -> None:
        for name in names:
            (lab.output / name).parent.mkdir(parents=True, exist_ok=True)
            (lab.output / name).write_text("mine")

    return fill


def output_file(lab: Lab) -> None:
    lab.output.parent.mkdir()
    lab.output.write_text("mine")


NAN, INFINITE = float("nan"), float("inf")
# What is done, and what the line says.
RUNS: dict[str, tuple[Callable[[Lab], Any], str]] = {
    "no model.json": (lambda lab: (lab.model / "model.json").unlink(), "run holds no trained model"),
    "no model folder": (lambda lab: lab.model.rename(lab.folder / "elsewhere"), "run holds no trained model"),
    "empty model.json": (lambda lab: (lab.model / "model.json").write_text(""), "model.json cannot be read"),
    "model.json is binary": (lambda lab: (lab.model / "model.json").write_bytes(b"\xff\x00"), "model.json cannot be"),
    "model.json is a list": (lambda lab: (lab.model / "model.json").write_text("[]"), "model.json cannot be read"),
    "model.json nested": (lambda lab: (lab.model / "model.json").write_text("[" * 99_999), "model.json cannot be read"),
    "model.json altered": (lambda lab: edit(lab.model / "model.json", '"heads": 4', '"heads": 2'), "it was altered"),
    "settings resealed": (lambda lab: exporting.reseal(lab.model / "model.json", kind="mlm"), "was altered"),
    "unknown kind": (lambda lab: lab.describe(kind="gpt"), "model of kind 'gpt'"),
    "another kind": (lambda lab: lab.describe(kind="mlm"), "gives other sizes than"),
    "other sizes": (lambda lab: lab.describe(encoder=exporting.shaken("rtd").encoder.settings), "gives other sizes"),
    "labels of no output": (lambda lab: (lab.save("classifier"), lab.describe(labels=["a", "b"])), "gives other sizes"),
    "a model of transformers": (
        lambda lab: ((lab.model / "model.json").unlink(), (lab.model / "config.json").write_text("{}")),
        "is a folder of transformers already",
    ),
    "no weights": (lambda lab: lab.weights.unlink(), "model.safetensors cannot be read"),
    "weights cut": (lambda lab: lab.weights.write_bytes(lab.weights.read_bytes()[:-9]), "is not what was written"),
    "weights cut, hash changed": (
        lambda lab: (lab.weights.write_bytes(lab.weights.read_bytes()[:-9]), lab.describe()),
        "model.safetensors cannot be read",
    ),
    "weights empty": (lambda lab: (lab.weights.write_bytes(b""), lab.describe()), "model.safetensors cannot be read"),
    "weights pickled": (pickled, "model.safetensors cannot be read"),
    "weights are a folder": (folder_of_weights, "model.safetensors cannot be read"),
    "a tensor missing": (lambda lab: lab.tensors(lambda weights: weights.pop("output.bias")), "gives other sizes than"),
    "a tensor more": (lambda lab: lab.tensors(lambda weights: weights.update(more=torch.ones(2))), "gives other sizes"),
    "NaN": (norm(NAN), "model.safetensors are not finite (encoder.embedding_norm.weight)"),
    "infinity": (norm(INFINITE), "model.safetensors are not finite"),
    "omega 0": (omega(0.0), "Admin's scale layers.0.ffn_omega has a 0"),
    "omega nearly 0": (omega(1e-40), "run/model cannot be exported: one of Admin's scales (omega) is so near to 0"),
    "odd size": (lambda lab: lab.save(hidden_size=33, heads=3, **exporting.WIDE), "an even hidden_size from 6, not 33"),
    "odd buckets": (lambda lab: lab.save(relative_buckets=108, relative_max_distance=64), "108 buckets up to 64"),
    "a token too many": (lambda lab: lab.save(vocabulary_size=1001), "has 1,001 tokens and its tokenizer 1,000"),
    "no config": (lambda lab: (lab.run / "config.json").unlink(), "name its folder with --tokenizer DIR"),
    "config damaged": (lambda lab: (lab.run / "config.json").write_text("{"), "config.json cannot be read"),
    "config altered": (lambda lab: edit(lab.run / "config.json", "1500", "1600"), "config.json cannot be read"),
    "config of another program": (lambda lab: (lab.run / "config.json").write_text("{}"), "and name its tokenizer"),
    "config is a list": (lambda lab: (lab.run / "config.json").write_text("[1]"), "config.json cannot be read"),
    "length is text": (lambda lab: lab.config(corpus={"sequence_length": "x"}), "fast_electra.corpus.sequence_length"),
    "tokenizer gone": (lambda lab: lab.config(corpus={"tokenizer": "/no/such"}), "there is no folder /no/such"),
    "tokenizer without card": (lambda lab: (lab.own_tokenizer() / "tokenizer.json").unlink(), "tokenizer.json is miss"),
    "tokenizer altered": (lambda lab: (lab.own_tokenizer() / "tokenizer.model").write_bytes(b"x"), "was altered"),
    "tokenizer of another model": (other_tokenizer, "is not the tokenizer of"),
    "output is full": (filled("notes.txt"), "exists and holds no tokenizer_config.json"),
    "output is an export": (filled("tokenizer_config.json"), "or replace it with --overwrite"),
    "output is a file": (output_file, "exists and holds no tokenizer_config.json"),
}


@pytest.fixture
def lab(tmp_path: Path, tiny_corpus: Corpus) -> Lab:
    return Lab(tmp_path, tiny_corpus.tokenizer)


def contents(folder: Path) -> dict[str, str]:
    return {str(path): file_hash(path) if path.is_file() else "" for path in folder.rglob("*")}


def refused(lab: Lab, message: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
    """The command ends with one line that holds the message, and no file changes."""
    before = contents(lab.folder)
    assert main(["export", *(arguments or (str(lab.run), str(lab.output)))]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith("fast-electra: error: ")
    assert message in printed.err
    after = contents(lab.folder)
    after.pop(str(lab.output.parent), None)  # an empty folder, made for the output
    assert after == {path: hashed for path, hashed in before.items() if path != str(lab.output.parent)}


@pytest.mark.drill("damaged file")
@pytest.mark.parametrize("name", RUNS)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    name: str, lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    harm, message = RUNS[name]
    harm(lab)
    refused(lab, message, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent", "{output}"], "absent holds no trained model"),
        (["{run}/config.json", "{output}"], "config.json holds no trained model"),
        (["{folder}", "{output}"], "holds no trained model"),
        (["{run}", "{output}", "--part", "auxiliary"], "--part is for a joint run"),
        (["{run}/model", "{output}", "--part", "auxiliary"], "leave out --part"),
        (["{run}", "{output}", "--tokenizer", "absent"], "there is no folder absent"),
        (["{run}", "{output}", "--tokenizer", "{run}/config.json"], "there is no folder"),
        (["{run}", "{run}", "--overwrite"], "run holds model, which --overwrite would remove"),
        (["{run}", "{run}/model", "--overwrite"], "model.json, which --overwrite would remove"),
        (["{run}", "{run}/config.json", "--overwrite"], "config.json exists and holds no tokenizer_config.json"),
        (["{run}", "/proc/no/model"], "/proc/no/model cannot be created"),
        (["{run}", "{run}/config.json/model"], "config.json/model cannot be created"),
        (["{run}/" + "x" * 300, "{output}"], "File name too long"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], message: str, lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(lab, message, capsys, *(argument.format(**vars(lab)) for argument in arguments))
