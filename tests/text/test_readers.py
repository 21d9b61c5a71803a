"""The good documents come out unchanged, and each bad one once, with its place and the reason."""

import bz2
import gzip
import json
import lzma
import random
import tracemalloc
from pathlib import Path

import pyarrow as arrow
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fast_electra.text.documents import Document, Rejected
from fast_electra.text.inputs import expand
from fast_electra.text.readers import read_documents

DOCUMENTS = ["One line.", "Two\n  lines,\tthe second indented.", "Größe, 東京, 🙂", " leading and trailing "]
PACKERS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
}


def txt(documents: list[str]) -> bytes:
    return "\n\n".join(documents).encode() + b"\n"


def jsonl(documents: list[str]) -> bytes:
    return b"".join(json.dumps({"id": 7, "text": text}).encode() + b"\n" for text in documents)


def table(documents: list[str], rows: int = 2) -> bytes:
    sink = arrow.BufferOutputStream()
    parquet.write_table(arrow.table({"text": documents}), sink, row_group_size=rows)
    return sink.getvalue().to_pybytes()


WRITERS = {".txt": txt, ".jsonl": jsonl, ".parquet": table}


def read(path: Path, data: bytes, **options: object) -> tuple[list[str], list[tuple[str, str]]]:
    """The texts that come out, and (place, reason) of what does not."""
    path.write_bytes(data)
    items = list(read_documents([path], **options))
    good = [item.text for item in items if isinstance(item, Document)]
    bad = [(item.source.removeprefix(str(path)), item.reason) for item in items if isinstance(item, Rejected)]
    return good, bad


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_and_archive_gives_the_documents_unchanged(tmp_path: Path, kind: str, packer: str) -> None:
    path = tmp_path / f"books{kind}{packer}"
    path.write_bytes(PACKERS[packer](WRITERS[kind](DOCUMENTS)))
    assert [item[0] for item in read_documents(expand([path]))] == DOCUMENTS


def test_sources_name_the_line_or_the_row(tmp_path: Path) -> None:
    for kind, expected in {".txt": [1, 3, 6, 8], ".jsonl": [1, 2, 3, 4], ".parquet": [1, 2, 3, 4]}.items():
        path = tmp_path / f"books{kind}"
        path.write_bytes(WRITERS[kind](DOCUMENTS))
        assert [item.source for item in read_documents([path])] == [f"{path}:{n}" for n in expected]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "caf\xe9"}', "broken UTF-8"),
        (b'{"text": "a\\u0000b"}', "NUL character"),
        (b'{"text": "a\\ud800b"}', "lone surrogate"),
        (b'{"text": ""}', "empty document"),
        (b'{"text": " \\n\\t"}', "empty document"),
        (b'{"text": "' + b"a" * 101 + b'"}', "over the size limit"),
        (b'{"text": "' + "é".encode() * 51 + b'"}', "over the size limit"),
        (b'{"text": "cut', "malformed JSON"),
        (b"[" * 200_000, "malformed JSON"),
        (b'["text"]', "not a JSON object"),
        (b'{"body": "elsewhere"}', "no text field"),
        (b'{"text": null}', "no text field"),
        (b'{"text": ["a"]}', "text is not a string"),
    ],
)
def test_a_bad_json_line_is_rejected_alone(tmp_path: Path, line: bytes, reason: str) -> None:
    data = jsonl(["before"]) + line + b"\r\n\n" + jsonl(["after"])
    assert read(tmp_path / "a.jsonl", data, max_document_bytes=100) == (["before", "after"], [(":2", reason)])


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"caf\xe9\nau lait", "broken UTF-8"),
        (b"a\0b", "NUL character"),
        (b"a" * 101, "over the size limit"),
        (b"a" * 60 + b"\n" + b"a" * 60, "over the size limit"),
        (b"a\n" * 100 + b"a", "over the size limit"),
    ],
)
def test_a_bad_text_document_is_rejected_alone(tmp_path: Path, document: bytes, reason: str) -> None:
    data = b"before\n\n" + document + b"\n\n\n \nafter\n"
    assert read(tmp_path / "a.txt", data, max_document_bytes=100) == (["before", "after"], [(":3", reason)])


