"""Two hundred generated files, sound and broken: none ends in a traceback, and every document is counted or named."""

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import NamedTuple

import pyarrow as arrow
import pytest
import zstandard
from conftest import Corpus
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fast_electra.cli import main
from fast_electra.corpus.shards import Manifest
from fast_electra.files import read_settings
from fast_electra.text.documents import Document, Rejected
from fast_electra.text.inputs import JSON_LINES, KINDS, expand
from fast_electra.text.readers import read_documents

PACKERS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".bz2": bz2.compress,
}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1")
READ = ENCODINGS[:3]
DAMAGES = ("none", "none", "cut", "flip", "garbage behind", "zeros", "another kind", "empty")


class File(NamedTuple):
    """What was drawn, and the bytes that follow from it."""

    name: str
    data: bytes
    texts: list[str]
    field: str
    per_line: bool
    sound: bool
    checked: bool  # whether a missing part can be noticed: plain text that is cut is text


word = st.text(st.sampled_from('abcxyz üß東🙂\u00a0\u3000\u2581[]{}"\\,'), min_size=1, max_size=12).filter(str.strip)


@st.composite
def files(draw: st.DrawFn) -> File:
    kind, packer = draw(st.sampled_from(KINDS)), draw(st.sampled_from(list(PACKERS)))
    per_line = kind == ".txt" and draw(st.booleans())
    field = "text" if kind == ".txt" else draw(st.sampled_from(["text", "data.text"]))
    texts = draw(st.lists(word.map(lambda text: f"<{text}>"), min_size=1, max_size=30))
    encoding, end = draw(st.sampled_from(ENCODINGS)), draw(st.sampled_from(["\n", "\r\n"]))
    rows = [{"id": 1, "text": text} if field == "text" else {"data": {"text": text}} for text in texts]
    if kind == ".parquet":
        sink = arrow.BufferOutputStream()
        parquet.write_table(arrow.Table.from_pylist(rows), sink, row_group_size=draw(st.integers(1, 40)))
        data, sound = sink.getvalue().to_pybytes(), True
    else:
        ascii_only = draw(st.booleans())
        lines = texts if kind == ".txt" else [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
        blank = draw(st.sampled_from(["", " ", "\t", "\u00a0" if encoding in READ else ""]))
        border = end if per_line or kind != ".txt" else end + blank + end
        text = border.join(lines)
        data = text.encode(encoding, "replace")
        sound = encoding in READ or (encoding == "latin-1" and text.isascii())
    packed = bytearray(PACKERS[packer](data))
    damage, place = draw(st.sampled_from(DAMAGES)), draw(st.floats(0, 0.999))
    at = int(place * len(packed))
    if damage == "cut":
        del packed[at:]
    elif damage == "flip":
        packed[at] ^= draw(st.integers(1, 255))
    elif damage == "garbage behind":
        packed += b"\n\nnot what it was"
    elif damage == "zeros":
        packed[at:] = bytes(len(packed) - at)
    elif damage == "another kind":
        packed = bytearray(draw(st.sampled_from(list(PACKERS.values())))(b"[1, 2]\n\n{"))
    elif damage == "empty":
        packed.clear()
    checked = bool(packer or kind == ".parquet") and damage != "another kind"
    suffix = draw(st.sampled_from([str.lower, str.upper, str.title]))(kind + packer)
    return File(f"f{suffix}", bytes(packed), texts, field, per_line, sound and damage == "none", checked)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=files())
def test_every_document_is_read_counted_or_named(tmp_path: Path, file: File) -> None:
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    for stale in folder.iterdir():
        stale.unlink()
    path = folder / file.name
    path.write_bytes(file.data)
    items = list(read_documents(expand([folder]), field=file.field, document_per_line=file.per_line))
    texts = [item.text for item in items if isinstance(item, Document)]
    lost = [item for item in items if isinstance(item, Rejected)]
    if file.sound:
        assert (texts, lost) == (file.texts, [])
    assert items
    if file.checked:
        assert len(texts) == len(file.texts) or lost, "documents are gone, and nothing says so"
    for item in lost:
        assert item.source.startswith(str(path))
        assert item.reason
        assert item.documents > 0
        assert item.bytes > 0 or not file.data or item.reason in ("truncated archive", "empty file")
        json.dumps(item)
        item.excerpt.encode()
        item.hint.encode()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.lists(files(), min_size=1, max_size=8))
def test_commands_end_well_or_with_one_line(
    tmp_path: Path, tiny_corpus: Corpus, capsys: pytest.CaptureFixture[str], drawn: list[File]
) -> None:
    """Whole folders, by both commands: 200 files and more."""
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    for stale in folder.iterdir():
        stale.unlink()
    for number, file in enumerate(drawn):
        (folder / f"{number}{file.name}").write_bytes(file.data)
    common = ["--input", str(folder), "--overwrite"]
    kinds = {Path(file.name.lower().removesuffix(".gz")).suffix for file in drawn}
    if kinds & {*JSON_LINES, ".parquet"}:
        common += ["--field", drawn[0].field]
    shards = tmp_path / "shards"
    for command in (
        ["tokenizer", *common, "--output", str(tmp_path / "t"), "--vocabulary", "275"],
        ["corpus", *common, "--output", str(shards), "--tokenizer", str(tiny_corpus.tokenizer)],
    ):
        code = main(command)
        printed = capsys.readouterr()
        assert code in (0, 2)
        if code:
            *notes, error = printed.err.splitlines()
            assert error.startswith("fast-electra: error: ")
            assert all(note.startswith("note: ") for note in notes)
        elif command[0] == "corpus":
            manifest = read_settings(shards / "manifest.json", Manifest, "", "")  # a split may be empty
            rows = [json.loads(line) for line in (shards / "quarantine.jsonl").read_text().splitlines()]
            assert manifest.rejected.keys() == {row["reason"] for row in rows}
            assert sum(manifest.rejected.values()) == sum(row["documents"] for row in rows)
            assert printed.err.count("left out: ") == len(manifest.rejected)
