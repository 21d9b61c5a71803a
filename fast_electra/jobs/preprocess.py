"""Offline preprocessing: the draws of a whole run, written before it trains (section 4).

    main -> write: begin (plan the store, see what is there) -> write_parts -> finish (write the manifest)

The draws are those of online training from the same seed, because they depend on the noise of each position alone.
They agree up to rounding: batches of other sizes may add in another order.
"""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from fast_electra.batch import TokenBatch, ceil_div, masked_counts
from fast_electra.config import Config
from fast_electra.corpus.corpus import Corpus
from fast_electra.corpus.loader import read_batch
from fast_electra.corruption import mask
from fast_electra.files import FileRecord, check_files, read_settings, write_json
from fast_electra.parts import build_distribution, masking, open_run_corpus
from fast_electra.replacement.distribution import Distribution, LinearDistribution
from fast_electra.settings import UserError
from fast_electra.store.format import MANIFEST, PLAN, Part, PartFile, StoreManifest, StorePlan, write_part
from fast_electra.store.match import check_same, facts_of_run, known_of_auxiliary, plan_store
from fast_electra.store.reader import check_belongs, read_manifest, remedy
from fast_electra.training import operators
from fast_electra.training.engines import Ranks, start_ranks, stop_ranks, wait_for_ranks
from fast_electra.training.loop import evaluation_batch
from fast_electra_kernels import Pieces, concatenate

# Sequences of a part. A crash can cost each rank one part: at most 47 MB at 512 positions and 128,000 tokens.
LEAST, MOST = 4096, 65_536
PARTS = 8  # of each rank, if they are large enough: the ranks then have about as much to do
PROGRESS = 10.0  # seconds between two lines
PAPER = 256_000_000  # sequences that the paper pre-trains on: 125,000 updates of 2,048


def main(config: Config, output: Path | None, part: int | None = None) -> None:
    """Join the launcher's process group, write the store, and leave it; see `write`."""
    folder = destination(config, output, part)
    operators.ensure(fused_adam=False)
    ranks = start_ranks()
    write(config, folder, ranks, part)
    stop_ranks()


def destination(config: Config, output: Path | None, part: int | None) -> Path:
    """Return the folder to write: `output`, or the one that the config names. Check what can be checked before work."""
    if output is None and config.run.replacement.store is not None:
        output = Path(config.run.replacement.store)
    if output is None:
        raise UserError("no output folder: pass --output DIR or set fast_electra.replacement.store")
    if config.run.objective != "rtd":
        raise UserError(
            f"objective {config.run.objective} draws no replacements from a frozen model: only rtd can be preprocessed"
        )
    if part is not None and part < 1:
        raise UserError(f"--part is the number of sequences of a file: at least 1, not {part}")
    return output


def write(config: Config, output: Path, ranks: Ranks, part: int | None = None) -> None:
    """Writes the store of a run, or what is missing of it.

    Args:
        output: its folder.
        part: sequences of a file; by default such that each rank writes PARTS of them, from LEAST to MOST. A store
            that was begun keeps its own.

    Raises:
        UserError: the run cannot be stored so, or the folder holds something else.
    """
    corpus = open_run_corpus(config.run, ranks)
    if (output / MANIFEST).exists():
        known = facts_of_run(config, corpus, known_of_auxiliary(config))
        manifest = read_manifest(output)
        check_belongs(output, manifest.plan.facts, known(manifest.plan.kind))
        check_files(output, manifest.parts, remedy(output), verify=False)
        if ranks.rank == 0:
            print(f"{output} is complete ({manifest.plan.sequences:,} sequences)")
        return
    store = begin(config, corpus, build_distribution(config, corpus, ranks), output, ranks, part)
    try:
        write_parts(store, ranks)
    except UserError as error:
        if ranks.rank != 0:  # perhaps this rank alone meets it, and the launch script would be silent
            sys.stderr.write(f"rank {ranks.rank}: {error}\n")
        raise
    _wait(ranks)
    if ranks.rank == 0:
        print(summary(output, finish(store)), flush=True)
    _wait(ranks)


