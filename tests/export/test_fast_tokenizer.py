"""The exported tokenizer gives the ids of ours, for every text."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Corpus

from fast_electra.corpus.pieces import SPACE
from fast_electra.corpus.same_tokenizer import difference
from fast_electra.corpus.sentencepiece_tokenizer import SPECIAL_PIECES, SentencePieceTokenizer
from fast_electra.corpus.tokenizer import open_tokenizer
from fast_electra.export.tokenizer import convert, write_tokenizer
from fast_electra.text.documents import Document
from fast_electra.text.inputs import expand
from fast_electra.text.readers import read_documents
from fast_electra.text.train_tokenizer import train_tokenizer

NASTY = [
    "",
    "\n",
    "\n\n\n",
    "\t\t x \t",
    "a\r\nb",
    "\x00",
    "a\x00b",
    " lead",
    "trail ",
    "a  b   c    d",
    "I'm can't don't",
]
NASTY += [
    "👨‍👩‍👧‍👦 family 👩🏽‍🚀",
    "🇩🇪🇫🇷",
    "é e\u0301 ñ",
    "\x01\x07\x1b[0m",
    "\x7f\x85\xa0\u2028\u2029\ufeff",
    "مرحبا بالعالم",
]
NASTY += [
    "ภาษาไทยไม่มีช่องว่าง",
    "中文字符测试",
    "हिन्दी",
    SPACE,
    f"a{SPACE}b {SPACE} {SPACE}{SPACE}c",
    "<0x0A>",
    "<0x41><unk></s>",
]
NASTY += [
    "ﬁ Ａ ½ İstanbul ß ẞ",
    "\U0010ffff\U000e0001",
    "\u200b\u200c\u200d\u2060",
    " .  ..   ...",
    "\ud7a3\u1100\u1161",
]
NASTY += [letter * count for letter in (" ", "a", "=", ".", "word ") for count in (2, 37, 1000)]


def mixes(count: int) -> Iterator[str]:
    """Random strings of Latin, Arabic and Thai letters, controls, emoji, U+2581 and many spaces."""
    choose = random.Random(0)
    scripts = [range(1, 0x250), range(0x600, 0x700), range(0xE00, 0xE80), range(0x2580, 0x2590), (0x1F468, 0x200D)]
    letters = [chr(code) for codes in scripts for code in codes] + [" "] * 60 + ["\n"] * 20 + list("etaoin") * 10
    for _ in range(count):
        yield "".join(choose.choices(letters, k=choose.randint(1, 80)))
        yield "".join(choose.choices(" a=", k=choose.randint(1, 60)))


def compare(tokenizer: Path, texts: list[str], lossless: bool = True) -> None:
    ours = SentencePieceTokenizer.load(tokenizer)
    fast = convert(ours)
    assert fast.get_vocab_size() == ours.vocabulary_size
    for text in texts:
        ids = fast.encode(text, add_special_tokens=False).ids
        assert ids == ours.encode(text), text[:200]
        assert not lossless or fast.decode(ids) == text


def sample(size: int) -> list[str]:
    """The first documents of the sample corpus, of `size` characters or a little more."""
    texts: list[str] = []
    documents = read_documents(expand(["sample"]), "text")
    while sum(map(len, texts)) < size:
        document = next(documents)
        assert isinstance(document, Document)
        texts.append(document.text)
    return texts


def test_ids_are_ours_for_a_part_of_the_corpus_and_for_nasty_strings(tiny_corpus: Corpus) -> None:
    compare(tiny_corpus.tokenizer, [*NASTY, *mixes(1000), *sample(500_000)])


def test_ids_are_ours_where_the_tokenizer_learnt_from_many_scripts(tmp_path: Path) -> None:
    texts = [text.replace("\x00", "") for text in mixes(1000)]
    (tmp_path / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    train_tokenizer([tmp_path / "text.txt"], tmp_path / "tokenizer", vocabulary=3000)
    compare(tmp_path / "tokenizer", [*NASTY, *texts])


def test_an_export_is_taken_for_the_tokenizer_of_its_own_corpus(tmp_path: Path) -> None:
    """With pieces that hold control characters, too: a run may go on from an export of ours, on our shards."""
    texts = [f"{text} \x96\x07 \x96\x07" for text in mixes(500)]
    (tmp_path / "text.txt").write_text("\n\n".join(text.replace("\x00", "") for text in texts), encoding="utf-8")
    train_tokenizer([tmp_path / "text.txt"], tmp_path / "tokenizer", vocabulary=2000)
    ours = SentencePieceTokenizer.load(tmp_path / "tokenizer")
    assert any("\x96" in ours.piece(token) for token in range(261, 2000))
    (tmp_path / "export").mkdir()
    write_tokenizer(ours, tmp_path / "export", 128)
    assert difference(ours, open_tokenizer(tmp_path / "export"), texts) is None


def test_ids_are_ours_where_the_tokenizer_has_no_piece_for_a_space(tmp_path: Path) -> None:
    """Such a tokenizer spells a space as U+2581, and decodes it so."""
    choose = random.Random(0)
    texts = ["".join(choose.choices("ab", k=choose.randint(1, 300))) for _ in range(300)]
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    train_tokenizer([tmp_path / "text.txt"], tmp_path / "tokenizer", vocabulary=400)
    compare(tmp_path / "tokenizer", [*NASTY, *texts, "ab ba  ab", " "], lossless=False)


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [2048, 8192, 30_000])
def test_ids_are_ours_for_10_megabytes(vocabulary: int, tmp_path: Path) -> None:
    train_tokenizer(["sample"], tmp_path / "tokenizer", vocabulary=vocabulary)
    texts = [*NASTY, *mixes(10_000), *sample(10_100_000)]
    assert sum(len(text.encode()) for text in texts) > 10_000_000
    compare(tmp_path / "tokenizer", texts)


def test_names_of_special_tokens_are_special_tokens(tiny_corpus: Corpus) -> None:
    """Users of transformers need this to write [MASK]; the space before it is its own."""
    fast = convert(SentencePieceTokenizer.load(tiny_corpus.tokenizer))
    assert [fast.token_to_id(piece) for piece in SPECIAL_PIECES] == [0, 1, 2, 3, 4]
    with_space, without = (fast.encode(f"of{space}[MASK] was", add_special_tokens=False).ids for space in (" ", ""))
    assert with_space == without and with_space.count(4) == 1
