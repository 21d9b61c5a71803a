"""Documents to shards: any number of processes tokenise, and one writes, in the order of the input."""

import json
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fast_electra.corpus.shards import (
    MANIFEST,
    QUARANTINE,
    SPLITS,
    InputRecord,
    Manifest,
    ShardRecord,
    SplitName,
    indexed_dataset,
    write_manifest,
)
from fast_electra.corpus.tokenizer import Tokenizer
from fast_electra.files import FileRecord, atomic_folder
from fast_electra.settings import UserError
from fast_electra.text.readers import DEFAULT_MAX_DOCUMENT_BYTES, Document, Rejected, expand, read_documents

_BATCH_CHARACTERS = 2**20  # handed to a worker at a time


class _Tokenised(NamedTuple):
    """One document: its token ids, the hash of its text (which decides its split), and the size of its text."""

    ids: np.ndarray
    text_hash: int
    bytes: int


def build_shards(
    inputs: Iterable[str | Path],
    tokenizer: str | Path,
    output: str | Path,
    heldout: float = 0.005,
    workers: int = 1,
    field: str = "text",
    max_document_bytes: int = DEFAULT_MAX_DOCUMENT_BYTES,
    shard_bytes: int = 2**30,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda documents, size: None,
) -> Manifest:
    """Tokenise text into a folder of shards, which appears complete or not at all.

    Args:
        inputs: files, folders, globs, or `sample`.
        tokenizer: folder of the tokenizer.
        output: the folder to write.
        heldout: share of the documents kept for evaluation. The hash of a text decides, so equal documents stay
            together. Above 0, each split gets at least one document if there are two different ones.
        workers: number of tokenising processes; if it is 1, this process tokenises.
        field: the key or column that holds the text.
        max_document_bytes: larger documents are rejected.
        shard_bytes: a shard is closed once its tokens take this many bytes.
        overwrite: replace existing shards.
        progress: called after each document with the number of documents and the bytes of text so far.

    Returns:
        The manifest that was written.

    Raises:
        UserError: there is nothing to read, no document is usable, or the output exists.
    """
    if not 0 <= heldout < 1:
        raise UserError(f"--heldout {heldout}: it is a share of the documents, at least 0 and below 1")
    if workers < 1:
        raise UserError(f"--workers {workers}: at least one process must do the work")
    files = expand(inputs)
    vocabulary = Tokenizer.load(tokenizer)
    with atomic_folder(Path(output), marker=MANIFEST, overwrite=overwrite) as folder:
        threshold = int(heldout * 2**64)
        for _ in range(2):
            for stale in folder.iterdir():
                stale.unlink()
            with _tokenising(Path(tokenizer), workers) as tokenise:
                items = tokenise(read_documents(files, field, max_document_bytes))
                written = _write(folder, items, threshold, vocabulary.vocabulary_size, shard_bytes, progress)
            if not written.documents:
                reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(written.rejected.items()))
                raise UserError(f"no usable document in {len(files)} files, {files[0]} first: {reasons}")
            smallest, largest = written.hashes
            if threshold == 0 or smallest == largest or smallest < threshold <= largest:
                break
            # All of a small corpus may fall into one split: move the border by one document, and write again.
            threshold = min(max(threshold, smallest + 1), largest)
        manifest = Manifest(
            format=1,
            tokenizer=vocabulary.hash,
            vocabulary_size=vocabulary.vocabulary_size,
            heldout=float(heldout),
            documents=written.documents,
            tokens=sum(shard.tokens for shards in written.splits.values() for shard in shards),
            bytes=written.bytes,
            rejected=dict(sorted(written.rejected.items())),
            inputs=[InputRecord(path=str(file), size=file.stat().st_size) for file in files],
            splits=written.splits,
        )
        write_manifest(folder, manifest)
    return manifest


@dataclass
class _Written:
    """What one pass over the input has written."""

    documents: int = 0
    bytes: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    hashes: tuple[int, int] = (2**64, -1)  # the smallest and the largest of all texts
    splits: dict[SplitName, list[ShardRecord]] = field(default_factory=dict)


