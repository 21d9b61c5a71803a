"""Shards of a Hugging Face tokenizer: made by the command, read back, and tied to the pipeline that made them."""

import json
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch
from conftest import Corpus
from foreign_tokenizers import edit, train

from fast_electra.cli import main
from fast_electra.corpus.corpus import CorpusSettings, open_corpus
from fast_electra.corpus.frozen_tokenizer import FROZEN
from fast_electra.corpus.shards import MANIFEST, SPLITS, Manifest, Shards
from fast_electra.corpus.tokenizer import open_tokenizer
from fast_electra.files import read_json
from fast_electra.inspection.look import inspect
from fast_electra.settings import UserError
from fast_electra.text.build import build_shards
from fast_electra.text.documents import Document
from fast_electra.text.inputs import expand
from fast_electra.text.readers import read_documents

KINDS = ("bert", "roberta", "deberta")


@pytest.fixture(scope="module")
def documents() -> list[str]:
    sample = islice(read_documents(expand(["sample"])), 0, 600, 15)
    return [document.text[:3000] for document in sample if isinstance(document, Document)]


@pytest.fixture(scope="module")
def lab(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and tokenizers."""
    lab = tmp_path_factory.mktemp("lab")
    (lab / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    for kind in KINDS:
        train(kind, lab / kind, documents)
    return lab


def build(lab: Path, tokenizer: Path, output: Path, *flags: str) -> Manifest:
    arguments = ["--input", str(lab / "text.jsonl"), "--tokenizer", str(tokenizer), "--output", str(output), *flags]
    assert main(["corpus", "--heldout", "0.2", *arguments]) == 0
    return Shards.open(output).manifest


def same(first: Path, second: Path) -> bool:
    names = [file.relative_to(first) for file in sorted(first.rglob("*")) if file.is_file()]
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_freezes_what_it_used(kind: str, lab: Path, documents: list[str], tmp_path: Path) -> None:
    manifest = build(lab, lab / kind, tmp_path / "shards")
    theirs, ours = open_tokenizer(lab / kind), open_tokenizer(tmp_path / "shards/tokenizer")
    assert manifest.tokenizer == theirs.hash == ours.hash == open_tokenizer(tmp_path / "shards").hash
    found = []
    for split in SPLITS:
        shards = Shards.open(tmp_path / "shards", split)
        found += [shards.tokens(n, 0, int(length)).tolist() for n, length in enumerate(shards.lengths)]
    assert sorted(found) == sorted(map(theirs.encode, documents)) and len(found) == len(documents)
    assert manifest.unknown == sum(ids.count(ours.unk_id) for ids in found)
    # Made from the frozen folder, with two processes, the shards are the same; so they are in place of the old ones.
    build(lab, tmp_path / "shards/tokenizer", tmp_path / "again", "--workers", "2")
    assert same(tmp_path / "shards", tmp_path / "again")
    build(lab, tmp_path / "shards", tmp_path / "shards", "--overwrite")
    assert same(tmp_path / "shards", tmp_path / "again")
    corpus = open_corpus(
        CorpusSettings(
            shards=str(tmp_path / "shards"), tokenizer=str(tmp_path / "shards/tokenizer"), sequence_length=32
        ),
        ours.vocabulary_size,
        verify=True,
    )
    sequence = corpus.train.tokens(torch.tensor([0])).tolist()
    assert (sequence[0], sequence[-1]) == (ours.cls_id, ours.sep_id)


def test_a_directory_that_gives_other_ids_now_is_told_from_the_one_that_was_used(lab: Path, tmp_path: Path) -> None:
    build(lab, lab / "bert", tmp_path / "shards")
    shutil.copytree(lab / "bert", tmp_path / "bert")
    settings = CorpusSettings(shards=str(tmp_path / "shards"), tokenizer=str(tmp_path / "bert"), sequence_length=32)
    size = open_tokenizer(lab / "bert").vocabulary_size
    assert open_corpus(settings, size, verify=False).tokenizer.hash == open_tokenizer(lab / "bert").hash
    edit(tmp_path / "bert/tokenizer_config.json", do_lower_case=False)  # as another version might read it
    with pytest.raises(UserError, match=r"nother version of transformers.*tokenizer` in that of the shards") as error:
        open_corpus(settings, size, verify=False)
    assert "\n" not in str(error.value)


def test_unknown_tokens_and_empty_documents_are_reported(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [
        "the whale and the sea " * 3,
        "\u4e2d \u4e2d the",
        "\u0301\u200d\u200d\x01",
        "and the sea of the whale \ue000",
    ]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    manifest = build(tmp_path, lab / "bert", tmp_path / "shards")
    output = capsys.readouterr()
    assert manifest.documents == 3 and manifest.rejected == {"no token": 1}
    lost = json.loads((tmp_path / "shards/quarantine.jsonl").read_text())
    assert lost["source"].endswith("text.jsonl:3") and "characters" in lost["hint"]
    tokens = [int(open_tokenizer(lab / "bert").unk_id or 0)] * manifest.unknown
    assert 2 <= len(tokens) < manifest.tokens
    share = f"{manifest.unknown / manifest.tokens:.2%}"
    assert f"{manifest.unknown:,} tokens ({share}) stand for other text" in " ".join(output.out.split())
    assert "1 x no token" in output.err


def test_manifests_of_our_tokenizer_are_what_they_were(lab: Path, tiny_corpus: Corpus) -> None:
    """A run that goes on from shards of an older version compares their hash."""
    assert "unknown" not in read_json(tiny_corpus.shards / MANIFEST)
    assert not (tiny_corpus.shards / "tokenizer").exists()


def test_frozen_and_foreign_tokenizers_are_known_by_inspect(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(lab, lab / "roberta", tmp_path / "shards")
    theirs, model = open_tokenizer(lab / "roberta"), tmp_path / "model"
    shutil.copytree(lab / "roberta", model)
    (model / "config.json").write_text('{"model_type": "roberta", "architectures": ["RobertaModel"]}')
    frozen = tmp_path / "shards/tokenizer"
    capsys.readouterr()
    for path in (
        frozen,
        frozen / FROZEN,
        lab / "roberta",
        lab / "roberta/tokenizer_config.json",
        lab / "roberta/tokenizer.json",
        model / "tokenizer.json",
    ):
        found = inspect(path)
        assert found.kind == "tokenizer" and found.problems == [] and found.facts["hash"] == theirs.hash, path
        assert found.facts["entries"] == 600 and found.facts["special"]["mask"] == "<mask>"
        assert main(["inspect", str(path)]) == 0 and theirs.hash[:12] in capsys.readouterr().out
    shards = inspect(tmp_path / "shards", verify=True)
    assert shards.kind == "shards" and shards.problems == []
    assert shards.facts["tokenizer"] == {"hash": theirs.hash, "path": str(frozen), "state": "the same"}
    shutil.rmtree(frozen)
    build_shards([lab / "text.jsonl"], lab / "bert", tmp_path / "others")
    shutil.move(tmp_path / "others/tokenizer", frozen)
    (problem,) = inspect(tmp_path / "shards").problems
    assert "is another tokenizer" in problem
    (frozen / FROZEN).write_text((frozen / FROZEN).read_text().replace('"mask_id": 4', '"mask_id": 3'))
    assert main(["inspect", str(frozen)]) != 0 and "was altered" in "".join(capsys.readouterr())


def test_folders_of_frozen_tokenizers_are_no_text(lab: Path, tmp_path: Path) -> None:
    build(lab, lab / "bert", tmp_path / "data/shards")
    shutil.copytree(tmp_path / "data/shards/tokenizer", tmp_path / "data/tokenizer")
    (tmp_path / "data/text.txt").write_text("the whale")
    assert expand([tmp_path / "data"]) == [tmp_path / "data/text.txt"]
