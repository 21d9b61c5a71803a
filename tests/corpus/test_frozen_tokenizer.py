"""A frozen tokenizer gives the ids of transformers, for every text, and no text can forge a special token."""

import json
import random
import shutil
from itertools import islice
from pathlib import Path

import pytest
import transformers
from foreign_tokenizers import KINDS, edit, train

from fast_electra.corpus.frozen_tokenizer import FROZEN, FrozenTokenizer
from fast_electra.corpus.pieces import spell
from fast_electra.corpus.tokenizer import open_tokenizer
from fast_electra.settings import UserError
from fast_electra.text.inputs import expand
from fast_electra.text.readers import read_documents

LOSSLESS = ("roberta", "bytes")
NASTY = [
    "", " ", "\n\n\n", "a", " lead", "trail ", "a  b   c    d", "tabs\tand\r\nlines\x0b\x0c\x1c\x85\u2028\xa0\u3000",
    "na\u00efve cafe\u0301 \u212b \ufb01 \u00bd \uff21 \u0130stanbul \u00df", "I'm can't don't \u2019s \u201cq\u201d",
    "\u4e2d\u6587 \u6771\u4eac \u0627\u0644\u0639\u0631 \u0e01\u0e33 \u0939\u093f",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f \U0010ffff \ue000",
    "\u2581 a\u2581b ##ing \u0120the <0x41> <0x", "x" * 300, "word " * 3000,
    "\u0301\u200b\ufeff\x01\x7f", "\ud7a3\u1100\u1161",
]  # fmt: skip


def texts() -> list[str]:
    every_twentieth = islice(read_documents(expand(["sample"])), 0, 600, 20)
    return [document[0][:5000] for document in every_twentieth]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: train(kind, tmp_path_factory.mktemp(kind), texts()) for kind in KINDS}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def frozen(folders: dict[str, Path], kind: str, tmp_path_factory: pytest.TempPathFactory) -> FrozenTokenizer:
    """The tokenizer of a kind, read from its own file."""
    made, folder = open_tokenizer(folders[kind]), tmp_path_factory.mktemp("frozen")
    assert isinstance(made, FrozenTokenizer)
    made.save(folder)
    return FrozenTokenizer.load(folder)


def test_the_ids_are_those_of_transformers(frozen: FrozenTokenizer, folders: dict[str, Path], kind: str) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folders[kind])
    random.seed(0)
    letters = [*map(chr, range(1, 0x250)), *" \n\t\u2581\u4e2d\u0301\U0001f468\u200d" * 9, *"etaoin " * 30]
    mixes = ["".join(random.choices(letters, k=random.randint(1, 80))) for _ in range(500)]
    for text in [*NASTY, *mixes, *texts()]:
        ids = frozen.encode(text)
        assert ids == theirs(text, add_special_tokens=False, verbose=False)["input_ids"], text[:100]
        assert [frozen.cls_id, *ids, frozen.sep_id] == theirs(text, verbose=False)["input_ids"]
        assert all(0 <= token < frozen.vocabulary_size for token in ids)
    named = {name: getattr(theirs, f"{name}_token_id") for name in KINDS[kind][1]}
    assert named == {name: getattr(frozen, f"{name}_id") for name in named}
    assert frozen.special_ids == tuple(sorted(named.values())) == frozen.never_drawn
    assert frozen.vocabulary_size == len(theirs)


def test_its_files_open_in_transformers_as_the_same_pipeline(frozen: FrozenTokenizer, tmp_path: Path) -> None:
    for name, content in frozen.hugging_face_files().items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in NASTY:
        assert [frozen.cls_id, *frozen.encode(text), frozen.sep_id] == theirs(text, verbose=False)["input_ids"]
    assert open_tokenizer(tmp_path).hash == frozen.hash


def test_no_text_forges_a_special_token(frozen: FrozenTokenizer, kind: str) -> None:
    """Unigram finds the name of a special token like any word, even when `tokenizers` is told to see text there."""
    special = KINDS[kind][1]
    forbidden = set(frozen.special_ids) - {frozen.unk_id}
    for name in special.values():
        for text in (
            name,
            f"a {name} b",
            f"a{name}b{name}",
            name * 3,
            f"{name}\n",
            name.lower(),
            f"{name[:-1]} {name[-1]}",
        ):
            assert forbidden.isdisjoint(frozen.encode(text)), text
    if kind in LOSSLESS:
        text = f"a {special['mask']} b"
        assert frozen.decode(frozen.encode(text)) == text


def test_pieces_spell_the_text(frozen: FrozenTokenizer, kind: str) -> None:
    pieces = [frozen.piece(token) for token in range(frozen.vocabulary_size)]
    assert [pieces[token] for token in sorted(frozen.special_ids)] == [*KINDS[kind][1].values()]
    assert all(pieces) and all(piece.isprintable() or piece >= "\xa0" for piece in pieces)
    assert "\u2581the" in pieces or "\u2581of" in pieces
    text = "The whale \u201csaid\u201d: caf\u00e9,\n\nnothing \U0001f642."
    spelt = spell([frozen.piece(token) for token in frozen.encode(text)])[0]
    if kind in LOSSLESS:
        assert spelt.removeprefix(" ") == text
    else:
        assert "whale" in spelt.split() and "the" in spelt.lower().split()


def test_special_tokens_decode_to_nothing(frozen: FrozenTokenizer) -> None:
    ids = frozen.encode("the whale and the sea")
    framed = [frozen.cls_id, *ids[:1], frozen.mask_id, *ids[1:], frozen.sep_id, frozen.pad_id]
    assert frozen.decode(framed).strip() == "the whale and the sea"


