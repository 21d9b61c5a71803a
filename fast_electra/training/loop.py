"""A run, and the loop that trains it: updates, logging, evaluations and checkpoints."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fast_electra import randomness
from fast_electra.batch import TokenBatch
from fast_electra.corpus.loader import Loader, SequenceSource, read_batch
from fast_electra.objectives.objective import Objective, Row, Sums
from fast_electra.run_settings import ResolvedConfig
from fast_electra.training import checkpoint
from fast_electra.training.console import Monitor
from fast_electra.training.engines import Engine, Ranks, add_over_ranks, highest_over_ranks, skipped
from fast_electra.training.metrics import plain
from fast_electra.training.signals import Interrupted, reason, watch

MOST_SKIPPED = 10  # updates in a row that were not finite, after which a run stops
EVALUATION_EPOCH = -1  # names the noise of evaluations: no training epoch has it
REFERENCE = 4  # training sequences per held-out one, for the AUC by token identity
EXAMPLES = 10  # held-out sequences that a report shows


class NotFinite(RuntimeError):
    """Losses or gradients stayed not finite. The weights are those of the last good update."""


@dataclass(frozen=True)
class Run:
    """Everything that trains: `fast_electra.parts.build` makes one from a config."""

    config: ResolvedConfig
    ranks: Ranks
    objective: Objective  # model and loss
    engine: Engine  # DeepSpeed's, around the model
    loader: Loader  # this rank's part of each global batch
    sets: dict[str, SequenceSource]  # what is evaluated; empty if nothing is held out
    facts: dict[str, Any]  # recorded with the run's config: hashes of what it reads
    tokenizer_hash: str

    def strength(self, n: int) -> float | None:
        """Return the curriculum's strength at update n = 1, 2, ...; the last update has u = 1."""
        return self.objective.strength(self.config.u(n, len(self.loader.sequences)))

    def curriculum(self, n: int) -> dict[str, float]:
        """Return the strength under its own name, temperature or gamma; {} if there is no curriculum."""
        strength, parameter = self.strength(n), self.objective.parameter
        return {} if strength is None or parameter is None else {parameter: strength}

    def update(self, n: int) -> tuple[dict[str, Any], Sums]:
        """Do update n = 1, 2, ..., which reads global batch n - 1; return its row so far, and this rank's sums."""
        # On a GPU, dropout in training uses torch's generator. It is reseeded, so that a resumed run draws the same.
        torch.manual_seed(int(randomness.key(self.config.run.seed, n, self.ranks.rank)))
        learning_rate, strength = self.engine.get_lr()[0], self.strength(n)
        batches = self.loader.batch(n - 1)
        # DeepSpeed averages over ranks and accumulation steps, but these losses must be added: each is multiplied.
        shares = float(len(batches) * self.ranks.world)
        total: Sums = {}
        for batch in batches:
            loss, sums = self.objective.loss(self.engine, batch.to(self.ranks.device), strength)
            # A loss that is not finite becomes NaN, so that no gradient of it can look finite.
            self.engine.backward(loss * torch.where(loss.isfinite(), shares, torch.nan))
            self.engine.step()
            total = added(total, sums)
        norm = self.engine.get_global_grad_norm()
        row = {
            "learning_rate": learning_rate,
            "gradient_norm": None if norm is None else float(norm),
            "tokens": batches[0].global_tokens,
            "skipped": skipped(self.engine),
        }
        return row | self.curriculum(n), total


