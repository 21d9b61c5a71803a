"""What is sound is read, whatever its packing, encoding or suffix. What is lost is counted, with cause and remedy."""

import bz2
import gzip
import json
import lzma
import os
import re
import resource
import sys
from pathlib import Path

import pyarrow as arrow
import pytest
import zstandard
from conftest import Corpus
from pyarrow import parquet

from fast_electra.cli import main
from fast_electra.corpus.shards import Shards
from fast_electra.settings import UserError
from fast_electra.text.build import build_shards
from fast_electra.text.documents import Document, Rejected
from fast_electra.text.inputs import expand
from fast_electra.text.readers import read_documents

WORDS = "some words and more words, "


def read(path: Path, data: bytes | None = None, **options: object) -> tuple[list[str], list[Rejected]]:
    if data is not None:
        path.write_bytes(data)
    items = list(read_documents(expand([path]), **options))
    return [item.text for item in items if isinstance(item, Document)], [i for i in items if isinstance(i, Rejected)]


def jsonl(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


@pytest.mark.parametrize("window", [28, 31])
def test_a_frame_with_a_long_window_is_read(tmp_path: Path, window: int) -> None:
    """`zstd --long=31` of a stream: the frame names its window, and not the size of its content."""
    parameters = zstandard.ZstdCompressionParameters(window_log=window, write_content_size=False)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = packer.compress(jsonl("a", "b")) + packer.flush()
    assert zstandard.get_frame_parameters(data).window_size == 2**window
    assert read(tmp_path / "RC_2019.zst.jsonl.zst", data) == (["a", "b"], [])


def test_a_window_beyond_all_memory_is_refused_by_its_right_name(tmp_path: Path) -> None:
    frame = bytes.fromhex("28b52ffd00f8") + b"\0" * 20  # a window of 2**41
    _, (lost,) = read(tmp_path / "a.txt.zst", frame)
    assert (lost.reason, lost.bytes) == ("archive that needs too much memory", 26)


PACKERS = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress, ".bz2": bz2.compress}


@pytest.mark.parametrize("packer", PACKERS)
def test_what_follows_a_stream_is_never_overlooked(tmp_path: Path, packer: str) -> None:
    one, path = PACKERS[packer](jsonl("a")), tmp_path / f"a.jsonl{packer}"
    assert read(path, one + b"\0" * 4096 + PACKERS[packer](jsonl("b"))) == (["a", "b"], [])  # padding
    second = bytearray(PACKERS[packer](jsonl("b")))
    second[0] ^= 0xFF
    texts, (lost,) = read(path, one + bytes(second))
    assert (texts, lost.reason) == (["a"], "damaged archive")
    assert lost.bytes > 0


@pytest.mark.parametrize("packer", PACKERS)
def test_the_bytes_behind_a_break_are_counted(tmp_path: Path, packer: str) -> None:
    data = bytearray(PACKERS[packer](jsonl(*(f"{i} {i * i} {i**3}" for i in range(60_000)))))
    data[len(data) // 2 : len(data) // 2 + 64] = b"\xff" * 64
    _, lost = read(tmp_path / f"a.jsonl{packer}", bytes(data))
    assert lost[-1].reason == "damaged archive"
    # gzip may go on to the checksum at the end of the stream, the others check each block.
    assert (len(data) // 4 if packer != ".gz" else 0) < lost[-1].bytes < len(data)


def test_a_line_a_document(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(b"one\r\ntwo\n \n\xc2\xa0\nthree \xe9\nfour" + b"x" * 100)
    texts, lost = read(path, max_document_bytes=30, document_per_line=True)
    assert texts == ["one", "two"]
    assert [(item.source, item.reason, item.bytes) for item in lost] == [
        (f"{path}:5", "broken UTF-8", 7),
        (f"{path}:6", "over the size limit", 104),
    ]
    assert not any("--document-per-line" in item.hint for item in lost)
    _, (first, _) = read(path, b"line\n" * 10 + b"\n" + b"y" * 31, max_document_bytes=30)
    assert (first.reason, first.bytes) == ("over the size limit", 49)
    assert "if each line is a document, use --document-per-line" in first.hint


def test_a_long_line_that_begins_with_spaces_is_not_blank(tmp_path: Path) -> None:
    _, (lost,) = read(tmp_path / "a.txt", b" " * 2000 + b"text", max_document_bytes=1000)
    assert (lost.reason, lost.bytes) == ("over the size limit", 2004)


SPACES = [chr(code) for code in range(sys.maxunicode) if chr(code).isspace() and chr(code) != "\n"]


def test_a_line_of_any_spaces_is_a_border(tmp_path: Path) -> None:
    assert len(SPACES) > 25
    path = tmp_path / "a.txt"
    for space in [*SPACES, "".join(SPACES), "\u00a0\r", "\u3000 \t"]:
        assert read(path, f"a\n{space}\nb".encode()) == (["a", "b"], []), hex(ord(space[0]))
    joined = f"a\n{SPACES[-1]}b"
    assert read(path, joined.encode()) == ([joined], [])


@pytest.mark.parametrize(
    "name",
    ["c4.json.gz", "a.ndjson", "a.JSONL", "a.Json.GZ", "a.jsonl.bz2", "a.NDJSON.BZ2", "a.jsonl.XZ", "a.json.Zst"],
)
def test_json_lines_by_any_suffix(tmp_path: Path, name: str) -> None:
    pack = PACKERS.get(Path(name).suffix.lower(), bytes)
    assert read(tmp_path / name, pack(jsonl("a", "b"))) == (["a", "b"], [])
    assert [path.name for path in expand([tmp_path])] == [name]


@pytest.mark.parametrize("document", [[{"text": "a"}, {"text": "b"}], {"rows": [{"text": "a"}]}])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_that_is_not_one_object_a_line_is_one_loss(tmp_path: Path, document: object, indent: int | None) -> None:
    data = json.dumps(document, indent=indent).encode()
    texts, (lost,) = read(tmp_path / "a.json", data)
    assert not texts
    if isinstance(document, list) or indent:
        assert (lost.reason, lost.bytes) == ("not one JSON object a line", len(data))
        assert "jq -c '.[]'" in lost.hint
    else:
        assert (lost.reason, lost.hint) == ("no text field", "--field can name one that is there: rows")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".txt.gz"])
def test_text_with_a_byte_order_mark(tmp_path: Path, encoding: str, kind: str) -> None:
    texts = ["Größe, 東京\nzwei", "🙂 " * 1000]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts] if kind == ".jsonl" else texts
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    data = (mark + "\r\n\r\n".join(lines)).encode(encoding)
    path = tmp_path / f"a{kind}"
    assert read(path, gzip.compress(data) if kind.endswith("gz") else data) == (texts, [])