def _write(
    folder: Path,
    items: Iterable[_Tokenised | Rejected],
    threshold: int,
    vocabulary: int,
    shard_bytes: int,
    progress: Callable[[int, int], None],
) -> _Written:
    written = _Written()
    writers = {split: _SplitWriter(folder, split, vocabulary, shard_bytes) for split in SPLITS}
    with (folder / QUARANTINE).open("w", encoding="utf-8") as quarantine:
        for item in items:
            if isinstance(item, Rejected):
                written.rejected[item.reason] += 1
                quarantine.write(json.dumps(item._asdict()) + "\n")  # ASCII: excerpts may hold lone surrogates
                continue
            written.documents += 1
            written.bytes += item.bytes
            written.hashes = min(written.hashes[0], item.text_hash), max(written.hashes[1], item.text_hash)
            writers["heldout" if item.text_hash < threshold else "train"].add(item.ids)
            progress(written.documents, written.bytes)
    written.splits = {split: writer.close() for split, writer in writers.items()}
    return written


class _SplitWriter:
    """Write the shards of one split, one after the other."""

    def __init__(self, folder: Path, split: SplitName, vocabulary: int, shard_bytes: int):
        self._folder, self._split, self._shard_bytes = folder, split, shard_bytes
        self._dtype = indexed_dataset().DType.optimal_dtype(vocabulary)
        self._done: list[ShardRecord] = []
        self._builder: Any = None
        self._documents = self._tokens = 0

    def add(self, ids: np.ndarray) -> None:
        import torch

        if self._builder is None:
            self._builder = indexed_dataset().IndexedDatasetBuilder(str(self._path("bin")), dtype=self._dtype)
        self._builder.add_item(torch.from_numpy(ids))
        self._builder.end_document()
        self._documents += 1
        self._tokens += len(ids)
        if self._tokens * np.dtype(self._dtype).itemsize >= self._shard_bytes:
            self._finish()

    def close(self) -> list[ShardRecord]:
        if self._builder is not None:
            self._finish()
        return self._done

    def _finish(self) -> None:
        self._builder.finalize(str(self._path("idx")))
        binary, index = (FileRecord.of(self._path(suffix)) for suffix in ("bin", "idx"))
        self._done.append(ShardRecord(documents=self._documents, tokens=self._tokens, bin=binary, idx=index))
        self._builder, self._documents, self._tokens = None, 0, 0

    def _path(self, suffix: str) -> Path:
        return self._folder / f"{self._split}-{len(self._done):05d}.{suffix}"


Tokenise = Callable[[Iterable[Document | Rejected]], Iterator[_Tokenised | Rejected]]


@contextmanager
def _tokenising(tokenizer: Path, workers: int) -> Iterator[Tokenise]:
    """Open the tokenising processes and return a function that tokenises documents lazily and in order."""
    if workers == 1:
        _start_worker(tokenizer, within=True)
        yield lambda items: (done for batch in _batches(items) for done in _tokenise(batch))
        return
    # Start fresh interpreters, because a fork would copy locks that other threads hold.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(tokenizer,))

    def tokenise(items: Iterable[Document | Rejected]) -> Iterator[_Tokenised | Rejected]:
        pending: deque[Future[list[_Tokenised | Rejected]]] = deque()
        for batch in _batches(items):
            pending.append(pool.submit(_tokenise, batch))
            if len(pending) > 2 * workers:  # memory stays bounded, however slow the writer is
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()

    try:
        yield tokenise
    except BrokenProcessPool:
        raise UserError(
            "a tokenising process was killed, most likely because memory ran out: use fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(items: Iterable[Document | Rejected]) -> Iterator[list[Document | Rejected]]:
    """Yield lists of about a million characters. Rejected documents stay among the others, so all keep their order."""
    batch: list[Document | Rejected] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item[0]) + 64
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


_tokenizer: Tokenizer  # this process's own, set by `_start_worker`


def _start_worker(folder: Path, within: bool = False) -> None:
    global _tokenizer
    _tokenizer = Tokenizer.load(folder)
    if not within:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
        threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker if its parent is killed, so that no orphan waits for work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _tokenise(batch: list[Document | Rejected]) -> list[_Tokenised | Rejected]:
    import xxhash

    done: list[_Tokenised | Rejected] = []
    for item in batch:
        if isinstance(item, Rejected):
            done.append(item)
            continue
        text = item.text.encode()
        ids = np.array(_tokenizer.encode(item.text), dtype=np.int32)
        done.append(_Tokenised(ids, xxhash.xxh3_64_intdigest(text), len(text)))
    return done