def test_documents_of_exactly_the_limit_pass(tmp_path: Path) -> None:
    documents = ["a" * 100, "b" * 49 + "\n" + "c" * 50]
    for kind, writer in WRITERS.items():
        assert read(tmp_path / f"a{kind}", writer(documents), max_document_bytes=100) == (documents, [])


def test_a_byte_order_mark_and_windows_line_ends_are_not_text(tmp_path: Path) -> None:
    assert read(tmp_path / "a.txt", b"\xef\xbb\xbfa\r\nb\r\n\r\nc\r\n") == (["a\nb", "c"], [])
    assert read(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + jsonl(["a"])) == (["a"], [])


@pytest.mark.parametrize("packer", PACKERS)
def test_line_ends_of_old_macs_are_line_ends(tmp_path: Path, packer: str) -> None:
    pack, long = PACKERS[packer], "b" * 3_000_000
    text = f"\ufeffa\rb\r\r{long}\r \rc\r".encode()
    assert read(tmp_path / f"a.txt{packer}", pack(text)) == (["a\nb", long, "c"], [])
    assert read(tmp_path / f"a.jsonl{packer}", pack(jsonl(["a\rb", "c"]).replace(b"\n", b"\r"))) == (["a\rb", "c"], [])
    # Beside newlines, a carriage return alone is text.
    assert read(tmp_path / f"b.txt{packer}", pack(b"1%\r\r99%\r\n\r\nb\r\n")) == (["1%\r\r99%", "b"], [])


