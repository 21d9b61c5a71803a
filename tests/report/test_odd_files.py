"""A run's files may hold valid JSON of any shape: the page shows what can be read, and names the file of the rest."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from pages import report, token, train
from rich.console import Console

from fast_electra import cli
from fast_electra.training.console import Monitor

NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("content", ["[]", "3", "NaN", "{", "\ufeff{}", NESTED], ids=lambda text: text[:3])
def test_files_that_are_no_objects_are_named_and_the_rest_is_shown(tmp_path: Path, content: str) -> None:
    run = train(tmp_path / "run", 3, evaluate=3)
    for name in ("config.json", "status.json", "examples.json"):
        (run / name).write_text(content, encoding="utf-8")
    page = report(run)
    assert "it cannot be read: config.json, status.json, examples.json." in page.text("p")
    assert "config.json is missing or cannot be read" in page.text("p")
    assert "0.7312" in page.text("td")


def test_files_that_are_no_text_are_named(tmp_path: Path) -> None:
    run = train(tmp_path / "run", 3)
    (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes() + f"\xff\n{NESTED}\n".encode("latin-1"))
    (run / "config.json").write_bytes(b'{"fast_electra": "\xff"}')
    (run / "status.json").unlink()
    (run / "status.json").mkdir()
    assert "it cannot be read: config.json, status.json." in report(run).text("p")


@pytest.mark.parametrize(
    ("config", "title", "shown"),
    [
        ({"fast_electra": 3, "deepspeed": {"train_batch_size": 8}}, "Replaced-token", "train_batch_size 8"),
        ({"fast_electra": {"seed": 7}, "deepspeed": [1]}, "Replaced-token", "seed 7"),
        ({"fast_electra": {"objective": ["x"]}}, "Replaced-token", 'objective ["x"]'),
        ({"fast_electra": {"objective": {"items": 1}, "seed": float("nan")}}, "Replaced-token", "seed nan"),
        ({"fast_electra": {"objective": "items", "values": {"items": 1}}}, "items", "items 1"),
        ({"fast_electra": {"objective": "<new>", "model": {"": None, "layers": 1e400}}}, "<new>", "layers inf"),
        ({"fast_electra": None, "deepspeed": {"optimizer": 3}, "other": {"seed": 5}}, "Replaced-token", ""),
    ],
)
def test_an_odd_config_shows_what_it_has(tmp_path: Path, config: dict[str, Any], title: str, shown: str) -> None:
    run = train(tmp_path / "run", 3)
    (run / "config.json").write_text(json.dumps(config))
    page = report(run)
    assert title in page.text("h2")
    assert shown in page.text("dt", "dd")
    assert json.loads(page.text("pre"), parse_constant=str) == json.loads(json.dumps(config), parse_constant=str)


@pytest.mark.parametrize("odd", [["completed"], None, float("nan"), "\ud800", "<b>"])
def test_an_odd_status_is_not_taken_for_a_state(tmp_path: Path, odd: Any) -> None:
    run = train(tmp_path / "run", 3)
    (run / "status.json").write_text(json.dumps({"state": odd, "message": odd}))
    page = report(run)
    states = [attributes["class"] for _, attributes in page.elements if "state" in (attributes.get("class") or "")]
    assert len(states) == 2 and "completed" not in page.text()
    assert ("unknown" in page.text("span")) == (not isinstance(odd, str))
    assert ("<b>" in page.text("p")) == (odd == "<b>")


ODD_SEQUENCES: list[Any] = [
    *(3, "text", None, [], {}, {"tokens": 3}, {"tokens": {"piece": "a"}}, {"tokens": [3]}, {"tokens": [["piece"]]}),
    *({"tokens": [{"original": "a", "replaced": False}]}, {"tokens": [{"piece": "a", "replaced": True}]}),
    *({"tokens": [token("a") | odd]} for odd in ({"piece": 3}, {"replaced": [1]}, {"probability": "high"})),
    *({"tokens": [token(*odd)]} for odd in (("a", None, float("nan")), ("a", None, 7.0))),
]


def test_odd_sequences_are_left_out_and_counted(tmp_path: Path) -> None:
    run = train(tmp_path / "run", 3)
    examples: dict[str, Any] = {"update": [3], "temperature": float("nan"), "gamma": "low"}
    examples["sequences"] = [{"tokens": [token("▁sound\ud800")]}, *ODD_SEQUENCES]
    (run / "examples.json").write_text(json.dumps(examples))
    page = report(run)
    assert "sound?" in page.text("p")  # half a surrogate pair cannot be written
    assert page.text("p").count("tokens replaced") == 1
    assert f"{len(ODD_SEQUENCES)} of {len(ODD_SEQUENCES) + 1} sequences in examples.json." in page.text("p")
    assert "Corrupted held-out text. The model judged it after update\n?." in page.text("p")
    (run / "examples.json").write_text('{"sequences": "text"}')
    page = report(run)
    assert "tokens replaced" not in page.text("p") and "1 of 1 sequences in examples.json" in page.text("p")


@pytest.mark.parametrize("odd", ["text", [1], {"a": 1}, None, float("nan"), 10**400, "\ud800"])
def test_odd_values_of_rows_are_left_out(tmp_path: Path, odd: Any) -> None:
    run = train(tmp_path / "run", 3, evaluate=3)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = ("update", "evaluation", "event")
    for row in [row for row in rows if row["update"] == 3]:
        rows.append({key: row[key] if key in kept else odd for key in row} | {"update": 4, "items": odd, "keys": 1})
    rows.append({"update": 4, "updates": odd, "event": odd, "message": odd})
    rows.append({"update": odd, "loss": 0.1})
    rows.append({"update": 5, "evaluation": odd, "heldout_auc": odd, "heldout_auc_token_identity": 0.5})
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*rows, odd])))
    page = report(run)
    last = 4 if odd else 5  # a row whose "evaluation" is null counts as an update row
    assert f"update {last} of {last}" in page.text("p")
    assert "loss 0.3" in page.text("p")
    drawn = [attributes["aria-label"] for tag, attributes in page.elements if tag == "svg"]
    assert {"Loss", "Speed", "Learning rate and gradient norm"} <= set(drawn)


def test_a_run_that_is_a_file_or_missing_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path / "run", 3)
    (run / "odd").mkdir()
    (run / "odd" / "metrics.jsonl").write_text(f'[]\n3\n{{"update": "3"}}\n{{"update": {10**400}}}\n')
    for wrong in (run / "metrics.jsonl", run / "config.json", tmp_path / "missing", run / "odd"):
        assert cli.main(["report", str(wrong)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"fast-electra: error: {wrong / 'metrics.jsonl'} is missing or has no update rows: ")
        assert error.count("\n") == 1
    assert cli.main(["report", str(run)]) == 0


def test_a_run_of_gamma_shows_gamma(tmp_path: Path) -> None:
    run = train(tmp_path / "run", 5, gamma=0.25)
    lines = (run / "metrics.jsonl").read_text().replace('"temperature": 1.4, ', "")
    (run / "metrics.jsonl").write_text(lines)
    with Monitor(run, 5, start=5, console=Console(file=io.StringIO())) as monitor:
        monitor.evaluation({"update": 5, "gamma": 0.125, "heldout_auc": 0.7})
    examples = {"update": 5, "gamma": 0.125, "sequences": [{"tokens": [token("▁a")]}]}
    (run / "examples.json").write_text(json.dumps(examples))
    page = report(run)
    assert "gamma" in page.text("text") and "temperature T" not in page.text("text")
    assert "gamma 0.250" in page.text("p") and "at γ = 0.125" in page.text("p")
    assert "Gamma 0.1250" in page.text("th", "td")
