"""Shards whose hashes are right and whose content is not: refused with the name of the file, before training starts."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Corpus
from small import Record, every_flipped_bit

from fast_electra.corpus.shards import Manifest, Shards
from fast_electra.files import FileRecord, file_hash, read_settings, write_sealed
from fast_electra.settings import UserError

HEADER = 34  # bytes of an index before the lengths: magic, version, type, two counts


@pytest.fixture
def folder(tiny_corpus: Corpus, tmp_path: Path) -> Path:
    shutil.copytree(tiny_corpus.shards, tmp_path / "shards")
    return tmp_path / "shards"


def refused(folder: Path, file: str, content: bytes, message: str) -> None:
    """Replace a file and its record, as whoever wrote it would have."""
    (folder / file).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["checksum"]
    for shard in (shard for shards in manifest["splits"].values() for shard in shards):
        for kind in ("bin", "idx"):
            shard[kind] = FileRecord.of(folder / shard[kind]["name"]).model_dump()
    write_sealed(folder / "manifest.json", manifest)
    with pytest.raises(UserError, match=rf"{folder / file} {message}.*restore the file or build") as caught:
        Shards.open(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.drill("bad number in losses, weights or data")
@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("token", [1000, 65535])
def test_token_ids_beyond_the_vocabulary_are_found(folder: Path, split: str, token: int) -> None:
    file = f"{split}-00000.bin"
    tokens = np.fromfile(folder / file, np.uint16)
    tokens[len(tokens) // 2] = 999
    tokens.tofile(folder / file)  # the last entry of the vocabulary is in it
    tokens[len(tokens) // 3] = token
    refused(folder, file, tokens.tobytes(), f"holds the token id {token}, beyond the vocabulary of 1,000")


def lengths_swapped(index: bytes) -> bytes:
    numbers = np.frombuffer(index[HEADER : HEADER + 8], np.int32)[::-1]
    return index[:HEADER] + numbers.tobytes() + index[HEADER + 8 :]


def negative_length(index: bytes) -> bytes:
    first, second = struct.unpack_from("<2i", index, HEADER)
    return index[:HEADER] + struct.pack("<2i", -1, first + second + 1) + index[HEADER + 8 :]


@pytest.mark.drill("damaged file")
@pytest.mark.parametrize(
    "wrong",
    [
        lambda index: b"",
        lambda index: b"MMIDIDX\0\0",
        lambda index: index[: len(index) // 2],
        lambda index: b"X" + index[1:],
        lambda index: index[:9] + b"\x07" + index[10:],  # version
        lambda index: index[:17] + b"\x63" + index[18:],  # type of the tokens: none
        lambda index: index[:17] + b"\x06" + index[18:],  # floating point
        lambda index: index[:17] + b"\x04" + index[18:],  # int32, so twice as many bytes
        lambda index: index[:18] + b"\xff" * 8 + index[26:],  # number of documents
        lengths_swapped,
        negative_length,
        lambda index: b"\x80\x02}q\x00.",
    ],
)
def test_an_index_of_another_shape_is_refused(folder: Path, wrong: Callable[[bytes], bytes]) -> None:
    index = (folder / "train-00000.idx").read_bytes()
    refused(folder, "train-00000.idx", wrong(index), "(is no index of a shard|does not hold the documents)")


@pytest.mark.drill("damaged file")
def test_an_index_of_the_heldout_split_is_checked_too(folder: Path) -> None:
    refused(folder, "heldout-00000.idx", b"MMIDIDX", "is no index of a shard")


@pytest.mark.drill("damaged file")
def test_tokens_of_another_length_are_refused(folder: Path) -> None:
    tokens = (folder / "train-00000.bin").read_bytes()
    (folder / "train-00000.bin").write_bytes(tokens[:-2])
    index = (folder / "train-00000.idx").read_bytes()
    refused(folder, "train-00000.idx", index, "does not hold the documents that the manifest counts")


@pytest.mark.drill("flipped bit of a description")
def test_every_flipped_bit_of_a_manifest_is_found(folder: Path, record_property: Record) -> None:
    path = folder / "manifest.json"
    record_property("tried", every_flipped_bit(path, lambda: read_settings(path, Manifest, "gone", "build it again")))


def test_the_hash_of_a_corpus_is_that_of_its_manifest_before_the_checksum(folder: Path) -> None:
    """Runs and stores of older versions know their corpus by it."""
    path, found = folder / "manifest.json", Shards.open(folder).hash
    manifest: dict[str, Any] = json.loads(path.read_text())
    del manifest["checksum"]
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    assert Shards.open(folder).hash == found == file_hash(path)
