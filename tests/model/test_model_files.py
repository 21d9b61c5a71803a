"""A saved model is whole, readable by others, and refused when it was altered."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import Record, every_flipped_bit

from fast_electra.files import file_hash
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.files import describe, load_model, save_model
from fast_electra.model.heads import Discriminator
from fast_electra.settings import UserError

SIZES = EncoderSettings(vocabulary_size=50, layers=1, hidden_size=16, ffn_size=32, heads=2)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    model = Discriminator.new(SIZES, seed=3)
    save_model(tmp_path / "model", "rtd", SIZES, model.state_dict(), tokenizer="abc")
    loaded, description = load_model(tmp_path / "model", "rtd", "")
    assert description["tokenizer"] == "abc"
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())


def test_others_may_read_it_as_the_umask_says(tmp_path: Path) -> None:
    """On a cluster, other users and services read what a run wrote."""
    before = os.umask(0o027)
    try:
        save_model(tmp_path / "model", "rtd", SIZES, Discriminator.new(SIZES).state_dict())
    finally:
        os.umask(before)
    assert (tmp_path / "model" / "model.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.drill("damaged file")
def test_another_kind_or_a_damaged_file_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "model", "rtd", SIZES, Discriminator.new(SIZES).state_dict())
    with pytest.raises(UserError, match="holds a model of kind 'rtd', not 'mlm'; train one"):
        load_model(tmp_path / "model", "mlm", "train one")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UserError, match="is not what was written"):
        load_model(tmp_path / "model", "rtd", "train one")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", "rtd", SIZES, Discriminator.new(SIZES).state_dict(), tokenizer="abc", evaluation={})
    return tmp_path / "model"


def as_older(folder: Path) -> dict[str, Any]:
    """The description as versions before the checksum wrote it: what is changed in it is not found at once."""
    description: dict[str, Any] = json.loads((folder / "model.json").read_text())
    del description["checksum"]
    return description | {"hash": description.pop("weights")}


def refused(folder: Path, file: str) -> None:
    """One line names the file and the remedy."""
    with pytest.raises(UserError, match=rf"{folder / file} .*; train one$") as caught:
        load_model(folder, "rtd", "train one")
    assert "\n" not in str(caught.value)


@pytest.mark.drill("damaged file")
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b'"rtd"', b"{}", b"\xff\xfe{}", b"[" * 100_000])
def test_a_description_of_another_shape_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.json").write_bytes(content)
    refused(folder, "model.json")
    with pytest.raises(UserError, match=r"model\.json cannot be read .*; restore it or train the model again"):
        describe(folder)


@pytest.mark.drill("damaged file")
@pytest.mark.parametrize("key", ["kind", "encoder", "hash", "encoder.layers"])
def test_a_description_without_a_key_is_refused(folder: Path, key: str) -> None:
    description = as_older(folder)
    *path, last = key.split(".")
    del (description[path[0]] if path else description)[last]
    (folder / "model.json").write_text(json.dumps(description))
    refused(folder, "model.json")


@pytest.mark.drill("damaged file")
@pytest.mark.parametrize(
    "changed",
    [
        {"kind": 5},
        {"hash": 5},
        {"hash": None},
        {"hash": ["a"]},
        {"tokenizer": 5},
        {"evaluation": [0.5]},
        {"encoder": []},
        *({"encoder": SIZES.model_dump() | {"layers": layers}} for layers in ("1", 1.5, 0, None, 2)),
        *({"encoder": SIZES.model_dump() | {"hidden_size": size}} for size in (15, 32, 10**12, 10**30)),
        {"encoder": SIZES.model_dump() | {"vocabulary_size": 51}},
        {"encoder": SIZES.model_dump() | {"unknown": 1}},
    ],
    ids=str,
)
def test_a_description_that_does_not_fit_is_refused(folder: Path, changed: dict[str, Any]) -> None:
    (folder / "model.json").write_text(json.dumps(as_older(folder) | changed))
    refused(folder, "model.json")


@pytest.mark.drill("damaged file")
def test_a_folder_in_the_place_of_a_file_is_refused(folder: Path) -> None:
    for name in ("model.safetensors", "model.json"):
        (folder / name).unlink()
        (folder / name).mkdir()
        refused(folder, name)


@pytest.mark.drill("damaged file")
def test_missing_or_damaged_weights_are_refused(folder: Path) -> None:
    weights, description = folder / "model.safetensors", folder / "model.json"
    whole, known = weights.read_bytes(), as_older(folder)
    for damaged in (b"", whole[:-1], whole[:8], whole[: len(whole) // 2], b"\xff" * 100):
        weights.write_bytes(damaged)
        refused(folder, "model.safetensors")
        description.write_text(json.dumps(known | {"hash": file_hash(weights)}))  # written so: no safetensors at all
        refused(folder, "model.safetensors")
        description.write_text(json.dumps(known))
    weights.unlink()
    refused(folder, "model.safetensors")


def test_a_description_can_be_read_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    description = describe(folder)
    assert description is not None
    assert (description["kind"], description["tokenizer"], len(description["hash"])) == ("rtd", "abc", 32)
    assert EncoderSettings(**description["encoder"]) == SIZES
    assert describe(tmp_path / "none") is None


def test_unknown_facts_and_old_descriptions_are_kept(folder: Path) -> None:
    """Older models say nothing of some sizes; newer ones may say more."""
    description = as_older(folder)
    for gone in ("relative_start", "activation_checkpointing"):
        del description["encoder"][gone]
    (folder / "model.json").write_text(json.dumps(description | {"origin": "here"}))
    assert load_model(folder, "rtd", "")[1]["origin"] == "here"
    assert load_model(folder, "rtd", "")[1]["hash"] == description["hash"]


@pytest.mark.drill("flipped bit of a description")
def test_every_flipped_bit_of_a_description_is_found(folder: Path, record_property: Record) -> None:
    tried = every_flipped_bit(
        folder / "model.json", lambda: {key: describe(folder)[key] for key in ("encoder", "kind", "hash")}
    )
    record_property("tried", tried)


def test_the_hash_covers_the_settings_and_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    """A run and a store know their auxiliary by it. Some settings change what a model computes and no weight."""
    weights, found = load_file(folder / "model.safetensors"), {describe(folder)["hash"]}
    for number, (settings, tokenizer) in enumerate(
        [
            (SIZES.model_copy(update={"relative_max_distance": 28}), "abc"),
            (SIZES.model_copy(update={"attention_dropout": 0.2}), "abc"),
            (SIZES, "abd"),
        ]
    ):
        save_model(tmp_path / f"{number}", "rtd", settings, weights, tokenizer=tokenizer)
        found.add(describe(tmp_path / f"{number}")["hash"])
    assert len(found) == 4
    save_model(tmp_path / "same", "rtd", SIZES, weights, tokenizer="abc", evaluation={"loss": 0.5}, origin="there")
    assert describe(tmp_path / "same")["hash"] in found


@pytest.mark.drill("damaged file")
def test_settings_that_were_changed_by_hand_are_refused(folder: Path) -> None:
    """Also where the checksum was removed: the hash that runs record is no longer that of the model."""
    description = json.loads((folder / "model.json").read_text())
    del description["checksum"]
    description["encoder"]["relative_max_distance"] = 28
    (folder / "model.json").write_text(json.dumps(description))
    refused(folder, "model.json")


@pytest.mark.drill("bad number in losses, weights or data")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_read(folder: Path, bad: float) -> None:
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].flatten()[0] = bad
    with pytest.raises(UserError, match=rf"weights for .* are not finite \({name}\)"):
        save_model(folder, "rtd", SIZES, weights)
    assert load_model(folder, "rtd", "")  # the old one stays
    save_file(weights, folder / "model.safetensors")
    description = as_older(folder) | {"hash": file_hash(folder / "model.safetensors")}
    (folder / "model.json").write_text(json.dumps(description))
    refused(folder, "model.safetensors are not finite")
