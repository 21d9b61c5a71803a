"""One `fit` for every objective: the updates, what is logged of them, and what is kept."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fast_electra import randomness
from fast_electra.batch import TokenBatch
from fast_electra.config import CheckpointSettings, EvaluationSettings
from fast_electra.corpus.loader import Loader, token_batch
from fast_electra.corpus.sequences import Sequences
from fast_electra.objectives.objective import Objective
from fast_electra.training import checkpoint
from fast_electra.training.console import Monitor
from fast_electra.training.engines import Engine, Ranks, skipped, sum_over_ranks

EPOCH = -1  # names the noise of evaluations: no training epoch has it
REFERENCE = 4  # training sequences per held-out one, where a figure needs them


def evaluation_size(sequences: Sequences, source: str, count: int) -> int:
    """How many sequences an evaluation reads from `source`: "heldout", or "reference", the training sequences."""
    return min(count * REFERENCE if source == "reference" else count, len(sequences))


def evaluation_batch(sequences: Sequences, source: str, samples: Tensor, seed: int) -> TokenBatch:
    """Members `samples` of the evaluation set, which is spread over the documents of `sequences`."""
    rounds = randomness.key(seed, randomness.ORDER, EPOCH, torch.arange(4))[None]
    which = randomness.permute(samples, len(sequences), rounds)
    return token_batch(sequences, samples, which, torch.full_like(which, EPOCH), 1, 1, source)


@torch.no_grad()
def evaluate(
    objective: Objective,
    engine: Engine,
    heldout: Sequences,
    train: Sequences,
    count: int,
    value: float | None,
    ranks: Ranks,
    seed: int,
) -> dict[str, float | None]:
    """An evaluation row at the curriculum's `value`. All ranks call it and share the work; each gets the row."""
    micro_batch = engine.train_micro_batch_size_per_gpu()

    def add_up(sequences: Sequences, source: str, size: int, sums_of: Callable[[TokenBatch], Tensor]) -> Tensor:
        total = torch.zeros(size, dtype=torch.float64, device=ranks.device)
        samples = torch.arange(evaluation_size(sequences, source, count))
        for part in samples.split(micro_batch)[ranks.rank :: ranks.world]:
            total += sums_of(evaluation_batch(sequences, source, part, seed).to(ranks.device))
        return sum_over_ranks(total)

    engine.eval()
    sums = add_up(heldout, "heldout", objective.heldout_size, lambda b: objective.heldout_sums(engine, b, value))
    reference = torch.zeros(0, dtype=torch.float64)
    if objective.reference_size:
        size = objective.reference_size
        reference = add_up(train, "reference", size, lambda b: objective.reference_sums(engine, b, value))
    engine.train()
    return objective.heldout_summary(sums, reference)


MOST_SKIPPED = 10  # updates in a row that were not finite, after which a run stops


class NotFinite(RuntimeError):
    """Losses or gradients stayed not finite; the weights are those of the last good update."""


@dataclass(frozen=True)
class Plan:
    """How long a run is, and when it stops to look around."""

    updates: int
    seed: int
    log_every: int
    checkpoint: CheckpointSettings
    evaluation: EvaluationSettings
    fraction: Callable[[int], float]  # u, the fraction of the updates done, as the curriculum counts it