@dataclass(frozen=True)
class Store:
    """A store that is being written, and everything that its tokens come from."""

    folder: Path
    plan: StorePlan
    config: Config
    corpus: Corpus
    distribution: Distribution
    strengths: list[float]  # at each update, for kind `fixed`
    micro_batch: int  # sequences that are drawn for together

    def micro_batches(self, part: Part) -> Iterator[tuple[TokenBatch, float | None]]:
        """Yield the sequences of a part, and for kind `fixed` the strength at which they are drawn."""
        size, batch = self.micro_batch, self.config.sequences
        sequences = self.corpus.heldout if part.set.source == "heldout" else self.corpus.train
        assert sequences is not None
        start = part.first
        while start < part.stop:
            stop, strength = min(start + size, part.stop), part.set.value
            if part.set.source != "train":
                samples = torch.arange(start, stop)
                yield evaluation_batch(sequences, part.set.source, samples, self.config.run.seed), strength
            else:
                if self.strengths:  # a micro-batch has one strength, so it ends with its update
                    update = start // batch
                    stop, strength = min(stop, (update + 1) * batch), self.strengths[update]
                which, epochs = sequences.order(self.config.run.seed, start, stop)
                yield read_batch(sequences, torch.arange(start, stop), which, epochs), strength
            start = stop


def begin(
    config: Config,
    corpus: Corpus,
    drawn_by: tuple[Distribution, dict[str, Any]],
    folder: Path,
    ranks: Ranks,
    part: int | None = None,
) -> Store:
    """Plan the store; see `write`. The folder must be new, or hold an unfinished store of the same plan.

    Args:
        config: of the run.
        corpus: of the run.
        drawn_by: the distribution, and facts about its auxiliary.
        folder: of the store.
        ranks: this process's place among all.
        part: number of sequences of a file.
    """
    distribution, auxiliary_facts = drawn_by
    if part is None:
        part = min(MOST, max(LEAST, ceil_div(config.run.updates * config.sequences, PARTS * ranks.world)))
    strengths, plan = plan_store(config, corpus, distribution, auxiliary_facts, part)
    begun = folder / PLAN
    if begun.exists():
        before = read_settings(begun, StorePlan, f"{begun} is gone", f"remove {folder}, or choose another --output")
        check_same(folder, before, plan)
        plan = before
    elif folder.exists() and (not folder.is_dir() or set(folder.iterdir()) - set(_unfinished(folder))):
        raise UserError(f"{folder} holds something else than a store ({PLAN} is missing): choose another --output")
    _wait(ranks)  # all have looked
    if ranks.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for file in _unfinished(folder):
            file.unlink()
        write_json(begun, plan.model_dump())
    _wait(ranks)
    micro = min(config.deepspeed["train_micro_batch_size_per_gpu"], ceil_div(config.sequences, ranks.world))
    return Store(folder, plan, config, corpus, distribution, strengths, micro)


def _unfinished(folder: Path) -> list[Path]:
    """Files that a killed preprocessing had not yet moved to their places."""
    return [file for pattern in (".*.partial", f".{PLAN}.*", f".{MANIFEST}.*") for file in folder.glob(pattern)]


def write_parts(store: Store, ranks: Ranks) -> None:
    """Writes this rank's share of the parts, but for those that are whole."""
    mine = list(store.plan.parts())[ranks.rank :: ranks.world]
    missing = [part for part in mine if not _is_whole(store, part)]
    if ranks.rank == 0:
        print(_headline(store, ranks, len(mine) - len(missing)), flush=True)
    progress = Progress(sum(part.stop - part.first for part in missing), ranks)
    for part in missing:
        counts, pieces = [], []
        for batch, strength in store.micro_batches(part):
            counts.append(masked_counts(batch.lengths_B, store.config.run.corruption.mask_fraction))
            pieces.append(_draw(store, batch.to(ranks.device), strength))
            progress.advance(len(batch.lengths_B))
        path = store.folder / part.name
        write_part(path, store.plan, part, torch.cat(counts), concatenate(pieces))
        progress.written, progress.bytes = progress.done, progress.bytes + path.stat().st_size


