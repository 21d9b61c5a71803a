"""The documented commands, run as a user runs them."""

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fast_electra.cli import COMMANDS, main
from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from fast_electra.corpus.shards import Shards
from fast_electra.text.build import build_shards
from fast_electra.text.train_tokenizer import train_tokenizer


def test_from_text_to_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("books.jsonl").write_text("".join(json.dumps({"body": f"book {i} of them"}) + "\n" for i in range(50)) + "{\n")
    common = ["--input", "books.jsonl", "--field", "body"]
    assert main(["tokenizer", *common, "--vocabulary", "280", "--output", "data/tokenizer"]) == 0
    printed = capsys.readouterr().out
    assert "280 tokens" in printed
    assert "50 documents" in printed
    assert "rejected  1 documents" in printed
    assert (
        main(["corpus", *common, "--tokenizer", "data/tokenizer", "--output", "data/shards", "--heldout", "0.2"]) == 0
    )
    printed = capsys.readouterr().out
    assert "1 malformed JSON" in printed
    assert "data/shards/quarantine.jsonl" in printed
    train, heldout = (Shards.open("data/shards", split) for split in ("train", "heldout"))
    assert len(train.lengths) + len(heldout.lengths) == 50
    assert train.tokenizer_hash == SentencePieceTokenizer.load("data/tokenizer").hash


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tokenizer", "--input", "absent.txt"], "no file matches absent.txt"),
        (["tokenizer", "--input", "sample", "--vocabulary", "12"], "--vocabulary 12 is too small"),
        (["corpus", "--input", "sample", "--tokenizer", "absent"], "no tokenizer in absent"),
        (["corpus", "--input", "sample", "--heldout", "7"], "--heldout 7.0"),
        (["tokenizer", "--input", "sample", "--output", "/proc/no/tokenizer"], "/proc/no"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("fast-electra: error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.rglob("*tokenizer*"))


@pytest.mark.parametrize(("command", "function"), [("tokenizer", train_tokenizer), ("corpus", build_shards)])
def test_help_names_the_defaults_of_the_function(
    command: str, function: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line passes on what is given, and nothing else, so the function's defaults count."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    printed = re.sub(r"\n {5,}", " ", capsys.readouterr().out)  # one line for each flag
    flags = dict(re.findall(r"^  --([\w-]+)(.*)", printed, flags=re.MULTILINE))
    parameters = inspect.signature(function).parameters
    assert {flag.replace("-", "_") for flag in flags} - {"input"} == set(parameters) - {"inputs", "progress"}
    for flag, text in flags.items():
        parameter = parameters["inputs" if flag == "input" else flag.replace("-", "_")]
        if parameter.default is not parameter.empty and parameter.default is not False:
            (named,) = re.findall(r"\(default: (.+)\)", text)
            number, _, unit = named.partition(" ")
            scale = {"": 1, "MiB": 2**20, "GiB": 2**30}[unit]
            assert parameter.default in (named, float(number) * scale if number[0].isdigit() else None), flag


def test_help_imports_nothing_heavy() -> None:
    """The command line must answer at once, so torch and megatron-core wait until they are needed."""
    code = (
        "import sys; from fast_electra.cli import COMMANDS, main\n"
        "for command in ([], *([name] for name in COMMANDS)):\n"
        "    try: main([*command, '--help'])\n"
        "    except SystemExit: pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"usage: fast-electra {name}" in done.stdout for name in COMMANDS)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "megatron", "deepspeed", "numpy", "sentencepiece", "pyarrow", "matplotlib"}


def test_a_reader_that_has_seen_enough_ends_a_command_quietly() -> None:
    """As `fast-electra inspect config.json | head -0` does."""
    config = str(Path(__file__).parents[1] / "ds_configs/tiny.json")
    command = [sys.executable, "-m", "fast_electra.cli", "inspect", config, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 128 + 13)
    process.stderr.close()