@dataclass
class _Pending:
    """Rows whose sums are still this rank's own: they are added over ranks together, every `log_every` updates."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)

    def flush(self, objective: Objective) -> list[dict[str, Any]]:
        if not self.rows:
            return []
        totals = sum_over_ranks(torch.stack(self.sums)).cpu()
        rows = [row | objective.summary(total) for row, total in zip(self.rows, totals, strict=True)]
        self.rows, self.sums = [], []
        return rows


def fit(
    objective: Objective,
    engine: Engine,
    loader: Loader,
    heldout: Sequences | None,
    plan: Plan,
    ranks: Ranks,
    run: Path,
    monitor: Monitor | None,
    start: int = 0,
    facts: dict[str, float] | None = None,
) -> dict[str, float | None]:
    """Trains from update `start` to the end and returns the last evaluation row.

    Update n = 1 ... N reads global batch n - 1, with the curriculum at u = plan.fraction(n), which is n / N.

    Args:
        heldout: held-out sequences, or None if the corpus has none.
        monitor: on rank 0, what shows and keeps the rows.
        facts: figures to repeat in each evaluation row: the auxiliary's held-out accuracy.

    Raises:
        NotFinite: after MOST_SKIPPED updates in a row without finite loss and gradients.
    """
    pending, in_a_row = _Pending(), 0
    evaluation: dict[str, float | None] = {}
    began = time.perf_counter()

    def log() -> None:
        rows = pending.flush(objective)
        if monitor is not None:
            monitor.rows(rows)

    def look_around(n: int, value: float | None) -> dict[str, float | None]:
        assert heldout is not None
        count = plan.evaluation.sequences
        row = evaluate(objective, engine, heldout, loader.sequences, count, value, ranks, plan.seed)
        if monitor is not None:
            curriculum = _curriculum(objective, value)
            monitor.evaluation({"update": n, "updates": plan.updates, **curriculum, **(facts or {}), **row})
        return row

    if start == plan.updates and heldout is not None:  # interrupted between its last checkpoint and its end
        return look_around(start, objective.value(plan.fraction(start)))
    engine.train()
    for n in range(start + 1, plan.updates + 1):
        value = objective.value(plan.fraction(n))
        update_began = time.perf_counter()
        row, sums = update(objective, engine, loader, n, value, plan.seed, ranks)
        now = time.perf_counter()
        row |= {"tokens_per_second": row["tokens"] / (now - update_began), "seconds": now - began}
        pending.rows.append({"update": n, "updates": plan.updates, **row})
        pending.sums.append(sums)

        in_a_row = in_a_row + 1 if row["skipped"] else 0
        if row["skipped"]:
            log()
            if monitor is not None:
                monitor.event(n, "skipped", f"loss or gradients not finite ({in_a_row} in a row); weights unchanged")
            if in_a_row >= MOST_SKIPPED and not _still_scaling(engine):
                raise NotFinite(
                    f"{in_a_row} updates in a row had a loss or gradients that are not finite, up to update {n}; "
                    "the weights are those of the last good one. Lower optimizer.params.lr or check the data, and "
                    "start again from a checkpoint"
                )
        last = n == plan.updates
        if last or n % plan.log_every == 0:
            log()
        if heldout is not None and (last or n % plan.evaluation.every == 0):
            evaluation = look_around(n, value)
        if last or n % plan.checkpoint.every == 0:
            log()
            checkpoint.save(run / "checkpoints", engine, ranks, n, plan.checkpoint.keep)
            if monitor is not None:
                monitor.status("running", n)
    return evaluation


def update(
    objective: Objective, engine: Engine, loader: Loader, n: int, value: float | None, seed: int, ranks: Ranks
) -> tuple[dict[str, Any], Tensor]:
    """One update of the weights; returns its row so far and this rank's sums."""
    # Dropout alone is not counter-based: reseeding it here makes a resumed run equal to an uninterrupted one.
    torch.manual_seed(int(randomness.key(seed, n, ranks.rank)))
    learning_rate = engine.get_lr()[0]
    parts = loader.batch(n - 1)
    # DeepSpeed averages over ranks and accumulation steps; the shares of the global mean are to be summed.
    shares = len(parts) * ranks.world
    total = None
    for part in parts:
        loss, sums = objective.loss(engine, part.to(ranks.device), value)
        loss = loss * torch.where(loss.isfinite(), float(shares), torch.nan)  # not finite: no gradient may look sound
        engine.backward(loss)
        engine.step()
        total = sums if total is None else total + sums
    assert total is not None
    norm = engine.get_global_grad_norm()
    row = {
        "learning_rate": learning_rate,
        "gradient_norm": None if norm is None else float(norm),
        "tokens": parts[0].global_tokens,
        "skipped": skipped(engine),
    }
    return row | _curriculum(objective, value), total


def _curriculum(objective: Objective, value: float | None) -> dict[str, float]:
    """The curriculum's value under its own name: temperature or gamma."""
    return {} if value is None or objective.parameter is None else {objective.parameter: value}


def _still_scaling(engine: Engine) -> bool:
    """Whether fp16's loss scale can still fall: a skipped update is then its search, not a failure."""
    scaler = engine.optimizer.loss_scaler
    return bool(engine.fp16_enabled()) and scaler.dynamic and scaler.cur_scale > scaler.min_scale
