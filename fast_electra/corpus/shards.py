"""Tokenised documents on disk: megatron-core's IndexedDatasets, and a manifest with counts and hashes."""

import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fast_electra.files import FileRecord, check_files, file_hash, read_settings
from fast_electra.settings import Settings, UserError

MANIFEST, QUARANTINE = "manifest.json", "quarantine.jsonl"
SplitName = Literal["train", "heldout"]
SPLITS: tuple[SplitName, ...] = ("train", "heldout")
_REMEDY = "restore the file or build the shards again with `fast-electra corpus --overwrite`"


class ShardRecord(Settings):
    """One shard: its numbers of documents and tokens, and its two files."""

    documents: int
    tokens: int
    bin: FileRecord
    idx: FileRecord


class InputRecord(Settings):
    """One file that was read, and its size on disk in bytes."""

    path: str
    size: int


class Manifest(Settings):
    """What a folder of shards holds. The counts are those of all splits together."""

    format: Literal[1]  # version of this layout
    tokenizer: str  # hash of the tokenizer that made the tokens
    vocabulary_size: int  # V of that tokenizer
    heldout: float  # requested share of the documents
    documents: int
    tokens: int
    bytes: int  # of text in UTF-8
    rejected: dict[str, int]  # number of documents that are lost, by reason; quarantine.jsonl has a line for each loss
    inputs: list[InputRecord]  # in the order in which they were read
    splits: dict[SplitName, list[ShardRecord]]  # in order


class Shards:
    """The documents of one split, in order, as memory-mapped token ids.

    Attributes:
        manifest: what the folder holds.
        hash: xxh3-128 of the manifest. The manifest holds the hashes of all files, so this stands for all of them.
        tokenizer_hash: hash of the tokenizer that made the tokens.
        lengths: number of tokens of each document, int64.
    """

    def __init__(self, manifest: Manifest, manifest_hash: str, datasets: list[Any]):
        """Read from the open IndexedDatasets of the split, in the manifest's order; `open` opens a folder."""
        self.manifest, self.hash, self._datasets = manifest, manifest_hash, datasets
        self.tokenizer_hash = manifest.tokenizer
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
        path = folder / MANIFEST
        missing = f"no shards in {folder}: {path} is missing; build them with `fast-electra corpus`"
        manifest = read_settings(path, Manifest, missing, _REMEDY)
        files = [file for shards in manifest.splits.values() for shard in shards for file in (shard.bin, shard.idx)]
        check_files(folder, files, _REMEDY, verify)
        if not manifest.splits.get(split):
            remedy = "build it with `fast-electra corpus --heldout SHARE`, above 0 and below 1"
            raise UserError(f"{folder} holds no {split} documents: {remedy}")
        return cls(manifest, file_hash(path), [_dataset(folder, shard) for shard in manifest.splits[split]])

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        """Return tokens [start, stop) of a document, a view of the file: uint16, or int32 for large vocabularies."""
        assert 0 <= start <= stop <= self.lengths[document], (document, start, stop)
        shard = int(np.searchsorted(self._starts, document, side="right")) - 1
        return self._datasets[shard].get(document - int(self._starts[shard]), offset=start, length=stop - start)


def _dataset(folder: Path, shard: ShardRecord) -> Any:
    prefix = (folder / shard.bin.name).with_suffix("")
    dataset = indexed_dataset().IndexedDataset(str(prefix), multimodal=False, mmap=True)
    if len(dataset) != shard.documents or int(dataset.sequence_lengths.sum(dtype=np.int64)) != shard.tokens:
        raise UserError(f"{folder / shard.idx.name} does not hold the documents that the manifest counts: {_REMEDY}")
    return dataset


def indexed_dataset() -> Any:
    """Return megatron-core's module. It is imported when first needed, because that takes seconds."""
    with warnings.catch_warnings():  # about GPU packages, which are not needed here
        warnings.simplefilter("ignore")
        from megatron.core.datasets import indexed_dataset as module
    return module
