"""Tokenised documents on disk: megatron-core's IndexedDataset, and a manifest with counts and hashes."""

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from fast_electra.files import file_hash
from fast_electra.settings import Settings, UserError

MANIFEST, QUARANTINE = "manifest.json", "quarantine.jsonl"
SplitName = Literal["train", "heldout"]
SPLITS: tuple[SplitName, ...] = ("train", "heldout")
_REMEDY = "restore the file or build the shards again with `fast-electra corpus --overwrite`"


class FileRecord(Settings):
    """One file of a shard: its name in the folder, bytes, and xxh3-128."""

    name: str
    size: int
    hash: str


class ShardRecord(Settings):
    """One shard: its numbers of documents and tokens, and its two files."""

    documents: int
    tokens: int
    bin: FileRecord
    idx: FileRecord

    @property
    def files(self) -> tuple[FileRecord, FileRecord]:
        """Both files."""
        return self.bin, self.idx


class InputRecord(Settings):
    """One file that was read, and its size on disk in bytes."""

    path: str
    size: int


class Manifest(Settings):
    """What a folder of shards holds.

    Attributes:
        format: version of this layout.
        tokenizer: hash of the tokenizer that made the tokens.
        vocabulary_size: V of that tokenizer.
        heldout: requested share of the documents.
        documents: number of tokenised documents, all splits together.
        tokens: number of their tokens.
        bytes: size of their text in UTF-8.
        rejected: number of rejected documents by reason; each is a line of quarantine.jsonl.
        inputs: the files that were read, in order.
        splits: the shards of each split, in order.
    """

    format: Literal[1]
    tokenizer: str
    vocabulary_size: int
    heldout: float
    documents: int
    tokens: int
    bytes: int
    rejected: dict[str, int]
    inputs: list[InputRecord]
    splits: dict[SplitName, list[ShardRecord]]


class Shards:
    """The documents of one split, in order, as memory-mapped token ids.

    Attributes:
        manifest: what the folder holds.
        hash: xxh3-128 of the manifest. The manifest holds the hashes of all files, so this stands for all of them.
        tokenizer_hash: hash of the tokenizer that made the tokens.
        lengths: number of tokens of each document, int64.
    """

    def __init__(self, manifest: Manifest, manifest_hash: str, datasets: list[Any]):
        """Read from open files; `Shards.open` opens a folder.

        Args:
            manifest: of the folder.
            manifest_hash: xxh3-128 of its file.
            datasets: the IndexedDatasets of the split, in the manifest's order.
        """
        self.manifest = manifest
        self.hash = manifest_hash
        self.tokenizer_hash = manifest.tokenizer
        self._datasets = datasets
        self._starts = np.cumsum([0] + [len(dataset) for dataset in datasets])
        lengths = [dataset.sequence_lengths for dataset in datasets]
        self.lengths = np.concatenate([np.zeros(0), *lengths]).astype(np.int64)

    @classmethod
    def open(cls, folder: str | Path, split: SplitName = "train", verify: bool = True) -> "Shards":
        """Open one split after checking every file of the folder against the manifest.

        Args:
            folder: written by `build_shards`.
            split: `train` or `heldout`.
            verify: also hash the contents; without it only the sizes are checked. One rank verifies for all.

        Raises:
            UserError: a file is missing, truncated or altered (the message names it), or the split is empty.
        """
        folder = Path(folder)
        manifest = _manifest(folder)
        files = [file for shards in manifest.splits.values() for shard in shards for file in shard.files]
        check_files(folder, files, _REMEDY, verify)
        shards = manifest.splits.get(split, [])
        if not shards:
            raise UserError(
                f"{folder} holds no {split} documents: "
                "build it with `fast-electra corpus --heldout SHARE`, above 0 and below 1"
            )
        return cls(manifest, file_hash(folder / MANIFEST), [_dataset(folder, shard) for shard in shards])

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        """Return tokens [start, stop) of a document, a view of the file: uint16, or int32 for large vocabularies."""
        assert 0 <= start <= stop <= self.lengths[document], (document, start, stop)
        shard = int(np.searchsorted(self._starts, document, side="right")) - 1
        return self._datasets[shard].get(document - int(self._starts[shard]), offset=start, length=stop - start)


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise UserError(f"no shards in {folder}: {path} is missing; build them with `fast-electra corpus`") from None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}): {_REMEDY}") from None


def check_files(folder: Path, records: list[FileRecord], remedy: str, verify: bool) -> None:
    """Holds the files of a folder against the records of its manifest.

    Args:
        remedy: what to tell a user whose files are not those.
        verify: also read and hash all contents; without it only the sizes are checked (for all ranks but one).

    Raises:
        UserError: for a file that is missing, cut short or altered.
    """
    paths = [folder / record.name for record in records]
    for path, record in zip(paths, records, strict=True):
        try:
            size = path.stat().st_size
        except OSError:
            raise UserError(f"{path} is missing; {remedy}") from None
        if size != record.size:
            raise UserError(f"{path} has {size:,} bytes where the manifest says {record.size:,}; {remedy}")
    if verify:
        with ThreadPoolExecutor(max_workers=8) as pool:
            for path, record, found in zip(paths, records, pool.map(file_hash, paths), strict=True):
                if found != record.hash:
                    raise UserError(f"{path} was altered (its hash is not that of the manifest); {remedy}")


def _dataset(folder: Path, shard: ShardRecord) -> Any:
    dataset = indexed_dataset().IndexedDataset(
        str((folder / shard.bin.name).with_suffix("")), multimodal=False, mmap=True
    )
    if len(dataset) != shard.documents or int(dataset.sequence_lengths.sum(dtype=np.int64)) != shard.tokens:
        raise UserError(f"{folder / shard.idx.name} does not hold the documents that the manifest counts: {_REMEDY}")
    return dataset


def indexed_dataset() -> Any:
    """Return megatron-core's module. It is imported when first needed, because that takes seconds."""
    with warnings.catch_warnings():  # about GPU packages, which are not needed here
        warnings.simplefilter("ignore")
        from megatron.core.datasets import indexed_dataset as module
    return module


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json, after all other files."""
    (folder / MANIFEST).write_text(json.dumps(manifest.model_dump(), indent=1) + "\n")