def test_other_encodings_are_refused_by_their_right_names(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "Größe " * 50
    cut = read(path, f"a\n\n{text}".encode("utf-16")[:-1])
    assert cut[0] == ["a"]
    assert [lost.reason for lost in cut[1]] == ["truncated UTF-16"]
    alone = read(path, "a\n\nb\ud800\n\nc".encode("utf-16", "surrogatepass"))
    assert (alone[0], [lost.reason for lost in alone[1]]) == (["a", "c"], ["lone surrogate"])
    for encoding, reason, hint in (
        ("utf-32", "UTF-32 text", "iconv -f utf-32"),
        ("latin-1", "broken UTF-8", "iconv -f latin1"),
        ("utf-16-le", "broken UTF-8", "iconv"),
    ):
        data = text.encode(encoding)
        texts, (lost,) = read(path, data)
        assert (texts, lost.reason, lost.bytes) == ([], reason, len(data))
        assert hint in lost.hint
    _, (lost,) = read(path, b"plain " * 50 + "plain".encode("utf-16-le") * 500)
    assert lost.reason == "NUL character"
    assert "UTF-16 without a byte order mark?" in lost.hint


def test_marks_of_joined_files_are_no_part_of_the_json(tmp_path: Path) -> None:
    data = "".join(f"\ufeff{json.dumps({'text': text})}\n" for text in "abc").encode()
    assert read(tmp_path / "a.jsonl", data) == (["a", "b", "c"], [])


NESTED = [{"data": {"text": "in", "id": 1}, "url": "u"}, {"data": {"text": "too", "id": 2}, "url": "u"}]


def test_nested_fields(tmp_path: Path) -> None:
    lines = "\n".join(map(json.dumps, NESTED)).encode()
    parquet.write_table(arrow.Table.from_pylist(NESTED), tmp_path / "a.parquet")
    for path in (tmp_path / "a.jsonl", tmp_path / "a.parquet"):
        data = lines if path.suffix == ".jsonl" else None
        assert read(path, data, field="data.text") == (["in", "too"], [])
        _, lost = read(path, data)
        assert (sum(item.documents for item in lost), lost[0].reason) == (2, "no text field")
        assert set(lost[0].hint.partition(": ")[2].split(", ")) == {"data.text", "data.id", "url"}
        assert read(path, data, field="data")[1][0].reason == "data is not a string"
        for field in ("data.absent", "url.text", "data.text.more", ".", "data."):
            assert read(path, data, field=field)[1][0].reason == f"no {field} field"


def test_a_name_with_a_dot_is_a_name(tmp_path: Path) -> None:
    row = {"data.text": "own", "data": {"text": "nested", "a.b": "inner"}}
    parquet.write_table(arrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    for path in (tmp_path / "a.jsonl", tmp_path / "a.parquet"):
        assert read(path, field="data.text") == (["own"], [])
        assert read(path, field="data.a.b") == (["inner"], [])


def test_every_row_of_a_parquet_file_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"body": ["words"] * 1000}), path, row_group_size=100)
    _, (lost,) = read(path)
    assert (lost.documents, lost.bytes) == (1000, path.stat().st_size)
    (tmp_path / "b.txt").write_text("more words")
    command = ["tokenizer", "--input", str(tmp_path), "--output", str(tmp_path / "t"), "--vocabulary", "270"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "rejected  1,000 documents" in printed.out
    assert f"left out: 1,000 x no text field, {lost.bytes:,} bytes: {path} (--field can name one that is" in printed.err
    data = bytearray(path.read_bytes())
    start = parquet.ParquetFile(path).metadata.row_group(3).column(0).dictionary_page_offset
    data[start : start + 12] = b"\xff" * 12
    texts, (lost,) = read(path, bytes(data), field="body")
    assert (len(texts), lost.documents, lost.source) == (900, 100, f"{path}:301")


def test_a_missing_field_is_named_with_those_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"body": "b", "meta": {"id": 1, "empty": {}}}) + "\n")
    assert main(["tokenizer", "--input", str(path), "--field", "content", "--output", str(tmp_path / "t")]) == 2
    printed = capsys.readouterr().err
    assert f"1 x no content field, {path.stat().st_size - 1} bytes in all; see {path}:1 " in printed
    assert "(--field can name one that is there: body, meta.id, meta.empty)" in printed
    assert "{" not in printed
    many = {str(number): number for number in range(1000)}
    assert read(path, json.dumps(many).encode())[1][0].hint.endswith(", 18, 19 and 980 more")


