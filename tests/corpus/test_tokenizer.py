"""Any text comes back, the vocabulary has the size asked for, and special tokens come from nowhere but us."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from fast_electra.settings import UserError
from fast_electra.text.documents import Document
from fast_electra.text.inputs import expand
from fast_electra.text.readers import read_documents
from fast_electra.text.train_tokenizer import _BORDER, train_tokenizer

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Text that has tried to break tokenizers before, learnt from as well as encoded.
TRICKY = [
    "[MASK] [CLS] [SEP] [PAD] [UNK] <0x0A> <unk> <s> </s>",
    "\u2581 \u2581\u2581word\u2581 a\u2581b",
    "tabs\tand\t\ttabs,    runs   of  spaces ,\n\n\nnewlines\r\n and \x0b\x0c\x1c\x85\u2028\xa0\u3000 others ",
    "\u2047 \u2585 \ufffd \ufeff \x01 \x7f \u0301 e\u0301 ﬁ ① Å Ⅷ",
    "emoji 👩‍👩‍👧‍👦 🏳️‍🌈, 東京 العربية \U0010ffff",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the sample, with the tricky text a hundred times over so that it is learnt too."""
    texts = [item.text[:20_000] for item in read_documents(expand(["sample"])) if isinstance(item, Document)][::8]
    path = tmp_path_factory.mktemp("corpus") / "some.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts + TRICKY * 100))
    return path


@pytest.fixture(scope="module")
def folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "tokenizer"
    train_tokenizer([corpus], folder, 1500)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.load(folder)


def test_ids_are_where_the_contract_puts_them(tokenizer: SentencePieceTokenizer) -> None:
    assert tokenizer.vocabulary_size == 1500
    assert tokenizer.special_ids == (0, 1, 2, 3, 4)
    named = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert named == tokenizer.special_ids
    assert [tokenizer.piece(i) for i in range(5)] == SPECIALS
    assert [tokenizer.piece(5 + byte) for byte in range(256)] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert len({tokenizer.piece(i) for i in range(1500)}) == 1500


@settings(max_examples=500, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60))
@example("\n".join(TRICKY))
@example("")
@example(" ")
@example("\u2581")
def test_any_text_comes_back_and_forges_no_special_token(tokenizer: SentencePieceTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not ids or (min(ids) >= 5 and max(ids) < 1500)


pieces = st.sampled_from(
    ["\u2581", " ", "  ", "\n", "\t", "The", " the", "ing", "[MASK]", "é", "🙂", "\r", "K", "<0x0A>"]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(pieces, max_size=30).map("".join))
def test_mixtures_of_borders_come_back(tokenizer: SentencePieceTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_sample_comes_back(tokenizer: SentencePieceTokenizer) -> None:
    for item in read_documents(expand(["sample"])):
        assert isinstance(item, Document)
        if item.source.endswith("7"):
            assert tokenizer.decode(tokenizer.encode(item.text)) == item.text


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.lists(pieces, max_size=30).map("".join), st.text(st.characters(exclude_categories=["Cs"]))))
@example("a  b   c    d" + " " * 50 + "e")
def test_word_by_word_gives_the_ids_of_the_whole(tokenizer: SentencePieceTokenizer, text: str) -> None:
    text = text.replace("\u2581", "").replace("\0", "")
    assert tokenizer.encode(text) == tokenizer._processor.encode(text)


def test_word_by_word_gives_the_ids_of_the_whole_sample(tokenizer: SentencePieceTokenizer) -> None:
    texts = [item[0] for item in read_documents(expand(["sample"]))][::20]
    assert [tokenizer.encode(text) for text in texts] == [tokenizer._processor.encode(text) for text in texts]


def test_no_piece_reaches_over_a_word_border(tokenizer: SentencePieceTokenizer) -> None:
    """What makes the above true of every text, not only of those tried."""
    assert not [piece for i in range(1500) if _BORDER.search(piece := tokenizer.piece(i))]


def test_a_full_cache_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = SentencePieceTokenizer.load(folder)
    text = " ".join(str(random.Random(0).randrange(i + 1)) for i in range(500))
    expected = tokenizer.encode(text)
    monkeypatch.setattr("fast_electra.corpus.sentencepiece_tokenizer._Words._LIMIT", 7)
    assert SentencePieceTokenizer.load(folder).encode(text) == expected == tokenizer.encode(text)