def fit(run: Run, folder: Path, monitor: Monitor | None, start: int = 0) -> Row:
    """Train after `start` updates to the end, and return the last evaluation row.

    Checkpoints go into the run's folder. Only rank 0 has a monitor, which shows and keeps the rows.

    Raises:
        NotFinite: after MOST_SKIPPED updates in a row without finite loss and gradients.
        Interrupted: a signal came to any rank, or a launcher is gone. All ranks have saved.
    """
    settings = run.config.run
    pending: list[tuple[dict[str, Any], Sums]] = []  # rows whose sums are still this rank's own
    in_a_row, evaluation = 0, Row()
    began = time.perf_counter()

    def log() -> None:
        totals = add_over_ranks([sums for _, sums in pending]) if pending else []
        rows = [row | run.objective.summary(total) for (row, _), total in zip(pending, totals, strict=True)]
        pending.clear()
        if monitor is not None:
            monitor.rows(rows)

    def evaluate_now(n: int) -> Row:
        row = evaluate(run, n)
        if monitor is not None:
            repeated = {name: fact for name, fact in run.facts.items() if name == "heldout_mlm_accuracy"}
            monitor.evaluation({"update": n, "updates": settings.updates, **run.curriculum(n), **repeated, **row})
        return row

    if start == settings.updates and run.sets:  # interrupted between last checkpoint and end
        return evaluate_now(start)
    for n in range(start + 1, settings.updates + 1):
        update_began = time.perf_counter()
        row, sums = run.update(n)
        now = time.perf_counter()
        row |= {"tokens_per_second": row["tokens"] / (now - update_began), "seconds": now - began}
        pending.append(({"update": n, "updates": settings.updates, **row}, sums))
        in_a_row = in_a_row + 1 if row["skipped"] else 0
        if row["skipped"]:
            log()
            if monitor is not None:
                monitor.event(n, "skipped", f"loss or gradients not finite ({in_a_row} in a row); weights unchanged")
            if in_a_row >= MOST_SKIPPED and not _still_scaling(run.engine):
                raise NotFinite(
                    f"{in_a_row} updates in a row had a loss or gradients that are not finite, up to update {n}; "
                    "the weights are those of the last good one. Lower optimizer.params.lr or check the data, and "
                    "start again from a checkpoint"
                )
        last = n == settings.updates
        if last or n % settings.log_every == 0:
            log()
        if run.sets and (last or n % settings.evaluation.every == 0):
            evaluation = evaluate_now(n)
        watch.progressed()
        note = 0 if last else highest_over_ranks(watch.note, run.ranks)  # about 0.1 ms on one host
        if last or note or n % settings.checkpoint.every == 0:
            log()
            checkpoint.save(folder / "checkpoints", run.engine, run.ranks, n, settings.checkpoint.keep)
            if monitor is not None:
                monitor.status("running", n)
        if note:
            raise Interrupted(reason(note), agreed=True)
    return evaluation


@torch.no_grad()
def evaluate(run: Run, n: int) -> Row:
    """Return an evaluation row at the strength of update n. All ranks call this and share the work."""
    strength, sums = run.strength(n), Sums()
    run.engine.eval()
    for source, sequences in run.sets.items():
        samples = torch.arange(evaluation_size(sequences, source, run.config.run.evaluation.sequences))
        parts = samples.split(run.loader.share.micro_batch)
        mine = parts[run.ranks.rank :: run.ranks.world]
        # A rank without a part evaluates the first one and adds zeros: the reduction needs the same names everywhere.
        for part in mine or parts[:1]:
            batch = evaluation_batch(sequences, source, part, run.config.run.seed).to(run.ranks.device)
            found = run.objective.evaluate(run.engine, batch, strength)
            sums = added(sums, found if mine else {name: value * 0 for name, value in found.items()})
    run.engine.train()
    row = run.objective.evaluation(add_over_ranks([sums])[0])
    return {name: plain(value) for name, value in row.items()}  # a loss that is not finite is null in every file


def evaluation_size(sequences: SequenceSource, source: str, count: int) -> int:
    """Return how many of a split's sequences belong to the evaluation set `source`, for `count` held-out ones."""
    return min(count * REFERENCE if source == "reference" else count, len(sequences))


def evaluation_batch(sequences: SequenceSource, source: str, samples_B: Tensor, seed: int) -> TokenBatch:
    """Read the members `samples_B`, int64, of the evaluation set `source`, which is spread over a split's documents."""
    rounds = randomness.key(seed, randomness.ORDER, EVALUATION_EPOCH, torch.arange(4))[None]
    which = randomness.permute(samples_B, len(sequences), rounds)
    return read_batch(sequences, seed, samples_B, which, torch.full_like(which, EVALUATION_EPOCH), source)


def added(sums: Sums, more: Sums) -> Sums:
    """Return the sums of both, by name."""
    return sums | {name: sums[name] + value if name in sums else value for name, value in more.items()}


def _still_scaling(engine: Engine) -> bool:
    """Return whether fp16's loss scale can still fall: a skipped update is then part of its search, no failure."""
    scaler = engine.optimizer.loss_scaler
    return bool(engine.fp16_enabled()) and scaler.dynamic and scaler.cur_scale > scaler.min_scale
