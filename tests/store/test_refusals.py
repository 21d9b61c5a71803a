"""A store that is damaged, unfinished or of another run is refused with one line that names the remedy."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pytest
import torch
from lab import BATCH, UPDATES, Lab
from safetensors.numpy import load_file, save
from small import CPU

from fast_electra.files import FileRecord
from fast_electra.jobs import preprocess
from fast_electra.settings import UserError
from fast_electra.store.format import MANIFEST, PLAN, PartFile
from fast_electra.training.engines import Ranks
from fast_electra.training.loop import evaluation_batch


@pytest.fixture(scope="module")
def lab(tiny_corpus: conftest.Corpus, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tiny_corpus, tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def axis_store(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lab.write(lab.settings(), tmp_path_factory.mktemp("axis") / "store")


def test_an_interrupted_store_is_completed(lab: Lab, tmp_path: Path) -> None:
    """Complete parts stay as they are; what is missing, cut off, foreign or half written is written again."""
    whole = lab.write(lab.settings(), tmp_path / "whole")
    folder = tmp_path / "store"
    settings = lab.settings()
    preprocess.write_parts(lab.begin(settings, folder), Ranks(1, 2, CPU))
    kept, cut, foreign = sorted(folder.glob("*.safetensors"))[:3]
    cut.write_bytes(cut.read_bytes()[:-9])
    foreign.write_bytes(lab.write(lab.settings(seed=8), tmp_path / "other").joinpath(foreign.name).read_bytes())
    (folder / ".train-00000.safetensors.partial").write_bytes(b"half")
    before = (kept.read_bytes(), kept.stat().st_mtime_ns, kept.stat().st_ino)
    assert not (folder / MANIFEST).exists()
    with pytest.raises(UserError, match=r"not complete: finish it .*launch/preprocess.py"):
        lab.read(settings, folder)

    lab.write(settings, folder, world=3, part=50)  # the unfinished store keeps its own size of parts
    assert (kept.read_bytes(), kept.stat().st_mtime_ns, kept.stat().st_ino) == before
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in whole.iterdir())
    assert all((folder / name).read_bytes() == (whole / name).read_bytes() for name in names)


def test_killed_while_it_writes_its_plan(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / ".plan.json.4711").write_text("{")
    lab.write(lab.settings(updates=1), tmp_path)
    assert not list(tmp_path.glob(".*")) and (tmp_path / MANIFEST).exists()


@pytest.mark.drill("damaged file")
def test_damage_is_found(lab: Lab, tmp_path: Path) -> None:
    folder = lab.write(lab.settings(), tmp_path / "store")
    part = sorted(folder.glob("train-*"))[3]
    data = part.read_bytes()
    part.write_bytes(data[:-50] + bytes([data[-50] ^ 4]) + data[-49:])
    with pytest.raises(UserError, match=rf"{part.name} was altered .*; remove that file and .*{MANIFEST}"):
        lab.read(lab.settings(), folder)
    part.write_bytes(data[:-1])
    with pytest.raises(UserError, match=f"{part.name} has .* bytes where the manifest says"):
        lab.read(lab.settings(), folder)
    part.unlink()
    with pytest.raises(UserError, match=f"{part.name} is missing"):
        lab.read(lab.settings(), folder)
    (folder / MANIFEST).unlink()  # the remedy works
    lab.write(lab.settings(), folder)
    assert part.read_bytes() == data and lab.read(lab.settings(), folder)
    (folder / MANIFEST).write_text("{")
    with pytest.raises(UserError, match=f"{MANIFEST} cannot be read"):
        lab.read(lab.settings(), folder)
    with pytest.raises(UserError, match=r"there is no store in .*: write one with deepspeed launch/preprocess.py"):
        lab.read(lab.settings(), tmp_path / "nowhere")


@pytest.mark.drill("damaged file")
@pytest.mark.parametrize("key", ["floor", "high", "vocabulary_size", "about"])
def test_a_changed_plan_is_refused(lab: Lab, tmp_path: Path, key: str) -> None:
    """Its checksum differs; and where that is gone, each part knows the plan that it was written for."""
    folder = lab.write(lab.settings(updates=1), tmp_path / "store")
    manifest = json.loads((folder / MANIFEST).read_text())
    plan = manifest["plan"]
    plan[key] = {"auxiliary_hash": "b" * 32} if key == "about" else plan[key] + 1
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"{MANIFEST} cannot be read \(it was altered: its checksum differs\); remove"):
        lab.read(lab.settings(updates=1), folder)
    del manifest["checksum"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"train-00000.safetensors was written for another plan than .*; remove"):
        lab.read(lab.settings(updates=1), folder)


@pytest.mark.drill("damaged file")
def test_a_part_with_the_right_hash_and_other_content_is_refused(lab: Lab, tmp_path: Path) -> None:
    folder = lab.write(lab.settings(), tmp_path / "store")
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["checksum"]
    first, second = sorted(folder.glob("train-*"))[:2]
    for content, message in (
        (b"", "cannot be read"),
        (b"weights" * 100, "cannot be read"),
        (save({"other": np.zeros(3)}), "cannot be read"),
        (save({"tokens": np.zeros(3)}), "was written for another plan"),
        (save({"tokens": np.zeros(3)}, metadata={"fast_electra": "[]"}), "was written for another plan"),
        (second.read_bytes(), "was written for another plan"),
    ):
        first.write_bytes(content)
        manifest["parts"] = [FileRecord.of(folder / record["name"]).model_dump() for record in manifest["parts"]]
        (folder / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=rf"{first} {message}.*; remove that file") as caught:
            lab.read(lab.settings(), folder)
        assert "\n" not in str(caught.value)


@pytest.mark.drill("damaged file")
def test_wrong_arrays_under_the_right_label_are_refused_when_they_are_read(lab: Lab, tmp_path: Path) -> None:
    folder = lab.write(lab.settings(), tmp_path / "store")
    part = folder / "reference-00000.safetensors"
    arrays, label = load_file(part), {"fast_electra": json.dumps(PartFile(part).label)}
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["checksum"]
    batch = evaluation_batch(lab.corpus.train, "reference", torch.arange(3), 0)
    for changed, message in (
        ({"tokens": arrays["tokens"] + 1000}, "holds a token id beyond the vocabulary"),
        ({"tokens": arrays["tokens"][:3]}, "cannot be read"),
        ({"positions": arrays["positions"][:2]}, "cannot be read"),
        ({"positions": arrays["positions"] + 2**20}, "cannot be read"),
        ({"counts": arrays["counts"] + 9}, "cannot be read"),
    ):
        part.write_bytes(save(arrays | changed, metadata=label))
        manifest["parts"] = [FileRecord.of(folder / record["name"]).model_dump() for record in manifest["parts"]]
        (folder / MANIFEST).write_text(json.dumps(manifest))
        stored = lab.read(lab.settings(), folder)
        with pytest.raises(UserError, match=rf"{part} {message}.*; remove that file"):
            lab.corrupted(lab.settings(), stored, batch, 1.5)


def test_a_store_of_an_older_version_is_read(lab: Lab, tmp_path: Path) -> None:
    folder = lab.write(lab.settings(updates=1), tmp_path / "store")
    for name in (MANIFEST, PLAN):
        content = json.loads((folder / name).read_text())
        del content["checksum"]
        (folder / name).write_text(json.dumps(content))
    assert lab.read(lab.settings(updates=1), folder)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"seed": 8}, r"fast_electra.seed was 0 when it was written and is 8 here; set it back"),
        ({"corruption__mask_fraction": 0.2}, r"mask_fraction was 0.15 .* is 0.2"),
        ({"corpus__sequence_length": 48}, r"sequence_length was 40 .* is 48"),
        ({"replacement__augmentation": "term_frequency_interpolation"}, r"augmentation was temperature"),
        ({"replacement__distribution": "uniform"}, r"distribution was auxiliary"),
        ({"auxiliary__dtype": "bf16"}, r"auxiliary.dtype was fp32 .* is bf16"),
        (
            {"curriculum__initial": 2.5},
            r"covers fast_electra.curriculum.initial up to 2.0, the run asks for 2.5. Lower it",
        ),
        ({"updates": 11}, r"training stream .* up to 240, the run asks for 264"),
        ({"evaluation__sequences": 13}, r"evaluation.sequences up to 12, the run asks for 13"),
    ],
)
def test_store_of_another_run_is_refused(keys: dict[str, Any], message: str, lab: Lab, axis_store: Path) -> None:
    with pytest.raises(UserError, match=rf"{message}.* or write a new one: deepspeed launch/preprocess.py") as caught:
        lab.read(lab.settings(**keys), axis_store)
    assert "\n" not in str(caught.value) and str(axis_store) in str(caught.value)


def test_store_of_another_corpus_or_auxiliary_is_refused(lab: Lab, axis_store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the corpus was [0-9a-f]{12} .* is bbbbbbbbbbbb here"):
        lab.read(lab.settings(), axis_store, dataclasses.replace(lab.corpus, hash="b" * 32))
    (tmp_path / "model").mkdir()
    described = {"kind": "mlm", "encoder": lab.settings().run.model.model_dump()}
    (tmp_path / "model" / "model.json").write_text(json.dumps(described | {"hash": "c" * 32}))
    with pytest.raises(UserError, match=r"the auxiliary model was aaaaaaaaaaaa .* is cccccccccccc here"):
        lab.read(lab.settings(auxiliary__run=str(tmp_path)), axis_store)
    (tmp_path / "model" / "model.json").write_text(json.dumps(described | {"hash": "a" * 32}))
    assert lab.read(lab.settings(auxiliary__run=str(tmp_path)), axis_store)


def test_a_run_may_need_less_than_the_store_has(lab: Lab, axis_store: Path) -> None:
    less = {"updates": 5, "curriculum__initial": 1.2, "evaluation__sequences": 3, "train_batch_size": 8}
    assert lab.read(lab.settings(**less), axis_store).plan.kind == "axis"
    assert lab.read(lab.settings(updates=UPDATES * 2, train_batch_size=BATCH // 2), axis_store)


def test_fixed_store_is_tied_to_its_schedule(lab: Lab, tmp_path: Path) -> None:
    settings = lab.settings(curriculum__per="epoch")
    folder = lab.write(settings, tmp_path / "store")
    for keys, message in (
        ({"curriculum__schedule": "constant"}, "curriculum.schedule was exponential"),
        ({"curriculum__rate": 0.3}, "curriculum.rate was 0.1"),
        ({"curriculum__initial": 1.5}, "curriculum.initial was 2.0"),
        ({"curriculum__per": "update"}, "curriculum.per was epoch .* is update"),
        ({"updates": UPDATES - 1}, "updates was 10"),
        ({"train_batch_size": 8}, "train_batch_size was 24"),
    ):
        with pytest.raises(UserError, match=message):
            lab.read(lab.settings(**{"curriculum__per": "epoch", **keys}), folder)
    stored = lab.read(settings, folder)
    batch = evaluation_batch(lab.corpus.train, "reference", torch.arange(3), settings.run.seed)
    with pytest.raises(UserError, match=r"holds no draws at temperature 1\.5"):
        lab.corrupted(settings, stored, batch, 1.5)


def test_value_outside_the_axis_is_refused(lab: Lab, axis_store: Path) -> None:
    batch = evaluation_batch(lab.corpus.train, "reference", torch.arange(3), 0)
    for value in (2.01, 0.99):
        with pytest.raises(UserError, match=f"holds no draws at temperature {value}"):
            lab.corrupted(lab.settings(), lab.read(lab.settings(), axis_store), batch, value)


def test_what_cannot_be_stored_or_continued_is_refused(lab: Lab, tmp_path: Path) -> None:
    settings = lab.settings(replacement__augmentation="drop_token")
    with pytest.raises(UserError, match=r"drop_token .* --set fast_electra.curriculum.per=epoch"):
        lab.write(settings, tmp_path / "store")

    store = lab.write(lab.settings(), tmp_path / "begun")
    (store / MANIFEST).unlink()
    for keys, message in (
        ({"seed": 8}, "fast_electra.seed was 0 and is now 8"),
        ({"curriculum__initial": 1.5}, "curriculum.initial was 2.0 and is now 1.5"),
        ({"curriculum__per": "epoch"}, "kind was axis and is now fixed"),
    ):
        with pytest.raises(UserError, match=rf"unfinished store of another run: .*{message}.*choose another --output"):
            lab.write(lab.settings(**keys), store)

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("dear")
    with pytest.raises(UserError, match=r"holds something else than a store .*choose another --output"):
        lab.write(lab.settings(), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_the_manifest_of_shards_is_not_taken_for_a_damaged_store(lab: Lab, tiny_corpus: conftest.Corpus) -> None:
    """Its remedy would be to remove the manifest."""
    before = sorted(path.name for path in tiny_corpus.shards.iterdir())
    alone = Ranks(0, 1, CPU)
    for call in (lambda run, folder: preprocess.write(run, folder, alone), lab.read):
        with pytest.raises(UserError, match=r"no plan\.json, so it is no store: name another folder") as caught:
            call(lab.settings(), tiny_corpus.shards)
        assert "remove" not in str(caught.value)
    assert sorted(path.name for path in tiny_corpus.shards.iterdir()) == before
