"""Tokens must be marked by what the model said of them, and shown as text that a reader sees."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pages import report, token, train

from fast_electra.corpus.pieces import spell
from fast_electra.report.marks import Token


@pytest.mark.parametrize(
    ("replaced", "probability", "expected"),
    [
        (True, 0.5, "found"), (True, 0.49, "missed"), (True, None, "missed"),
        (False, 0.5, "alarm"), (False, 0.49, ""), (False, None, ""),
    ],
)  # fmt: skip
def test_mark(replaced: bool, probability: float | None, expected: str) -> None:
    assert Token(piece="a", original="b", replaced=replaced, probability=probability).mark == expected


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["▁The", "▁wh", "ale"], " The whale"),
        (["▁caf", "<0xC3>", "<0xA9>", "s"], " cafés"),
        (["<0xF0>", "<0x9F>", "<0x90>", "<0x8B>"], "🐋"),
        (["a", "<0xC3>", "b", "<0xA9>"], "a\ufffdb\ufffd"),
        (["<0x0A>", "<0x", "0A>"], "\n<0x0A>"),
        ([], ""),
    ],
)
def test_pieces_are_spelt(pieces: list[str], text: str) -> None:
    assert spell(pieces)[0] == text


def test_examples_show_what_cannot_be_seen(tmp_path: Path) -> None:
    run = train(tmp_path / "run", 1)
    tokens = [token("<0xC3>", "<0x0A>", 0.9), token("the", "▁the"), token("▁", "a"), token("[SEP]"), token("[PAD]")]
    (run / "examples.json").write_text(json.dumps({"sequences": [{"tokens": tokens}]}))
    text = report(run).text("span", "rt")
    for part in ("⟨C3⟩", "¶", "▁the", "␣", "[SEP]"):
        assert part in text
    assert "[PAD]" not in text


def test_a_report_needs_no_model_and_imports_none() -> None:
    """`fast-electra report` must answer at once, and where DeepSpeed does not work."""
    code = "import sys, fast_electra.report.page; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "jinja2" in loaded and not {"torch", "deepspeed", "megatron"} & set(loaded)
