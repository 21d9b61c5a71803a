"""Whatever is wrong with a path, `inspect` and `detect` say it in one line and leave everything as it is."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Corpus
from moved_runs import UPDATE, altered, moved
from ranks import Scenario

from fast_electra.cli import main


@pytest.fixture
def lab(scenario: Scenario, tiny_corpus: Corpus, tmp_path: Path) -> Path:
    """A place where anything may be damaged."""
    return moved(scenario("plain"), tiny_corpus, tmp_path)


PLAN = {
    **{"kind": "axis", "parameter": "temperature", "floor": 1.0, "low": 0.5, "high": 1.0, "vocabulary_size": 9},
    **{"part": 0, "facts": {"exact": {}, "most": {}}, "sets": [], "about": {}},
}


def nested(path: Path) -> None:
    path.write_text("[" * 100_000)


# What is wrong, the path that is then inspected, and what the line says.
MALFORMED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "nothing": (lambda lab: None, "absent", "name a file or folder that exists"),
    "empty folder": (lambda lab: (lab / "empty").mkdir(), "empty", "holds none of complete.json"),
    "folder of folders": (lambda lab: None, "", "; look at auxiliary, plain, shards, tokenizer in it"),
    "link loop": (lambda lab: (lab / "loop").symlink_to("loop"), "loop", "symbolic links"),
    "dead link": (lambda lab: (lab / "dead").symlink_to("gone"), "dead", "No such file"),
    "name too long": (lambda lab: None, "x" * 300, "File name too long"),
    "below a file": (lambda lab: None, "plain/config.json/model", "Not a directory"),
    "binary file": (lambda lab: (lab / "a.dat").write_bytes(bytes(range(256))), "a.dat", "no file of a known folder"),
    "pipe": (lambda lab: os.mkfifo(lab / "pipe"), "pipe", "no file of a known folder"),
    "binary JSON": (lambda lab: (lab / "a.json").write_bytes(bytes(range(256))), "a.json", "is not valid JSON"),
    "nested JSON": (lambda lab: nested(lab / "a.json"), "a.json", "is not valid JSON"),
    "JSON of something else": (lambda lab: (lab / "a.json").write_text('{"a": 1}'), "a.json", "no config of a run"),
    "wrong config": (
        lambda lab: (lab / "a.json").write_text(
            '{"fast_electra": {"objective": "rtd", "recipe": "tiny", "updatess": 1}}'
        ),
        "a.json",
        "did you mean updates?",
    ),
    "half a run": (lambda lab: (lab / "plain/config.json").unlink(), "plain", "config.json is missing"),
    "altered config": (lambda lab: altered(lab / "plain/config.json", corpus_hash="a"), "plain", "it was altered"),
    "config of another program": (
        lambda lab: (lab / "plain/config.json").write_text('{"model_type": "bert"}'),
        "plain",
        "(fast_electra: Field required)",
    ),
    "nested config": (lambda lab: nested(lab / "plain/config.json"), "plain", "nested too deeply"),
    "config with a bad path": (
        lambda lab: (lab / "plain/config.json").write_text('{"fast_electra": {"run": "file://a", "updates": 1}}'),
        "plain",
        "must be a path on this machine",
    ),
    "empty model.json": (lambda lab: (lab / "plain/model/model.json").write_text(""), "plain/model", "cannot be read"),
    "altered model.json": (
        lambda lab: altered(lab / "plain/model/model.json", hash="0"),
        "plain/model",
        "it was altered",
    ),
    "nested model.json": (lambda lab: nested(lab / "plain/model/model.json"), "plain/model", "nested too deeply"),
    "weights cut off": (
        lambda lab: os.truncate(lab / "plain/model/model.safetensors", 5000),
        "plain/model",
        "model.safetensors cannot be read",
    ),
    "weights of zeros": (
        lambda lab: (lab / "plain/model/model.safetensors").write_bytes(bytes(5000)),
        "plain/model",
        "model.safetensors cannot be read",
    ),
    "no weights": (lambda lab: (lab / "plain/model/model.safetensors").unlink(), "plain/model", "cannot be read"),
    "weights alone": (lambda lab: (lab / "plain/model/model.json").unlink(), "plain/model", "holds none of"),
    "checkpoint without a file": (lambda lab: next((lab / UPDATE).glob("zero*")).unlink(), UPDATE, "is missing"),
    "checkpoint cut off": (lambda lab: os.truncate(next((lab / UPDATE).glob("zero*")), 9), UPDATE, "has 9 bytes"),
    "unfinished checkpoint": (
        lambda lab: (lab / UPDATE / "complete.json").unlink(),
        UPDATE,
        "holds none of complete.json",
    ),
    "altered checkpoint": (lambda lab: altered(lab / UPDATE / "complete.json", ranks=9), UPDATE, "it was altered"),
    "renamed checkpoint": (
        lambda lab: (lab / UPDATE).rename(lab / "plain/checkpoints/update-00000099"),
        "plain/checkpoints/update-00000099",
        "the folder was renamed",
    ),
    "shards without a file": (lambda lab: (lab / "shards/train-00000.idx").unlink(), "shards", "idx is missing"),
    "shards cut off": (lambda lab: os.truncate(lab / "shards/train-00000.bin", 9), "shards", "has 9 bytes"),
    "altered shards": (lambda lab: altered(lab / "shards/manifest.json", tokens=9), "shards", "it was altered"),
    "manifest of a store alone": (
        lambda lab: (lab / "shards/manifest.json").write_text('{"plan": {}}'),
        "shards",
        "manifest.json cannot be read",
    ),
    "half a store": (
        lambda lab: (lab / "plan.json").write_text('{"format": 1'),
        "plan.json",
        "plan.json cannot be read",
    ),
    "store of no parts": (
        lambda lab: (lab / "plan.json").write_text(json.dumps(PLAN)),
        "plan.json",
        "plan.json has parts of 0 sequences",
    ),
    "no tokenizer.model": (
        lambda lab: (lab / "tokenizer/tokenizer.model").unlink(),
        "tokenizer",
        "neither tokenizer.model",
    ),
    "no tokenizer.json": (lambda lab: (lab / "tokenizer/tokenizer.json").unlink(), "tokenizer", "json is missing"),
    "altered tokenizer": (lambda lab: os.truncate(lab / "tokenizer/tokenizer.model", 9), "tokenizer", "was altered"),
    "tokenizer.json of another program": (
        lambda lab: (lab / "tokenizer/tokenizer.json").write_text('{"model": {}}'),
        "tokenizer",
        "tokenizer.json cannot be read",
    ),
    "nested tokenizer.json": (lambda lab: nested(lab / "tokenizer/tokenizer.json"), "tokenizer", "cannot be read"),
    "binary metrics": (
        lambda lab: (lab / "plain/metrics.jsonl").write_bytes(bytes(range(256))),
        "plain/metrics.jsonl",
        "holds no row of a run",
    ),
}


@pytest.mark.drill("damaged file")
@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_path_is_one_line(kind: str, lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harm, name, says = MALFORMED[kind]
    harm(lab)
    before = sorted(lab.rglob("*"))
    for flags in ([], ["--verify"], ["--json"]):
        assert main(["inspect", str(lab / name), *flags]) == 2
        out, error = capsys.readouterr()
        assert out == "" and error.startswith("fast-electra: error: ") and error.count("\n") == 1, error
        assert str(lab) in error and (says in error or flags == ["--verify"]), error
    # Whatever is wrong with a path, it is no discriminator. Nor is a run that lacks its config, model or tokenizer.
    for run in {lab / name, lab / "plain"} if name in ("plain", "plain/model", "tokenizer") else {lab / name}:
        assert main(["detect", str(run), "text"]) == 2
        out, error = capsys.readouterr()
        assert out == "" and error.startswith("fast-electra: error: ") and error.count("\n") == 1, error
        assert str(lab) in error, error
    assert sorted(lab.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_one_line(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (lab / "plain", lab / "plain/model"):
        path.chmod(0)
        for command in (["inspect", str(path)], ["detect", str(path), "text"]):
            assert main(command) == 2
            assert capsys.readouterr().err.count("\n") == 1
        path.chmod(0o700)
