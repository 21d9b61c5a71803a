"""Offline preprocessing: write the draws of a whole run before it trains (section 4).

    main -> write: begin (plan the store, see what exists) -> write_parts -> finish (write the manifest)

The draws are those of online training with the same seed, because they depend on the noise of each position alone.
They agree up to rounding: sums in batches of other sizes may be added in another order.
"""

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
from fast_electra.files import FileRecord, read_settings, write_sealed
from fast_electra.jobs import launcher
from fast_electra.parts import build_distribution, masking, open_run_corpus
from fast_electra.replacement.distribution import Distribution, LinearDistribution
from fast_electra.settings import UserError
from fast_electra.store.format import MANIFEST, PLAN, Part, PartFile, StoreManifest, StorePlan, write_part
from fast_electra.store.match import check_same, check_store, plan_store
from fast_electra.training.engines import Ranks, stop_ranks, wait_for_ranks
from fast_electra.training.loop import evaluation_batch
from fast_electra_kernels import Pieces, concatenate

# Sequences of a part. A crash costs each rank at most one part: 47 MB at 512 positions and 128,000 tokens.
LEAST, MOST = 4096, 65_536
PARTS = 8  # for each rank, if they are large enough: the ranks then have about the same work
PROGRESS = 10.0  # seconds between two lines about progress
PAPER = 256_000_000  # sequences that the paper pre-trains on: 125,000 updates of 2,048


def main(config: Config, output: Path | None, part: int | None = None) -> None:
    """Join the launcher's process group, write the store, and leave the group; see `write`."""
    folder = destination(config, output, part)
    with launcher.only_job(folder, "choose another --output"):
        ranks = launcher.begin(config, trains=False)
        write(config, folder, ranks, part)
        stop_ranks()


def destination(config: Config, output: Path | None, part: int | None) -> Path:
    """Return the folder to write: `output`, or the one that the config names.

    Raises:
        UserError: there is no such folder, or an argument is wrong. This is found before any work.
    """
    named = output or config.run.replacement.store
    if named is None:
        raise UserError("no output folder: pass --output DIR or set fast_electra.replacement.store")
    if config.run.objective != "rtd":
        raise UserError(
            f"objective {config.run.objective} draws no replacements from a frozen model: only rtd can be preprocessed"
        )
    if part is not None and not 1 <= part <= 16 * MOST:
        raise UserError(
            f"--part is the number of sequences of a file: at most {16 * MOST:,} and at least 1, not {part}"
        )
    return Path(named)


def write(config: Config, output: Path, ranks: Ranks, part: int | None = None) -> None:
    """Write the store of a run into the folder `output`, or what is missing of it.

    A file holds `part` sequences. By default each rank writes PARTS files of LEAST to MOST sequences. An unfinished
    store keeps its own number.

    Raises:
        UserError: the run cannot be stored in this way, or the folder holds something else.
    """
    corpus = open_run_corpus(config.run, ranks)
    if (output / MANIFEST).exists():
        manifest = check_store(config, corpus, output, verify=False)
        if ranks.rank == 0:
            print(f"{output} is complete ({manifest.plan.sequences:,} sequences)")
        return
    if part is None:
        part = min(MOST, max(LEAST, ceil_div(config.run.updates * config.sequences, PARTS * ranks.world)))
    store = begin(config, corpus, build_distribution(config, corpus, ranks), output, ranks, part)
    write_parts(store, ranks)
    _wait(ranks)
    if ranks.rank == 0:
        print(summary(output, finish(store)), flush=True)
    _wait(ranks)


@dataclass(frozen=True)
class Store:
    """A store that is being written, and everything that determines its tokens."""

    folder: Path
    plan: StorePlan
    config: Config
    corpus: Corpus
    distribution: Distribution
    strengths: list[float]  # at each update, for kind `fixed`
    micro_batch: int  # sequences of one call of the distribution

    def micro_batches(self, part: Part) -> Iterator[tuple[TokenBatch, float | None]]:
        """Yield the sequences of a part, and for kind `fixed` the strength at which they are drawn."""
        batch = self.config.sequences
        sequences = self.corpus.heldout if part.set.source == "heldout" else self.corpus.train
        assert sequences is not None
        start = part.first
        while start < part.stop:
            stop, strength = min(start + self.micro_batch, part.stop), part.set.value
            if part.set.source == "train" and self.strengths:  # a micro-batch does not cross an update's end
                update = start // batch
                stop, strength = min(stop, (update + 1) * batch), self.strengths[update]
            samples = torch.arange(start, stop)
            if part.set.source == "train":
                which, epochs = sequences.order(self.config.run.seed, start, stop)
                yield read_batch(sequences, self.config.run.seed, samples, which, epochs), strength
            else:
                yield evaluation_batch(sequences, part.set.source, samples, self.config.run.seed), strength
            start = stop