@pytest.mark.parametrize("packer", [".gz", ".xz", ".zst", ".bz2"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_a_truncated_archive_gives_what_comes_before_the_cut(tmp_path: Path, kind: str, packer: str) -> None:
    documents = [f"document {i} " + "of some length " * (i % 40) for i in range(3000)]
    whole = PACKERS[packer](WRITERS[kind](documents))
    for share in (0.3, 0.7, 0.999):
        good, bad = read(tmp_path / f"a{kind}{packer}", whole[: int(len(whole) * share)])
        assert good == documents[: len(good)]
        assert [reason for _, reason in bad] == ["truncated archive"]
        # xz and bz2 unpack a block at a time, the others give nearly all that the bytes hold.
        assert len(good) > (0.3 * share * len(documents) if packer not in (".xz", ".bz2") else -1)
        line = 2 * len(good) + 1 if kind == ".txt" else len(good) + 1
        assert bad[0][0] in (f":{line}", f":{line + 1}", f":{line + 2}")


@pytest.mark.parametrize("packer", [".gz", ".xz", ".zst", ".bz2"])
def test_a_damaged_archive_is_reported(tmp_path: Path, packer: str) -> None:
    data = bytearray(PACKERS[packer](jsonl([f"{i} {i * i} {i**3}" for i in range(20_000)])))
    data[len(data) // 2] ^= 0xFF
    _, bad = read(tmp_path / f"a.jsonl{packer}", bytes(data))
    assert bad
    assert bad[-1][1] in ("damaged archive", "truncated archive")
    assert read(tmp_path / f"b.jsonl{packer}", b"this is no archive")[1][0][1] in (
        "damaged archive",
        "truncated archive",
    )


def test_archives_of_several_members_are_read_to_the_end(tmp_path: Path) -> None:
    for suffix in (".gz", ".xz", ".zst", ".bz2"):
        data = PACKERS[suffix](jsonl(["a"])) + PACKERS[suffix](jsonl(["b"]))
        assert read(tmp_path / f"a.jsonl{suffix}", data) == (["a", "b"], [])


def test_a_gigabyte_without_a_newline_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as stream:
        stream.write(jsonl(["before"]))
        stream.truncate(2**30)  # a sparse file: one line of NULs
    with path.open("ab") as stream:
        stream.write(b"\n" + jsonl(["after"]))
    tracemalloc.start()
    items = list(read_documents([path], max_document_bytes=2**20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [item[0] for item in items if isinstance(item, Document)] == ["before", "after"]
    assert [item.reason for item in items if isinstance(item, Rejected)] == ["over the size limit"]
    assert peak < 32 * 2**20


def test_a_row_group_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    documents = [random.Random(i).randbytes(50_000).hex() for i in range(600)]
    parquet.write_table(
        arrow.table({"text": documents}), path, compression="none", use_dictionary=False, write_batch_size=8
    )
    assert path.stat().st_size > 50 * 2**20
    before = arrow.total_allocated_bytes()
    tracemalloc.start()
    pairs = zip(documents, read_documents([path]), strict=True)
    assert all(text == item[0] and arrow.total_allocated_bytes() - before < 24 * 2**20 for text, item in pairs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 * 2**20


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_truncated_parquet_is_rejected_once(tmp_path: Path, suffix: str) -> None:
    data = table(DOCUMENTS)
    good, bad = read(tmp_path / f"a.parquet{suffix}", PACKERS[suffix](data[: len(data) // 2]))
    assert (good, bad) == ([], [("", "unreadable parquet")])
    if suffix:
        assert read(tmp_path / f"a.parquet{suffix}", PACKERS[suffix](data)[:-20])[1] == [("", "truncated archive")]


def test_a_damaged_row_group_leaves_the_others(tmp_path: Path) -> None:
    documents = [f"{i} " * 200 for i in range(6)]
    data = bytearray(table(documents))
    start = parquet.ParquetFile(arrow.BufferReader(bytes(data))).metadata.row_group(1).column(0).dictionary_page_offset
    data[start : start + 12] = b"\xff" * 12
    good, bad = read(tmp_path / "a.parquet", bytes(data))
    assert good == documents[:2] + documents[4:]
    assert bad == [(":3", "unreadable parquet")]


def test_parquet_columns(tmp_path: Path) -> None:
    broken = arrow.array([b"good", b"b\xe9d", None, b"nul\0", b"good too"], arrow.binary()).view(arrow.string())
    columns = {"text": broken, "number": list(range(5)), "kind": arrow.array(list("aabba")).dictionary_encode()}
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table(columns), path)
    data = path.read_bytes()
    bad = [(":2", "broken UTF-8"), (":3", "no text field"), (":4", "NUL character")]
    assert read(path, data) == (["good", "good too"], bad)
    assert read(path, data, field="kind") == (list("aabba"), [])
    assert read(path, data, field="absent") == ([], [("", "no absent field")])
    assert {reason for _, reason in read(path, data, field="number")[1]} == {"number is not a string"}


def test_an_empty_file_is_reported(tmp_path: Path) -> None:
    assert read(tmp_path / "a.txt", b"") == ([], [("", "empty file")])
    assert read(tmp_path / "a.txt.gz", gzip.compress(b"\n\n")) == ([], [("", "empty file")])


def test_excerpts_are_short_and_printable(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xff\xfd" * 5000 + b'\n{"text": "' + b"x" * 5000 + b'\\udfff"}\n')
    items = list(read_documents([path]))
    assert [item.reason for item in items if isinstance(item, Rejected)] == ["broken UTF-8", "lone surrogate"]
    for item in items:
        assert isinstance(item, Rejected)
        assert 0 < len(item.excerpt) <= 200
        item.excerpt.encode()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400), kind=st.sampled_from(list(WRITERS)), packer=st.sampled_from(list(PACKERS)))
def test_no_bytes_end_the_run(tmp_path: Path, data: bytes, kind: str, packer: str) -> None:
    for name, content in ((f"a{kind}", data), (f"a{kind}{packer}", data), (f"b{kind}{packer}", PACKERS[packer](data))):
        good, bad = read(tmp_path / name, content)
        assert good or bad
        for text in good:
            assert text.strip()
            assert "\0" not in text


line = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n\ufeff"), min_size=1, max_size=20)
paragraphs = st.lists(line.filter(lambda text: text.encode().strip() and not text.isspace()), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=st.lists(paragraphs.map("\n".join), min_size=1, max_size=5), kind=st.sampled_from(list(WRITERS)))
def test_any_good_documents_come_out_unchanged(tmp_path: Path, documents: list[str], kind: str) -> None:
    assert read(tmp_path / f"a{kind}", WRITERS[kind](documents)) == (documents, [])


def test_the_sample_ships_and_is_clean() -> None:
    items = list(read_documents(expand(["sample"])))
    assert len(items) == 638
    assert all(isinstance(item, Document) for item in items)
