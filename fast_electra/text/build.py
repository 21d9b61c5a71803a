"""Documents to shards: any number of processes tokenise, and one writes, in the order of the input."""

import json
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, cast

import numpy as np
import xxhash

from fast_electra.corpus import shards
from fast_electra.corpus.frozen_tokenizer import FrozenTokenizer
from fast_electra.corpus.shards import InputRecord, Manifest, ShardRecord, SplitName
from fast_electra.corpus.tokenizer import Tokenizer, open_tokenizer
from fast_electra.files import FileRecord, atomic_folder, write_sealed
from fast_electra.settings import UserError
from fast_electra.text.documents import Document, Losses, Rejected, printable, reject
from fast_electra.text.inputs import DEFAULT_MAX_DOCUMENT_BYTES, check_range, kind, open_inputs
from fast_electra.text.readers import read_documents

_BATCH_CHARACTERS = 2**20  # handed to a worker at a time
_MOST_WORKERS = 1024


class _Tokenised(NamedTuple):
    """One document: its token ids, how many of them are unknown, and hash and size of its text."""

    ids: np.ndarray
    unknown: int
    text_hash: int  # decides its split
    bytes: int


def build_shards(
    inputs: Iterable[str | Path],
    tokenizer: str | Path,
    output: str | Path,
    heldout: float = 0.005,
    workers: int = 1,
    field: str = "text",
    max_document_bytes: int = DEFAULT_MAX_DOCUMENT_BYTES,
    document_per_line: bool = False,
    shard_bytes: int = 2**30,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda documents, size: None,
) -> Manifest:
    """Tokenise text into a folder of shards, which appears complete or not at all, and return its manifest.

    Args:
        inputs: files, folders, globs, or `sample`.
        tokenizer: folder of the tokenizer: see `open_tokenizer`. One of Hugging Face is frozen into the output.
        output: the folder to write.
        heldout: share of the documents kept for evaluation. The hash of a text decides, so equal documents stay
            together. Above 0, each split gets at least one document if there are two different ones.
        workers: number of tokenising processes; if it is 1, this process tokenises.
        field: the key or column that holds the text.
        max_document_bytes: larger documents are rejected.
        document_per_line: each line of a .txt file is a document; if False, blank lines separate them.
        shard_bytes: a shard is closed once its tokens take this many bytes.
        overwrite: replace existing shards.
        progress: called after each document with the number of documents and the bytes of text so far.

    Raises:
        UserError: there is nothing to read, no document is usable, an argument is out of range, or the output exists.
    """
    if not 0 <= heldout < 1:
        raise UserError(f"--heldout {heldout}: it is a share of the documents, at least 0 and below 1")
    check_range("--workers", workers, 1, _MOST_WORKERS)
    check_range("--shard-bytes", shard_bytes, 1)
    files = open_inputs(inputs, field, max_document_bytes, document_per_line)
    records = [InputRecord(path=printable(file), size=file.stat().st_size) for file in files]
    vocabulary, place = open_tokenizer(tokenizer), Path(tokenizer)
    with atomic_folder(Path(output), marker=shards.MANIFEST, overwrite=overwrite) as folder:
        if isinstance(vocabulary, FrozenTokenizer):
            place = folder / shards.TOKENIZER
            vocabulary.save(place)
        threshold = int(heldout * 2**64)
        for _ in range(2):
            for stale in filter(Path.is_file, folder.iterdir()):
                stale.unlink()
            writer = _Pass(folder, threshold, vocabulary.vocabulary_size, shard_bytes)
            with _tokenising(vocabulary, place, workers) as tokenise:
                documents = read_documents(files, field, max_document_bytes, document_per_line)
                writer.write(tokenise(documents), progress)
            if not writer.documents:
                raise UserError(f"no usable document in {len(files)} files: {writer.losses.summary()}")
            smallest, largest = writer.smallest, writer.largest
            if threshold == 0 or smallest == largest or smallest < threshold <= largest:
                break
            # All of a small corpus may fall into one split: move the border by one document, and write again.
            threshold = min(max(threshold, smallest + 1), largest)
        splits = {name: split.done for name, split in writer.splits.items()}
        manifest = Manifest(
            format=1,
            tokenizer=vocabulary.hash,
            vocabulary_size=vocabulary.vocabulary_size,
            heldout=float(heldout),
            documents=writer.documents,
            tokens=sum(shard.tokens for done in splits.values() for shard in done),
            bytes=writer.bytes,
            rejected=dict(sorted(writer.losses.documents.items())),
            inputs=records,
            splits=splits,
            unknown=writer.unknown,
        )
        # After all others. Without `unknown`, if that is 0, the manifest has the hash that it had in older versions.
        write_sealed(folder / shards.MANIFEST, manifest.model_dump(exclude_defaults=True))
    for line in writer.losses.lines():
        print(f"left out: {line}", file=sys.stderr)
    _remark_on_heldout(manifest, ".txt" in map(kind, files) and not document_per_line)
    return manifest


def _remark_on_heldout(manifest: Manifest, by_blank_lines: bool) -> None:
    """Say so if the held-out share of the tokens is far from the share of the documents that was asked for."""
    share = sum(shard.tokens for shard in manifest.splits["heldout"]) / max(manifest.tokens, 1)
    if manifest.heldout / 2 <= share <= 2 * manifest.heldout:
        return
    lines = ", --document-per-line if each line of a .txt file is a document" if by_blank_lines else ""
    print(
        f"note: {share:.2%} of the tokens are held out, where --heldout asked for {manifest.heldout:.2%}: documents "
        f"stay whole, equal ones together, and there are {manifest.documents:,}. Give more or shorter ones{lines}, "
        "or another --heldout (0 for none).",
        file=sys.stderr,
    )


