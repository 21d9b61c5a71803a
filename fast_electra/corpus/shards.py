"""Tokenised documents on disk: megatron-core's IndexedDatasets, and a manifest with counts and hashes."""

import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fast_electra.files import FileRecord, check_files, read_json, read_settings, seal
from fast_electra.settings import Settings, UserError

MANIFEST, QUARANTINE = "manifest.json", "quarantine.jsonl"
TOKENIZER = "tokenizer"  # the folder of a frozen tokenizer, in that of the shards
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
    unknown: int = 0  # tokens that stand for text that the tokenizer does not know; not written if there are none


class Shards:
    """The documents of one split, in order, as memory-mapped token ids.

    Attributes:
        manifest: what the folder holds.
        hash: of the manifest, without its checksum. It holds the hashes of all files, so this stands for all of them.
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
            verify: also hash the contents, and look for token ids beyond the vocabulary; without it only the sizes and
                the indices are checked. One rank verifies for all.

        Raises:
            UserError: a file is missing, truncated, altered or wrong (the message names it), or the split is empty.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        missing = f"no shards in {folder}: {path} is missing; build them with `fast-electra corpus`"
        manifest = read_settings(path, Manifest, missing, _REMEDY)
        all_shards = [shard for shards in manifest.splits.values() for shard in shards]
        check_files(folder, [file for shard in all_shards for file in (shard.bin, shard.idx)], _REMEDY, verify)
        for shard in all_shards if verify else []:
            _check_tokens(folder, shard, manifest.vocabulary_size)
        if not manifest.splits.get(split):
            remedy = "build it with `fast-electra corpus --heldout SHARE`, above 0 and below 1"
            raise UserError(f"{folder} holds no {split} documents: {remedy}")
        return cls(manifest, seal(read_json(path)), [_dataset(folder, shard) for shard in manifest.splits[split]])

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        """Return tokens [start, stop) of a document, a view of the file: uint16, or int32 for large vocabularies."""
        assert 0 <= start <= stop <= self.lengths[document], (document, start, stop)
        shard = int(np.searchsorted(self._starts, document, side="right")) - 1
        return self._datasets[shard].get(document - int(self._starts[shard]), offset=start, length=stop - start)


def _dataset(folder: Path, shard: ShardRecord) -> Any:
    _token_type(folder, shard)
    prefix = (folder / shard.bin.name).with_suffix("")
    return indexed_dataset().IndexedDataset(str(prefix), multimodal=False, mmap=True)


def _token_type(folder: Path, shard: ShardRecord) -> np.dtype[Any]:
    """Return the type of a shard's tokens after checking that its index describes them: one document after another."""
    path = folder / shard.idx.name
    try:
        index = indexed_dataset()._IndexReader(str(path), multimodal=False)
        bytes_each, found = index.sequence_lengths.astype(np.int64) * index.dtype_size, np.dtype(index.dtype)
        starts = np.cumsum(bytes_each) - bytes_each
        fits = found.kind in "iu" and bytes_each.min() >= 0 and np.array_equal(index.sequence_pointers, starts)
        total = bytes_each.sum()
    except Exception as error:  # of many kinds: the reader takes the content for granted
        raise UserError(f"{path} is no index of a shard ({error}); {_REMEDY}") from None
    expected = (shard.documents, shard.tokens * found.itemsize, shard.bin.size)
    if not fits or (len(index), total, total) != expected:
        raise UserError(f"{path} does not hold the documents that the manifest counts; {_REMEDY}")
    return found


def _check_tokens(folder: Path, shard: ShardRecord, vocabulary_size: int) -> None:
    """Raise a UserError if a token id is not in the vocabulary: on a GPU it would end the process without a word."""
    tokens = np.memmap(folder / shard.bin.name, _token_type(folder, shard), mode="r")
    for found in (int(tokens.max()), int(tokens.min())):
        if not 0 <= found < vocabulary_size:
            raise UserError(
                f"{folder / shard.bin.name} holds the token id {found}, beyond the vocabulary of {vocabulary_size:,}; "
                f"{_REMEDY}"
            )


def indexed_dataset() -> Any:
    """Return megatron-core's module. It is imported when first needed, because that takes seconds."""
    with warnings.catch_warnings():  # about GPU packages, which are not needed here
        warnings.simplefilter("ignore")
        from megatron.core.datasets import indexed_dataset as module
    return module
