"""The objective's figures on documents that no model saw."""

import torch
from pydantic import Field

from fast_electra import randomness
from fast_electra.corpus.loader import token_batch
from fast_electra.corpus.sequences import Sequences
from fast_electra.objectives.objective import Objective
from fast_electra.settings import Settings
from fast_electra.training.engines import Engine, Ranks, sum_over_ranks

EPOCH = -1  # names the noise of held-out sequences: no training epoch has it


class EvaluationSettings(Settings):
    """When the held-out documents are evaluated, and on how many of their sequences. The end of a run always is."""

    every: int = Field(default=5000, ge=1)  # updates
    sequences: int = Field(default=2048, ge=1)


def heldout_sample(sequences: Sequences, count: int, seed: int) -> torch.Tensor:
    """`count` sequences spread over the held-out documents (all, if there are fewer): int64."""
    index = torch.arange(min(count, len(sequences)))
    rounds = randomness.key(seed, randomness.ORDER, EPOCH, torch.arange(4))[None]
    return randomness.permute(index, len(sequences), rounds)


@torch.no_grad()
def evaluate(
    objective: Objective, engine: Engine, sequences: Sequences, count: int, value: float | None, ranks: Ranks, seed: int
) -> dict[str, float | None]:
    """An evaluation row at the curriculum's `value`. All ranks call it and share the work; each gets the row."""
    engine.eval()
    micro_batch = engine.train_micro_batch_size_per_gpu()
    sums = None
    for which in heldout_sample(sequences, count, seed).split(micro_batch)[ranks.rank :: ranks.world]:
        batch = token_batch(sequences, which, torch.full_like(which, EPOCH), 1, 1)
        part = objective.heldout_sums(engine, batch.to(ranks.device), value)
        sums = part if sums is None else sums + part
    if sums is None:  # fewer batches than ranks
        sums = torch.zeros(objective.heldout_size, dtype=torch.float64, device=ranks.device)
    engine.train()
    return objective.heldout_summary(sum_over_ranks(sums))