class Progress:
    """A line on rank 0 now and then, for all ranks: their shares are alike."""

    def __init__(self, total: int, ranks: Ranks) -> None:
        self.total, self.ranks = total, ranks
        self.done = self.written = self.bytes = 0
        self.began = self.told = time.perf_counter()

    def advance(self, sequences: int) -> None:
        self.done += sequences
        now = time.perf_counter()
        if self.ranks.rank == 0 and now - self.told > PROGRESS:
            self.told, rate = now, self.done / (now - self.began)
            left = timedelta(seconds=round((self.total - self.done) / rate))
            share, rate = 100 * self.done / self.total, rate * self.ranks.world
            size = f", {self.bytes / self.written:.0f} bytes a sequence" if self.written else ""
            print(f"preprocessed {share:.1f}%, {rate:,.0f} sequences/s{size}, {left} left", flush=True)


def _draw(store: Store, batch: TokenBatch, strength: float | None) -> Pieces:
    """Every draw along the axis, or for kind `fixed` the one at `strength`; on the CPU."""
    distribution, plan = store.distribution, store.plan
    masked = mask(batch, masking(store.config.run, store.corpus.tokenizer))
    if strength is None and plan.low != plan.high:
        assert isinstance(distribution, LinearDistribution) and plan.low is not None and plan.high is not None
        return Pieces(*(tensor.cpu() for tensor in distribution.pieces(masked, plan.low, plan.high)))
    tokens_M: Tensor = distribution.sample(masked, plan.floor if strength is None else strength).tokens_M.cpu()
    return Pieces(torch.ones_like(tokens_M), tokens_M, torch.full(tokens_M.shape, -torch.inf))


def _is_whole(store: Store, part: Part) -> bool:
    """Whether the part is there; files appear whole, but one that was put there by hand may belong to another store."""
    try:
        return PartFile(store.folder / part.name).label.get("store") == store.plan.fingerprint
    except (OSError, SafetensorError, ValueError):
        return False


def finish(store: Store) -> StoreManifest:
    """Hashes all parts and writes the manifest: from here on the store is complete."""
    parts = list(store.plan.parts())
    paths = [store.folder / part.name for part in parts]
    positions = pieces = 0
    for path in paths:
        file = PartFile(path)
        positions, pieces = positions + file.positions_in_all, pieces + file.pieces_in_all
    with ThreadPoolExecutor(max_workers=8) as pool:
        records = list(pool.map(FileRecord.of, paths))
    size = sum(record.size for record in records)
    manifest = StoreManifest(plan=store.plan, positions=positions, pieces=pieces, bytes=size, parts=records)
    write_json(store.folder / MANIFEST, manifest.model_dump())
    return manifest


def _headline(store: Store, ranks: Ranks, kept: int) -> str:
    plan = store.plan
    what = f"every {plan.parameter} of the curriculum" if plan.parameter else "a distribution without a curriculum"
    if plan.kind == "fixed":
        what = f"{len(dict.fromkeys(store.strengths))} value(s) of {plan.parameter}, one an epoch"
    resuming = f"; resuming: {kept} parts are already complete" if kept else ""
    return (
        f"preprocessing {plan.sequences:,} sequences for {what}, into {store.folder}: "
        f"{ranks.world} process{'es' if ranks.world > 1 else ''} on {ranks.device.type}{resuming}"
    )


def summary(folder: Path, manifest: StoreManifest) -> str:
    """One line: what was written, and what the paper's run would take."""
    sequences = manifest.plan.sequences
    each = manifest.bytes / sequences
    pieces = f", {manifest.pieces / manifest.positions:.2f} pieces a position" if manifest.plan.kind == "axis" else ""
    return (
        f"store {folder}: {sequences:,} sequences, {manifest.positions / sequences:.1f} masked positions each{pieces}; "
        f"{manifest.bytes / 1e6:,.1f} MB = {each:.0f} bytes a sequence "
        f"({PAPER / 1e6:.0f} M such sequences: {each * PAPER / 1e9:,.0f} GB)"
    )


def _wait(ranks: Ranks) -> None:
    if ranks.world > 1:
        wait_for_ranks()