def begin(
    config: Config, corpus: Corpus, drawn_by: tuple[Distribution, dict[str, Any]], folder: Path, ranks: Ranks, part: int
) -> Store:
    """Plan the store and make its folder, which must be new or hold an unfinished store of the same plan.

    What draws comes with facts about its auxiliary. See also `write`.
    """
    distribution, auxiliary_facts = drawn_by
    strengths, plan = plan_store(config, corpus, distribution, auxiliary_facts, part)
    begun, passing = folder / PLAN, {folder / launcher.LOCK, *_unfinished(folder)}
    if begun.exists():
        before = read_settings(begun, StorePlan, f"{begun} is gone", "restore it, or choose another --output")
        check_same(folder, before, plan)
        plan = before
    elif folder.exists() and (not folder.is_dir() or set(folder.iterdir()) - passing):
        raise UserError(f"{folder} holds something else than a store ({PLAN} is missing): choose another --output")
    _wait(ranks)  # until all have looked
    if ranks.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for file in _unfinished(folder):
            file.unlink()
        write_sealed(begun, plan.model_dump())
    _wait(ranks)
    micro = min(config.deepspeed["train_micro_batch_size_per_gpu"], ceil_div(config.sequences, ranks.world))
    return Store(folder, plan, config, corpus, distribution, strengths, micro)


def _unfinished(folder: Path) -> list[Path]:
    """Return the temporary files that a killed preprocessing left."""
    return [file for pattern in (".*.partial", f".{PLAN}.*", f".{MANIFEST}.*") for file in folder.glob(pattern)]


def write_parts(store: Store, ranks: Ranks) -> None:
    """Write this rank's share of the parts, except those that are already complete.

    Rank 0 reports progress for all ranks, because their shares have about the same size.
    """
    mine = list(store.plan.parts())[ranks.rank :: ranks.world]
    missing = [part for part in mine if not _is_complete(store, part)]
    if ranks.rank == 0:
        print(_headline(store, ranks, len(mine) - len(missing)), flush=True)
    total, done, size = sum(part.stop - part.first for part in missing), 0, ""
    began = reported = time.perf_counter()
    written = 0  # bytes
    for part in missing:
        counts, pieces = [], []
        for batch, strength in store.micro_batches(part):
            counts.append(masked_counts(batch.layout.lengths_B, store.config.run.corruption.mask_fraction))
            pieces.append(_draw(store, batch.to(ranks.device), strength))
            done += len(batch.layout.lengths_B)
            if ranks.rank == 0 and (now := time.perf_counter()) - reported > PROGRESS:
                reported, rate = now, done / (now - began)
                speed, left = f"{rate * ranks.world:,.0f} sequences/s", timedelta(seconds=round((total - done) / rate))
                print(f"preprocessed {done / total:.1%}, {speed}{size}, {left} left", flush=True)
        path = store.folder / part.name
        write_part(path, store.plan, part, torch.cat(counts), concatenate(pieces))
        written += path.stat().st_size
        size = f", {written / done:.0f} bytes a sequence"


def _draw(store: Store, batch: TokenBatch, strength: float | None) -> Pieces:
    """Return every draw along the axis, or for kind `fixed` the one at `strength`; on the CPU."""
    distribution, plan = store.distribution, store.plan
    masked = mask(batch, masking(store.config.run, store.corpus.tokenizer))
    if strength is None and plan.low != plan.high:
        assert isinstance(distribution, LinearDistribution) and plan.low is not None and plan.high is not None
        return Pieces(*(tensor.cpu() for tensor in distribution.pieces(masked, plan.low, plan.high)))
    tokens_M: Tensor = distribution.sample(masked, plan.floor if strength is None else strength).tokens_M.cpu()
    return Pieces(torch.ones_like(tokens_M), tokens_M, torch.full(tokens_M.shape, -torch.inf))


def _is_complete(store: Store, part: Part) -> bool:
    """Return whether the part exists. Its file appears complete, but may have been copied from another store."""
    try:
        return PartFile(store.folder / part.name).label.get("store") == store.plan.fingerprint
    except (OSError, SafetensorError, ValueError):
        return False


def finish(store: Store) -> StoreManifest:
    """Hash all parts and write the manifest, which makes the store complete."""
    paths = [store.folder / part.name for part in store.plan.parts()]
    positions = pieces = 0
    for path in paths:
        file = PartFile(path)
        positions, pieces = positions + file.positions_in_all, pieces + file.pieces_in_all
    with ThreadPoolExecutor(max_workers=8) as pool:
        records = list(pool.map(FileRecord.of, paths))
    size = sum(record.size for record in records)
    manifest = StoreManifest(plan=store.plan, positions=positions, pieces=pieces, bytes=size, parts=records)
    write_sealed(store.folder / MANIFEST, manifest.model_dump())
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
    """Return one line about what was written, with the size that the paper's run would have."""
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
