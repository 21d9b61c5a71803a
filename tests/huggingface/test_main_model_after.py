"""What a main model of transformers leaves: a directory that is fine-tuned, and from which training goes on."""

import json
from pathlib import Path

import pytest
import torch
from conftest import Corpus
from export import exporting
from finetuning.tuned import hugging_face

from fast_electra.batch import Layout
from fast_electra.export.export import export
from fast_electra.finetuning.config import FineTuningSettings
from fast_electra.finetuning.pretrained import open_pretrained
from fast_electra.finetuning.tasks import TASKS
from fast_electra.inspection.lines import to_text
from fast_electra.inspection.look import inspect
from fast_electra.objectives.objective import export_main_model
from fast_electra.settings import UserError

transformers = pytest.importorskip("transformers")
from huggingface.zoo import notes_of  # noqa: E402 (it needs transformers)


def saved(run: Path, source: Path, size: int) -> dict[str, torch.Tensor]:
    """Save a main model, moved away from its source, as a run does; return its weights."""
    model, _ = notes_of(source, size=size, length=32)
    weights = {name: weight.detach() + 0.01 * weight.requires_grad for name, weight in model.named_parameters()}
    folder, write, _ = export_main_model(model, weights)
    write(run / folder, tokenizer="", evaluation={})
    return weights


def test_the_saved_directory_is_fine_tuned_with_the_tokenizer_it_came_with(tmp_path: Path) -> None:
    source = hugging_face(tmp_path)
    (source / "README.md").write_text("of the source")
    weights = saved(tmp_path / "run", source, 25)
    folder = tmp_path / "run/model"
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    assert not (folder / "README.md").exists()
    values = {"run": "x", "task": "sst2", "data": "x", "sequence_length": 32, "dropout": 0.0}
    tuned, first = (
        open_pretrained(FineTuningSettings(pretrained=str(place), **values), TASKS["sst2"])
        for place in (tmp_path / "run", source)
    )
    rows = [("the old king spoke of war",), ("her friend asked about law at home",)]
    assert tuned.encode(rows, 32) == first.encode(rows, 32)
    inner = dict(tuned.model.model.base_model.named_parameters())
    assert all(torch.equal(weight, weights[f"encoder.model.{name}"]) for name, weight in inner.items())
    before = {name: weight for name, weight in first.model.model.base_model.named_parameters() if "pooler" in name}
    assert before and all(torch.equal(inner[name], weight) for name, weight in before.items())


def test_facts_are_written_and_damage_is_found(tmp_path: Path) -> None:
    saved(tmp_path / "run", hugging_face(tmp_path), 25)
    model, _ = notes_of(tmp_path / "run/model", size=25, length=32)
    folder, write, check = export_main_model(model, dict(model.named_parameters()))
    place = tmp_path / "run" / folder
    write(place, evaluation={"heldout_auc": 0.9}, sequence_length=32)  # in the place of the one before
    facts = json.loads((place / "fast_electra.json").read_text())
    assert facts["evaluation"] == {"heldout_auc": 0.9} and facts["sequence_length"] == 32
    check(place, "again")
    (place / "tokenizer_config.json").touch()  # by which a directory of Hugging Face is known
    found = inspect(place, verify=True)
    assert found.facts["evaluation"] == {"heldout_auc": 0.9} and "yes, by all hashes" in to_text(place, found, True)
    data = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="holds no whole model; again"):
        check(place, "again")
    assert not inspect(place).problems  # sizes are as they were
    with pytest.raises(UserError, match="holds no whole model; restore it"):
        inspect(place, verify=True)
    with torch.no_grad():
        model.output.bias.fill_(torch.nan)
    with pytest.raises(UserError, match=r"not finite \(rtd_head.output.bias\)"):
        write(place)
    model.output.bias.data.zero_()
    (place / "fast_electra.json").unlink()
    with pytest.raises(UserError, match=r"exists and holds no fast_electra\.json"):
        write(place)  # a directory that was not written here is never replaced


@pytest.mark.parametrize("changes", [{}, exporting.WIDE])
def test_an_export_of_ours_goes_on_with_its_head(tiny_corpus: Corpus, tmp_path: Path, changes: dict[str, int]) -> None:
    """Both classes of transformers that an export may have, and what is saved is opened again."""
    ours = exporting.shaken("rtd", **changes)
    exporting.save(tmp_path / "trained", "rtd", ours, tiny_corpus.tokenizer)
    export(tmp_path / "trained", tmp_path / "export", tokenizer=tiny_corpus.tokenizer)
    model, notes = notes_of(tmp_path / "export", size=1000, length=32)
    assert any("has a head for replaced tokens" in note for note in notes)
    tokens_T, layout = torch.arange(5, 45), Layout.of(torch.tensor([9, 24, 7]))
    with torch.no_grad():
        wanted_T = ours(tokens_T, layout)
        assert torch.allclose(model.eval()(tokens_T, layout), wanted_T, atol=1e-4)
        _, write, _ = export_main_model(model, dict(model.named_parameters()))
        write(tmp_path / "run/model")
        again, _ = notes_of(tmp_path / "run/model", size=1000, length=32)
        assert torch.allclose(again.eval()(tokens_T, layout), wanted_T, atol=1e-4)
    assert "auto_map" not in json.loads((tmp_path / "run/model/config.json").read_text())