def test_the_hash_survives_saving_and_settings_that_decide_no_id(
    folders: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    first = open_tokenizer(folders[kind])
    theirs = transformers.AutoTokenizer.from_pretrained(folders[kind])
    theirs.save_pretrained(tmp_path / "again")
    assert open_tokenizer(tmp_path / "again").hash == first.hash
    theirs.backend_tokenizer.enable_truncation(8)
    theirs.backend_tokenizer.enable_padding(length=8)
    theirs.model_max_length = 8
    theirs.save_pretrained(tmp_path / "cut")
    assert json.loads((tmp_path / "cut/tokenizer.json").read_text())["truncation"]["max_length"] == 8
    cut = open_tokenizer(tmp_path / "cut")
    assert cut.hash == first.hash and len(cut.encode("a whale " * 50)) > 50


def test_what_decides_ids_changes_the_hash(folders: dict[str, Path], tmp_path: Path) -> None:
    hashes = {open_tokenizer(folder).hash for folder in folders.values()}
    theirs = transformers.AutoTokenizer.from_pretrained(folders["generic"])
    theirs.add_tokens(["whalebone"])
    theirs.save_pretrained(tmp_path / "added")
    added = open_tokenizer(tmp_path / "added")
    assert added.encode("a whalebone")[-1] == added.vocabulary_size - 1 == added.never_drawn[-1]
    assert added.piece(added.vocabulary_size - 1) == "whalebone"
    transformers.AutoTokenizer.from_pretrained(folders["generic"], mask_token="\u2581of").save_pretrained(
        tmp_path / "mask"
    )
    assert len(hashes | {added.hash, open_tokenizer(tmp_path / "mask").hash}) == len(KINDS) + 2


def test_spare_entries_and_holes_are_never_drawn(folders: dict[str, Path], tmp_path: Path) -> None:
    vocabulary = [*KINDS["bert"][1].values(), "[unused0]", "[unused1]", "the", "##s", "madeupword0000"]
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    assert open_tokenizer(tmp_path).never_drawn == (0, 1, 2, 3, 4, 5, 6, 9)
    path = tmp_path / "generic"
    transformers.AutoTokenizer.from_pretrained(folders["bytes"]).save_pretrained(path)
    state = json.loads((path / "tokenizer.json").read_text())
    last = max(state["model"]["vocab"], key=state["model"]["vocab"].__getitem__)
    state["model"]["vocab"][last] += 1
    (path / "tokenizer.json").write_text(json.dumps(state))
    holed = open_tokenizer(path)
    assert holed.never_drawn[-1] == holed.vocabulary_size - 2 and "no token" in holed.piece(holed.never_drawn[-1])


@pytest.mark.parametrize("token", [None, ""])
def test_an_unknown_token_may_be_missing(token: str | None, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["roberta"], tmp_path / "roberta")
    edit(tmp_path / "roberta/tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", unk_token=token)
    frozen = open_tokenizer(tmp_path / "roberta")
    assert frozen.unk_id is None and frozen.encode("a whale") == open_tokenizer(folders["roberta"]).encode("a whale")


def test_an_altered_file_is_refused(frozen: FrozenTokenizer, tmp_path: Path) -> None:
    frozen.save(tmp_path)
    path, whole = tmp_path / FROZEN, (tmp_path / FROZEN).read_text()
    for changed, message in (
        (
            whole.replace("whale", "whole").replace('"pad_id": 0', '"pad_id": 2').replace('"pad_id": 1', '"pad_id": 2'),
            "was altered",
        ),
        (whole[: len(whole) // 2], "cannot be read"),
        ("", "cannot be read"),
        (
            json.dumps({key: entry for key, entry in json.loads(whole).items() if key != "checksum"} | {"format": 2}),
            "format",
        ),
    ):
        path.write_text(changed)
        with pytest.raises(UserError, match=message) as error:
            open_tokenizer(tmp_path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_another_version_of_the_library_that_gives_other_ids_is_refused(
    frozen: FrozenTokenizer, tmp_path: Path
) -> None:
    frozen.save(tmp_path)
    versions = frozen.frozen.versions | {"tokenizers": "0.1"}
    changed = json.loads((tmp_path / FROZEN).read_text()) | {"versions": versions}
    changed.pop("checksum")
    (tmp_path / FROZEN).write_text(json.dumps(changed))
    assert FrozenTokenizer.load(tmp_path).hash == frozen.hash  # another version alone does no harm
    changed["probe"][3] += 1
    (tmp_path / FROZEN).write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"gives other ids .* install tokenizers 0\.1"):
        FrozenTokenizer.load(tmp_path)


def test_random_merges_are_left_out(folders: dict[str, Path], tmp_path: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folders["roberta"])
    theirs.backend_tokenizer.model.dropout = 0.5
    theirs.save_pretrained(tmp_path)
    frozen = open_tokenizer(tmp_path)
    assert frozen.encode("the whale " * 50) == open_tokenizer(folders["roberta"]).encode("the whale " * 50)


def test_a_model_directory_without_the_fast_file_is_converted(tmp_path: Path, folders: dict[str, Path]) -> None:
    """As old repositories have it: a vocabulary, and little else."""
    state = json.loads((folders["bert"] / "tokenizer.json").read_text())
    entries = sorted(state["model"]["vocab"], key=state["model"]["vocab"].__getitem__)
    (tmp_path / "vocab.txt").write_text("\n".join(entries) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    ours = open_tokenizer(tmp_path)
    assert ours.encode("The whale") == open_tokenizer(folders["bert"]).encode("The whale")
    edit(tmp_path / "tokenizer_config.json", do_lower_case=False)
    assert open_tokenizer(tmp_path).hash != ours.hash