def test_names_of_fields_stay_one_short_line(tmp_path: Path) -> None:
    deep = '{"a":' * 900 + "1" + "}" * 900
    rows = [{"two\nlines\r\u2028": 1, "\ud800": 2, "k" * 10**6: 3}, json.loads(deep), {}]
    _, lost = read(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert [item.reason for item in lost] == ["no text field"] * 3
    for item in lost:
        assert len(item.hint.splitlines()) == 1
        assert len(item.hint) < 400
        item.hint.encode()


def test_a_file_name_that_is_no_text(tiny_corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, data in ((b"caf\xe9.txt", b"some words"), (b"two\xe9\nlines.txt", b"\xff")):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(data)
    build_shards([tmp_path], tiny_corpus.tokenizer, tmp_path / "s", heldout=0)
    manifest = Shards.open(tmp_path / "s").manifest
    assert [Path(record.path).name for record in manifest.inputs] == ["caf\\udce9.txt", "two\\udce9\\nlines.txt"]
    assert manifest.rejected == {"broken UTF-8": 1}
    assert "lines.txt:1 (convert the file" in capsys.readouterr().err.replace("\\udce9\\n", "")


def test_a_file_that_is_gone_when_its_turn_comes_is_named(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl.gz", "a.parquet", "a.parquet.gz"):
        (item,) = read_documents([tmp_path / name])
        assert (item[0], item[1]) in {(str(tmp_path / name), "unreadable file")}
        assert "No such file" in item[2]


def test_no_room_to_unpack_parquet_stops_with_the_remedy(tmp_path: Path) -> None:
    parquet.write_table(arrow.table({"text": [str(i**9) for i in range(20_000)]}), tmp_path / "a.parquet")
    path = tmp_path / "a.parquet.gz"
    path.write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(UserError, match=f"no room in .* to unpack {path} .*: set TMPDIR to a folder with more"):
            list(read_documents([path]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_text_that_nothing_can_be_learnt_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("\u2581\n\n\u2581")  # SentencePiece's own sign for a space
    assert main(["tokenizer", "--input", str(tmp_path), "--output", str(tmp_path / "t")]) == 2
    assert "SentencePiece can learn nothing from this text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("documents", "heldout", "share"),
    [
        ([WORDS * 400, WORDS * 200], 0.005, r"(33|66)\.\d\d% .* asked for 0.50%.*there are 2\. .*--document-per-line"),
        ([WORDS * 400], 0.005, r"0\.00% .* asked for 0.50%.*there are 1\."),
        ([f"{i} {WORDS}" for i in range(400)] + [WORDS * 10_000], 0.1, r"\d\.\d\d% .* asked for 10.00%"),
        ([f"{i} {WORDS}" for i in range(1000)], 0.05, None),
        ([WORDS, WORDS * 2], 0.0, None),
    ],
)
def test_a_held_out_share_far_from_the_one_asked_for_is_said(
    tiny_corpus: Corpus,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    documents: list[str],
    heldout: float,
    share: str | None,
) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    build_shards([tmp_path / "a.txt"], tiny_corpus.tokenizer, tmp_path / "s", heldout=heldout)
    printed = capsys.readouterr().err
    assert printed.count("\n") == (share is not None)
    if share is not None:
        assert re.search(f"note: {share}", printed)
