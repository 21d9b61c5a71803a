"""Whatever is wrong with a Hugging Face tokenizer, the corpus command says so in one line and writes nothing."""

import json
import pickle
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from foreign_tokenizers import BRACKETS, edit, fast, frame, save, train
from tokenizers import Tokenizer, models, pre_tokenizers

from fast_electra.cli import main
from fast_electra.corpus.freeze import CONFIG

TEXT = "The whale and the sea, and a boat in the sea.\n\nA boat is no whale, said he, and no whale is a boat.\n"
Break = Callable[[Path], Any]  # changes a folder that holds a whole tokenizer


class _Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (pytest.fail, ("a pickle was loaded",))


def _state(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change tokenizer.json."""
    state = json.loads((folder / "tokenizer.json").read_text())
    change(state)
    (folder / "tokenizer.json").write_text(json.dumps(state))


def _framed(before: list[str], after: list[str]) -> Break:
    def change(folder: Path) -> None:
        tokenizer = fast("generic", [TEXT], 60)
        frame(tokenizer, before, after)
        save(tokenizer, folder, BRACKETS)

    return change


def _without(*names: str) -> Break:
    """Special tokens that the config does not name."""
    return lambda folder: edit(folder / CONFIG, **{f"{name}_token": None for name in names})


def _word_level(folder: Path) -> None:
    """No unknown token, so most text cannot be read."""
    words = Tokenizer(models.WordLevel({token: n for n, token in enumerate([*BRACKETS.values(), "whale"])}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    frame(words, ["[CLS]"], ["[SEP]"])
    save(words, folder, BRACKETS)


def _truncated(name: str) -> Break:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-40])


def _far_ids(state: dict[str, Any]) -> None:
    vocabulary = state["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.__getitem__)] = 2**31


def _own_code(folder: Path) -> None:
    auto_map = {"AutoTokenizer": ["tokenization_own.Own", None]}
    edit(folder / CONFIG, tokenizer_class="Own", auto_map=auto_map)
    (folder / "tokenization_own.py").write_text("raise SystemExit('remote code was run')\n")


def _only_pickle(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.pkl").write_bytes(pickle.dumps(_Payload()))
    edit(folder / CONFIG, tokenizer_class="TransfoXLTokenizer")


def _spm(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "spm.model").write_bytes(b"\x0a\x0enothing")
    edit(folder / CONFIG, tokenizer_class="DebertaV2Tokenizer")


def _as(name: str) -> Break:
    """Only the name of a class, and no file of a vocabulary."""

    def change(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        edit(folder / CONFIG, tokenizer_class=name)

    return change


def _config(text: str) -> Break:
    return lambda folder: (folder / CONFIG).write_text(text)


def _file(data: bytes) -> Break:
    return lambda folder: (folder / "tokenizer.json").write_bytes(data)


CASES: dict[str, tuple[Break, str]] = {
    "slow tokenizer only": (_as("ByT5Tokenizer"), "slow tokenizer"),
    "no mask token": (_without("mask"), "no mask token"),
    "no pad token": (_without("pad"), "no pad token"),
    "no frame": (lambda folder: _state(folder, lambda state: state.update(post_processor=None)), "not 0 and 0"),
    "two ids in front": (_framed(["[CLS]", "[SEP]"], ["[SEP]"]), "not 2 and 1"),
    "nothing behind": (_framed(["[CLS]"], []), "not 1 and 0"),
    "two ids behind": (_framed(["[CLS]"], ["[SEP]", "[SEP]"]), "not 1 and 2"),
    "mask token in the frame": (_framed(["[CLS]"], ["[MASK]"]), r"\[MASK\] has other uses"),
    "mask token that is unknown": (lambda folder: edit(folder / CONFIG, mask_token="[UNK]"), "other uses"),
    "truncated tokenizer.json": (_truncated("tokenizer.json"), "cannot load"),
    "truncated tokenizer_config.json": (_truncated(CONFIG), "cannot be read"),
    "tokenizer_config.json is a list": (_config("[]"), "cannot be read"),
    "tokenizer_config.json is nested too deeply": (_config("[" * 100_000), "cannot be read"),
    "tokenizer.json is empty": (_file(b""), "cannot load"),
    "tokenizer.json is a pickle": (_file(pickle.dumps(_Payload())), "cannot load"),
    "a pickle only": (_only_pickle, "cannot load"),
    "remote code": (_own_code, "auto_map"),
    "unknown class without a fast file": (_as("Own"), "cannot load"),
    "empty vocabulary": (_as("BertTokenizer"), "vocabulary is empty"),
    "ids beyond the vocabulary": (lambda folder: _state(folder, _far_ids), "its ids reach 2,147,483,648"),
    "unknown kind": (lambda folder: _state(folder, lambda state: state["model"].update(type="Magic")), "cannot load"),
    "no unknown token where one is needed": (_word_level, "cannot be used"),
    "a broken SentencePiece model": (_spm, "protobuf|cannot load"),
    "no tokenizer_config.json": (lambda folder: (folder / CONFIG).unlink(), "neither .* nor tokenizer_config.json"),
    "nothing at all": (shutil.rmtree, "no tokenizer in"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("bytes", tmp_path_factory.mktemp("whole"), [TEXT], 330)


@pytest.mark.parametrize("case", CASES)
def test_each_is_refused_in_one_line(
    case: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "tokenizer")
    (tmp_path / "text.txt").write_text(TEXT)
    change, message = CASES[case]
    change(tmp_path / "tokenizer")
    before, start = sorted(tmp_path.rglob("*")), time.monotonic()
    names = {"--input": "text.txt", "--tokenizer": "tokenizer", "--output": "shards"}
    capsys.readouterr()
    assert main(["corpus", *(word for flag, name in names.items() for word in (flag, str(tmp_path / name)))]) == 2
    assert time.monotonic() - start < 10
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line) and str(tmp_path / "tokenizer") in line, line
    assert len(line.replace(str(tmp_path), "")) < 400, line
    assert sorted(tmp_path.rglob("*")) == before
