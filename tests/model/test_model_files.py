"""A saved model is whole, readable by others, and refused when it was altered."""

import os
from pathlib import Path

import pytest
import torch

from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.files import load_model, save_model
from fast_electra.model.heads import Discriminator
from fast_electra.settings import UserError

SIZES = EncoderSettings(vocabulary_size=50, layers=1, hidden_size=16, ffn_size=32, heads=2)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    model = Discriminator(SIZES, seed=3)
    save_model(tmp_path / "model", "rtd", SIZES, model.state_dict(), tokenizer="abc")
    loaded, description = load_model(tmp_path / "model", "rtd", "")
    assert description["tokenizer"] == "abc"
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())


def test_others_may_read_it_as_the_umask_says(tmp_path: Path) -> None:
    """On a cluster, other users and services read what a run wrote."""
    before = os.umask(0o027)
    try:
        save_model(tmp_path / "model", "rtd", SIZES, Discriminator(SIZES).state_dict())
    finally:
        os.umask(before)
    assert (tmp_path / "model" / "model.safetensors").stat().st_mode & 0o777 == 0o640


def test_another_kind_or_a_damaged_file_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "model", "rtd", SIZES, Discriminator(SIZES).state_dict())
    with pytest.raises(UserError, match="holds a model of objective 'rtd', not 'mlm'; train one"):
        load_model(tmp_path / "model", "mlm", "train one")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UserError, match="is not what was written"):
        load_model(tmp_path / "model", "rtd", "train one")