class _Pass:
    """One pass over the input: the shards and the quarantine that it writes, and its counts."""

    def __init__(self, folder: Path, threshold: int, vocabulary: int, shard_bytes: int):
        self._folder, self._threshold = folder, threshold
        self.splits = {name: _Split(folder, name, vocabulary, shard_bytes) for name in shards.SPLITS}
        self.documents = self.bytes = self.unknown = 0
        self.losses = Losses()
        self.smallest, self.largest = 2**64, -1  # of the hashes of all texts

    def write(self, items: Iterable[_Tokenised | Rejected], progress: Callable[[int, int], None]) -> None:
        with (self._folder / shards.QUARANTINE).open("w", encoding="utf-8") as quarantine:
            for item in items:
                if isinstance(item, Rejected):
                    self.losses.add(item)
                    quarantine.write(json.dumps(item._asdict()) + "\n")
                    continue
                self.documents += 1
                self.bytes += item.bytes
                self.unknown += item.unknown
                self.smallest, self.largest = min(self.smallest, item.text_hash), max(self.largest, item.text_hash)
                self.splits["heldout" if item.text_hash < self._threshold else "train"].add(item.ids)
                progress(self.documents, self.bytes)
        for split in self.splits.values():
            split.finish()


class _Split:
    """The shards of one split, written one after the other."""

    def __init__(self, folder: Path, name: SplitName, vocabulary: int, shard_bytes: int):
        self._folder, self._name, self._shard_bytes = folder, name, shard_bytes
        self._dtype = shards.indexed_dataset().DType.optimal_dtype(vocabulary)
        self.done: list[ShardRecord] = []
        self._builder: Any = None
        self._documents = self._tokens = 0  # of the shard that is being written

    def add(self, ids: np.ndarray) -> None:
        import torch  # here, because worker processes do without it

        if self._builder is None:
            builder = shards.indexed_dataset().IndexedDatasetBuilder
            self._builder = builder(str(self._path("bin")), dtype=self._dtype)
        self._builder.add_item(torch.from_numpy(ids))
        self._builder.end_document()
        self._documents += 1
        self._tokens += len(ids)
        if self._tokens * np.dtype(self._dtype).itemsize >= self._shard_bytes:
            self.finish()

    def finish(self) -> None:
        """Complete the shard that is being written, if there is one."""
        if self._builder is None:
            return
        self._builder.finalize(str(self._path("idx")))
        binary, index = (FileRecord.of(self._path(suffix)) for suffix in ("bin", "idx"))
        self.done.append(ShardRecord(documents=self._documents, tokens=self._tokens, bin=binary, idx=index))
        self._builder, self._documents, self._tokens = None, 0, 0

    def _path(self, suffix: str) -> Path:
        return self._folder / f"{self._name}-{len(self.done):05d}.{suffix}"


_Tokenise = Callable[[Iterable[Document | Rejected]], Iterator[_Tokenised | Rejected]]


@contextmanager
def _tokenising(tokenizer: Tokenizer, folder: Path, workers: int) -> Iterator[_Tokenise]:
    """Open the tokenising processes and return a function that tokenises documents lazily and in order."""
    if workers == 1:
        yield lambda items: (_tokenised(tokenizer, item) for item in items)
        return
    # Start fresh interpreters, because a fork would copy locks that other threads hold. Each process has a pipe of its
    # own, which ends with it. A ProcessPoolExecutor waits for ever for a result that a killed process half wrote.
    context = multiprocessing.get_context("spawn")
    processes, idle = [], SimpleQueue[Connection]()
    for _ in range(workers):
        pipe, other = context.Pipe()
        processes.append(context.Process(target=_work, args=(folder, other), daemon=True))
        processes[-1].start()
        other.close()
        idle.put(pipe)
    threads = ThreadPoolExecutor(workers)  # each waits for one process

    def submit(batch: list[Document | Rejected]) -> list[_Tokenised | Rejected]:
        pipe = idle.get()
        try:
            pipe.send(batch)
            return cast(list[_Tokenised | Rejected], pipe.recv())
        except (EOFError, OSError):
            cause = "a tokenising process was killed, most likely because memory ran out: use fewer --workers"
            raise UserError(cause) from None
        finally:
            idle.put(pipe)

    def tokenise(items: Iterable[Document | Rejected]) -> Iterator[_Tokenised | Rejected]:
        pending: deque[Future[list[_Tokenised | Rejected]]] = deque()
        for batch in _batches(items):
            pending.append(threads.submit(submit, batch))
            if len(pending) > 2 * workers:  # memory stays bounded, however slow the writer is
                yield from pending.popleft().result()
        for future in pending:
            yield from future.result()

    try:
        yield tokenise
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        threads.shutdown()
        for process in processes:
            process.join()


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


def _tokenised(tokenizer: Tokenizer, item: Document | Rejected) -> _Tokenised | Rejected:
    if isinstance(item, Rejected):
        return item
    ids = np.array(tokenizer.encode(item.text), dtype=np.int32)
    if not len(ids):
        return reject(item.source, "no token", item.text, "the tokenizer leaves out all of its characters")
    text, unknown = item.text.encode(), 0 if tokenizer.unk_id is None else int((ids == tokenizer.unk_id).sum())
    return _Tokenised(ids, unknown, xxhash.xxh3_64_intdigest(text), len(text))


def _work(folder: Path, pipe: Connection) -> None:
    """Tokenise the batches that come through a pipe, until its other end is closed or gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process is one of --workers
    tokenizer = open_tokenizer(folder)
    with suppress(EOFError, OSError):
        while True:
            pipe.send([_tokenised(tokenizer, item) for item in pipe.recv()])
