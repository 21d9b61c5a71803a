"""Every file and folder of a run says what it is, what it was made from, and whether it is whole."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import payloads
import pytest
from conftest import ROOT, Corpus
from moved_runs import UPDATE, altered, moved
from ranks import Scenario

from fast_electra.cli import main
from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from fast_electra.corpus.shards import Shards
from fast_electra.files import FileRecord, file_hash, read_json, write_sealed
from fast_electra.inspection.look import inspect
from fast_electra.model.files import describe


@pytest.fixture(scope="module")
def runs(scenario: Scenario) -> Path:
    """The folder of the runs `auxiliary` and `plain`."""
    return scenario("plain")


@pytest.fixture
def lab(runs: Path, tiny_corpus: Corpus, tmp_path: Path) -> Path:
    """A place where anything may be damaged."""
    return moved(runs, tiny_corpus, tmp_path)


def printed(capsys: pytest.CaptureFixture[str], path: Path, *flags: str, code: int = 0) -> str:
    assert main(["inspect", str(path), *flags]) == code
    return capsys.readouterr().out


def test_each_kind_is_recognised_by_its_folder_and_its_files(lab: Path) -> None:
    for path, kind in {
        "plain": "run",
        "plain/config.json": "run",
        "plain/status.json": "run",
        "plain/metrics.jsonl": "metrics",
        "plain/model": "model",
        "plain/model/model.safetensors": "model",
        "plain/model/model.json": "model",
        "plain/checkpoints": "checkpoints",
        "plain/checkpoints/latest": "checkpoints",
        UPDATE: "checkpoint",
        f"{UPDATE}/mp_rank_00_model_states.pt": "checkpoint",
        "shards": "shards",
        "shards/train-00000.bin": "shards",
        "shards/manifest.json": "shards",
        "tokenizer": "tokenizer",
        "tokenizer/tokenizer.model": "tokenizer",
    }.items():
        found = inspect(lab / path)
        assert (found.kind, found.problems) == (kind, []), path
        assert inspect(lab / path, verify=True) == found, path
    assert inspect(ROOT / "ds_configs/tiny.json").kind == "config"


def test_a_run_names_what_it_was_made_from(
    lab: Path, tiny_corpus: Corpus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = json.loads(printed(capsys, lab / "plain", "--json"))
    for what, folder, expected in (
        ("corpus", "shards", Shards.open(tiny_corpus.shards).hash),
        ("tokenizer", "tokenizer", SentencePieceTokenizer.load(tiny_corpus.tokenizer).hash),
        ("auxiliary", "auxiliary", (describe(lab / "auxiliary/model") or {})["hash"]),
    ):
        assert facts[what] == {"hash": expected, "path": str(lab / folder), "state": "the same"}
    assert facts["status"]["state"] == "completed" and facts["rows"]["updates"] == facts["updates"] == 12
    assert facts["latest"] == "update-00000012" and len(facts["checkpoints"]) == 4
    assert facts["evaluation"].keys() >= {"heldout_auc", "heldout_loss"} and facts["problems"] == []
    monkeypatch.chdir(lab)
    text = printed(capsys, Path("plain"))
    expected = f"auxiliary    {facts['auxiliary']['hash'][:12]}  auxiliary (the same)\n"
    assert (
        text.startswith("run          plain\n") and expected in text and text.endswith("--verify hashes all contents\n")
    )
    assert printed(capsys, Path("plain"), "--verify").endswith("whole        yes, by all hashes\n")


def test_a_model_is_described_without_being_loaded(lab: Path) -> None:
    facts = inspect(lab / "plain/model").facts
    weights = lab / "plain/model/model.safetensors"
    assert facts["holds"] == "discriminator" and facts["bytes"] == weights.stat().st_size
    assert facts["weights"] == file_hash(weights) and facts["encoder"]["layers"] == 2
    assert 4 * facts["parameters"] < facts["bytes"] < 4 * facts["parameters"] + 10_000
    assert facts["run"] == str(lab / "plain") and facts["tokenizer"]["state"] == "the same"
    assert inspect(lab / "auxiliary/model").facts["holds"].startswith("masked language model")


def test_a_joint_run_has_two_models_and_a_store_says_what_it_was_made_for(scenario: Scenario) -> None:
    joint = inspect(scenario("joint") / "joint")
    assert joint.kind == "run" and joint.problems == [] and joint.facts["objective"] == "joint"
    assert joint.facts["model"]["parameters"] and joint.facts["auxiliary/model"]["parameters"]
    folder = scenario("offline")
    store = inspect(folder / "store", verify=True)
    made_for = store.facts["made for"]
    assert store.kind == "store" and store.problems == [] and store.facts["draws"] == "every temperature"
    assert made_for["the auxiliary model"] == (describe(folder / "auxiliary/model") or {})["hash"]
    assert store.facts["sequences"]["train"] == 96 and not store.facts["written"].endswith("resumes")
    assert inspect(folder / "offline/exponential_offline").facts["store"] == str(folder / "store")


def test_a_fine_tuned_run_names_what_it_was_made_from(lab: Path) -> None:
    """Its section has no corpus, and its model may be ours or one of Hugging Face."""
    shutil.copytree(lab / "plain/model", lab / "tuned/model")
    section = {"run": "tuned", "updates": 5, "task": "mnli", "pretrained": "plain", "tokenizer": "tokenizer"}
    before = (describe(lab / "plain/model") or {})["hash"]
    write_sealed(lab / "tuned/config.json", {"fast_electra": section, "model_hash": before})
    found = inspect(lab / "tuned")
    assert found.problems == [] and found.facts["task"] == "mnli"
    assert found.facts["pretrained"] == {"hash": before, "path": str(lab / "plain"), "state": "the same"}
    assert found.facts["tokenizer"]["state"] == "the same" and found.facts["model"]["parameters"]
    write_sealed(lab / "tuned/config.json", {"fast_electra": section, "model_hash": {"config.json": "a"}})
    (lab / "tuned/model/model.json").rename(lab / "tuned/model/config.json")
    (lab / "tuned/status.json").write_text('{"state": "completed"}')
    assert inspect(lab / "tuned").problems == [] and inspect(lab / "tuned").facts["pretrained"] == str(lab / "plain")


def test_an_unfinished_store_is_told_apart(scenario: Scenario, tmp_path: Path) -> None:
    shutil.copytree(scenario("offline") / "store", tmp_path / "store")
    whole = inspect(tmp_path / "store").facts["written"]
    (tmp_path / "store/manifest.json").unlink()
    sorted((tmp_path / "store").glob("*.safetensors"))[0].unlink()
    parts = int(whole.split()[0])
    assert inspect(tmp_path / "store").facts["written"].startswith(f"{parts - 1} of {parts} parts: not complete")


def test_only_hashes_find_a_byte_that_changed(lab: Path) -> None:
    files = [
        next((lab / UPDATE).glob("zero*.pt")),
        lab / "plain/model/model.safetensors",
        lab / "shards/train-00000.bin",
    ]
    for file in files:
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert inspect(file).problems == []
        with pytest.raises(ValueError, match=file.name):
            inspect(file, verify=True)
    found = inspect(lab / "plain", verify=True)
    assert len(found.problems) == 2  # the model and a checkpoint; of the shards only the manifest is compared
    assert found.facts["corpus"]["state"] == "the same" and len(found.facts["checkpoints"]) == 3


def test_no_code_of_a_checkpoint_is_run(lab: Path) -> None:
    """Not even of one whose description fits its files."""
    folder, ran = lab / UPDATE, lab / "it_ran"
    for kind in payloads.KINDS:
        payloads.write(folder / "mp_rank_00_model_states.pt", ran, kind)
        complete = read_json(folder / "complete.json")
        record = FileRecord.of(folder / "mp_rank_00_model_states.pt")
        complete["files"][record.name] = [record.size, record.hash]
        write_sealed(folder / "complete.json", complete)
        assert inspect(folder, verify=True).problems == [] and inspect(lab / "plain", verify=True).problems == []
        assert not ran.exists()


def other_tokenizer(lab: Path) -> None:
    from fast_electra.text.train_tokenizer import train_tokenizer

    (lab / "text.txt").write_text("some words of another text\n")
    train_tokenizer([lab / "text.txt"], lab / "tokenizer", 280, overwrite=True)


PARTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "tokenizer that is another": (other_tokenizer, "tokenizer is another tokenizer"),
    "auxiliary that is another": (
        lambda lab: [
            shutil.rmtree(lab / "auxiliary/model"),
            shutil.copytree(lab / "plain/model", lab / "auxiliary/model"),
        ],
        "auxiliary is another auxiliary",
    ),
    "shards that are damaged": (
        lambda lab: (lab / "shards/manifest.json").write_text("{"),
        "manifest.json cannot be read",
    ),
    "model that is damaged": (lambda lab: altered(lab / "plain/model/model.json", kind="mlm"), "it was altered"),
    "checkpoint cut off": (lambda lab: os.truncate(next((lab / UPDATE).glob("*.pt")), 100), "has 100 bytes where"),
    "latest that names nothing": (
        lambda lab: (lab / "plain/checkpoints/latest").write_text("update-1\n"),
        "latest names 'update-1', which is not there",
    ),
    "status that is no JSON": (
        lambda lab: (lab / "plain/status.json").write_bytes(b"\xff"),
        "status.json cannot be read",
    ),
    "metrics that hold no row": (lambda lab: (lab / "plain/metrics.jsonl").write_bytes(b"\x00\xff"), "holds no row"),
}


@pytest.mark.drill("damaged file")
@pytest.mark.parametrize("kind", PARTS)
def test_a_damaged_part_is_a_problem_of_its_run(kind: str, lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harm, says = PARTS[kind]
    harm(lab)
    lines = printed(capsys, lab / "plain", code=1).splitlines()
    problems = [line for line in lines if line.startswith("problem ")]
    assert len(problems) == 1 and says in problems[0] and lines[0] == f"run          {lab}/plain"


def test_a_model_is_described_although_its_run_is_damaged(lab: Path) -> None:
    altered(lab / "plain/config.json", corpus_hash="a")
    for path in (lab / "plain/model", lab / UPDATE):
        found = inspect(path)
        assert len(found.problems) == 1 and "config.json cannot be read (it was altered" in found.problems[0]
        assert found.facts["run"] is None and found.facts["bytes"] > 0


def test_what_is_gone_is_no_damage(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tokenizer", "shards", "auxiliary", "plain/model", "plain/checkpoints"):
        shutil.rmtree(lab / name)
    for name in ("status.json", "metrics.jsonl"):
        (lab / "plain" / name).unlink()
    (lab / "shards").symlink_to("shards")  # a loop
    text = printed(capsys, lab / "plain")
    assert text.count("(not there)\n") == 3 and "  state unknown\n" in text
    (lab / "plain/status.json").write_text('{"state": "completed"}')
    assert "model is missing, and the run was completed" in printed(capsys, lab / "plain", code=1)
