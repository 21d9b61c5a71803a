"""`fast-electra pair`: whether two directories fit, as a user asks it."""

from pathlib import Path

import pytest

from fast_electra.cli import main

transformers = pytest.importorskip("transformers")
from huggingface.pairs import words  # noqa: E402 (it needs transformers)
from huggingface.zoo import config_of, masked_lm  # noqa: E402


def both(folder: Path) -> tuple[str, str]:
    """Write a main model and an auxiliary with one tokenizer, and return their directories."""
    transformers.AutoModel.from_config(config_of("roberta")).save_pretrained(folder / "main")
    masked_lm(folder / "auxiliary", "bert")
    for name in ("main", "auxiliary"):
        words().save_pretrained(folder / name)
    return str(folder / "main"), str(folder / "auxiliary")


def test_what_fits_is_followed_by_commands_for_the_same_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = both(tmp_path)
    assert main(["pair", *names, "--sequence-length", "32"]) == 0
    printed = capsys.readouterr().out
    assert "tokenizer  the same" in printed and "a new one is trained" in printed
    assert printed.strip().endswith("--set fast_electra.corpus.sequence_length=32")
    assert main(["pair", *names]) == 1  # 512 tokens, and 72 positions
    assert "not enough for sequences of 512 tokens" in capsys.readouterr().out


def test_what_does_not_fit_is_said_with_exit_code_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = both(tmp_path)
    assert main(["pair", *reversed(names), "--sequence-length", "32"]) == 1
    assert "main lacks weights of a masked language model" in capsys.readouterr().out
    path = tmp_path / "auxiliary/tokenizer.json"
    path.write_text(path.read_text().replace('"w7"', '"w7000"'))
    assert main(["pair", *names, "--sequence-length", "32"]) == 1
    assert "token 12 is '▁w7' in the main model's and '▁w7000' in the auxiliary's" in capsys.readouterr().out
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    (tmp_path / "main").rename(tmp_path / "run/model")
    assert main(["pair", str(tmp_path / "run"), names[1]]) == 2
    assert "run is a run folder: name the model in it" in capsys.readouterr().err
