"""What an export holds besides the numbers: the parts of runs that it finds, the model card, and the old export."""

import json
import re
import resource
import sys
from pathlib import Path

import exporting
import pytest
import torch
import yaml
from conftest import Corpus
from transformers.models.layoutlmv3.modeling_layoutlmv3 import LayoutLMv3Encoder

from fast_electra.cli import main
from fast_electra.corpus.shards import Shards
from fast_electra.files import write_sealed
from fast_electra.model.attention import relative_buckets


@pytest.fixture
def run(tiny_corpus: Corpus, tmp_path: Path) -> Path:
    """A run folder of objective rtd."""
    exporting.save_config(tmp_path / "run", tiny_corpus.tokenizer)
    exporting.save(tmp_path / "run" / "model", "rtd", exporting.shaken("rtd", layers=1), tiny_corpus.tokenizer)
    return tmp_path / "run"


def test_runs_and_model_folders_and_both_parts_of_a_joint_run_are_found(
    run: Path, tiny_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = exporting.shaken("mlm", layers=1)
    exporting.save(run / "auxiliary" / "model", "mlm", part, tiny_corpus.tokenizer)
    exporting.save(tmp_path / "alone", "mlm", part, tiny_corpus.tokenizer)
    monkeypatch.chdir(run / "model")
    main_part, auxiliary = "MPNetForReplacedTokenDetection", "MPNetForMaskedLM"
    sources: list[tuple[Path, list[str], str]] = [
        (run, [], main_part),
        (Path(), [], main_part),  # RUN/model
        (run, ["--part", "auxiliary"], auxiliary),
        (run / "auxiliary", [], auxiliary),
        (run / "auxiliary/model", [], auxiliary),
        (tmp_path / "alone", ["--tokenizer", str(tiny_corpus.tokenizer)], auxiliary),
    ]
    for number, (source, options, expected) in enumerate(sources):
        output = tmp_path / "exported" / str(number)
        assert main(["export", str(source), str(output), *options]) == 0
        assert json.loads((output / "config.json").read_text())["architectures"] == [expected]
        assert (output / "modeling_fast_electra.py").exists() == (expected == main_part)


def test_an_export_says_what_it_is(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "exported"
    assert main(["export", str(run), str(output)]) == main(["inspect", str(output)]) == 0
    assert re.search(r"^class +MPNetForReplacedTokenDetection\nparameters  \d+,", capsys.readouterr().out, re.M)
    weights = output / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["inspect", str(output)]) == 2 and "cannot be read" in capsys.readouterr().err
    (output / "config.json").write_text("[]")
    assert main(["inspect", str(output)]) == 2 and "names no class" in capsys.readouterr().err


def test_card_says_what_the_run_was(run: Path, tiny_corpus: Corpus, tmp_path: Path) -> None:
    section = {"seed": 7, "corpus": exporting.corpus(tiny_corpus.tokenizer) | {"shards": str(tiny_corpus.shards)}}
    section |= {"run": str(run), "objective": "rtd", "updates": 1500, "new": {}}
    section |= {"replacement": {}, "curriculum": {"initial": 3.0}}
    shards = Shards.open(tiny_corpus.shards)
    facts = {"corpus_hash": shards.hash, "auxiliary_hash": "abc", "heldout_mlm_accuracy": 0.25}
    write_sealed(run / "config.json", {"fast_electra": section} | facts)
    assert main(["export", str(run), str(tmp_path / "my_model"), "--licence", "CC BY 4.0 | `x`\n# y"]) == 0
    card = (tmp_path / "my_model" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head == {"library_name": "transformers", "pipeline_tag": "feature-extraction", "tags": ["fast-electra"]}
    rows = dict(re.findall(r"^\| (.+?) \| (.*) \|$", card, flags=re.MULTILINE))
    documents = sum(shard.documents for shard in shards.manifest.splits["train"])
    assert rows["data"].startswith(f"{documents:,} documents, {int(shards.lengths.sum()):,} tokens, from text.jsonl")
    assert rows["licence of the data"] == r"CC BY 4.0 \| \`x\` \# y"
    assert (rows["curriculum"], rows["updates"]) == ("temperature from 3, exponential, rate 0.1", "1500")
    assert (rows["auxiliary model"], rows["held-out accuracy of the auxiliary model"]) == ("abc", "0.2500")
    assert rows[r"heldout\_auc"] == "0.7500" and r"by\_class" not in rows
    assert rows["hash of the model"] == json.loads((run / "model" / "model.json").read_text())["hash"]
    assert "# my\\_model" in card and "AutoModelForPreTraining" in card and str(tmp_path) not in card


def test_card_of_a_model_alone_says_what_is_known(run: Path, tiny_corpus: Corpus, tmp_path: Path) -> None:
    (run / "config.json").unlink()
    assert main(["export", str(run), str(tmp_path / "out"), "--tokenizer", str(tiny_corpus.tokenizer)]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| licence of the data | unknown |" in card and not re.search("curriculum|longest|None", card)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 512


def test_a_fine_tuned_run_names_its_tokenizer_and_length(tiny_corpus: Corpus, tmp_path: Path) -> None:
    finetuned = tmp_path / "finetuned"
    exporting.save(finetuned / "model", "classifier", exporting.shaken("classifier", layers=1), tiny_corpus.tokenizer)
    section = {"run": str(finetuned), "task": "stsb", "tokenizer": str(tiny_corpus.tokenizer), "updates": 5}
    section |= {"pretrained": "gone", "sequence_length": 99}
    write_sealed(finetuned / "config.json", {"fast_electra": section, "model_hash": "abc", "data_hash": "def"})
    assert main(["export", str(finetuned), str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 99
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| fine-tuned from | abc |" in card and "| longest sequence | 99 tokens |" in card
    assert "A text regression model" in card


def test_an_older_export_is_replaced_if_nothing_else_is_lost(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    command = ["export", str(run), str(output), "--overwrite"]
    assert main(command) == 0
    whole = {path.name: path.read_bytes() for path in output.iterdir()}
    (output / "README.md").write_text("old")
    assert main(command) == 0
    assert {path.name: path.read_bytes() for path in output.iterdir()} == whole
    (output / ".git").mkdir()
    assert main(command) == 2
    assert "holds .git, which --overwrite would remove" in capsys.readouterr().err
    assert (output / ".git").is_dir()


@pytest.mark.drill("full disk, or limit on the size of files")
@pytest.mark.parametrize(("limit", "file"), [(100, "config.json"), (20_000, "out"), (60_000, "tokenizer.json")])
def test_a_full_disk_is_one_line(
    limit: int, file: str, tiny_corpus: Corpus, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files is the same to a program. The weights are smaller than tokenizer.json here."""
    model = exporting.shaken("rtd", layers=1, hidden_size=8, ffn_size=8, heads=2)
    exporting.save(run / "model", "rtd", model, tiny_corpus.tokenizer)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        assert main(["export", str(run), str(tmp_path / "out")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and file in printed
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_missing_package_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert main(["export", str(run), str(tmp_path / "out")]) == 2
    assert "pip install 'fast_electra[hf]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("setting", [(32, 128), (64, 128), (128, 256), (64, 256), (256, 512), (96, 300), (12, 77)])
def test_transformers_puts_distances_into_our_buckets(setting: tuple[int, int]) -> None:
    """In fp32. The few settings where rounding differs are refused."""
    buckets, distance = setting
    offset_R = torch.arange(-1100, 1101)
    theirs = LayoutLMv3Encoder.relative_position_bucket(None, offset_R, num_buckets=buckets, max_distance=distance)
    assert theirs.equal(relative_buckets(offset_R, buckets, distance))