def test_special_tokens_decode_to_nothing(tokenizer: SentencePieceTokenizer) -> None:
    ids = tokenizer.encode("Call me Ishmael.")
    assert tokenizer.decode([2, *ids, 3, 0, 0, 4, 1]) == "Call me Ishmael."


def test_training_is_deterministic(corpus: Path, folder: Path, tmp_path: Path) -> None:
    card = train_tokenizer([corpus], tmp_path / "again", 1500)
    for name in ("tokenizer.model", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert card["sha256"] == SentencePieceTokenizer.load(folder).hash


def test_a_sample_is_bounded_and_taken_from_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "zoo.txt"
    path.write_text("\n\n".join(f"{'horse' if i < 1000 else 'zebra'} {i} " * 20 for i in range(2000)))
    text = train_tokenizer([path], tmp_path / "t", 300, max_train_bytes=20_000)["text"]
    assert 19_000 < text["sampled_bytes"] <= 20_000 < text["bytes"]
    assert 50 < text["sampled_documents"] < text["documents"] == 2000
    pieces = {SentencePieceTokenizer.load(tmp_path / "t").piece(i) for i in range(300)}
    assert {"▁horse", "▁zebra"} <= pieces


def test_long_lines_are_learnt_from(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("zyxwv utsrq " * 5_000 + "\n\n" + "q" * 2_000)
    train_tokenizer([path], tmp_path / "t", 284)
    tokenizer = SentencePieceTokenizer.load(tmp_path / "t")
    assert [tokenizer.piece(i) for i in tokenizer.encode("zyxwv utsrq")] == ["zyxwv", "▁utsrq"]


def test_the_size_is_exact_or_refused_with_the_largest_possible(tmp_path: Path) -> None:
    path = tmp_path / "small.txt"
    path.write_text("the cat sat on the mat, the rat on the hat")
    with pytest.raises(UserError, match=r"at most (\d+)") as error:
        train_tokenizer([path], tmp_path / "t", 5000)
    largest = int(str(error.value).split("at most ")[1].split(";")[0])
    assert not (tmp_path / "t").exists()
    train_tokenizer([path], tmp_path / "t", largest)
    assert SentencePieceTokenizer.load(tmp_path / "t").vocabulary_size == largest
    for vocabulary in (100, 262):
        with pytest.raises(UserError, match="too small"):
            train_tokenizer([path], tmp_path / "u", vocabulary)
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="no documents"):
        train_tokenizer([path], tmp_path / "u", 300)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.txt", "t"]


def test_an_existing_folder_is_replaced_only_on_demand(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("some words and more words")
    train_tokenizer([text], tmp_path / "t", 275)
    with pytest.raises(UserError, match="--overwrite"):
        train_tokenizer([text], tmp_path / "t", 276)
    train_tokenizer([text], tmp_path / "t", 276, overwrite=True)
    assert SentencePieceTokenizer.load(tmp_path / "t").vocabulary_size == 276
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not replaced"):
        train_tokenizer([text], tmp_path / "precious", 276, overwrite=True)
    assert (tmp_path / "precious" / "thesis.tex").exists()


def test_a_missing_altered_or_foreign_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.model is missing"):
        SentencePieceTokenizer.load(tmp_path)
    model = bytearray((folder / "tokenizer.model").read_bytes())
    model[len(model) // 2] ^= 1
    (tmp_path / "tokenizer.model").write_bytes(model)
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        SentencePieceTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="was altered"):
        SentencePieceTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        SentencePieceTokenizer.load(tmp_path)


@pytest.mark.parametrize("version", [2, "1", None])
def test_a_tokenizer_of_another_version_is_refused(folder: Path, tmp_path: Path, version: object) -> None:
    card = json.loads((folder / "tokenizer.json").read_text()) | {"format": version}
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    (tmp_path / "tokenizer.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=rf"tokenizer\.json has format {version!r}, .* reads 1"):
        SentencePieceTokenizer.load(tmp_path)
