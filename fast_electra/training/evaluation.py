"""The objective's figures on documents that no model saw."""

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from fast_electra import randomness
from fast_electra.batch import TokenBatch
from fast_electra.corpus.loader import token_batch
from fast_electra.corpus.sequences import Sequences
from fast_electra.objectives.objective import Objective
from fast_electra.settings import Settings
from fast_electra.training.engines import Engine, Ranks, sum_over_ranks

EPOCH = -1  # names the noise of evaluations: no training epoch has it
REFERENCE = 4  # training sequences per held-out one, where a figure needs them


class EvaluationSettings(Settings):
    """When the held-out documents are evaluated, and on how many of their sequences. The end of a run always is."""

    every: int = Field(default=5000, ge=1)  # updates
    sequences: int = Field(default=2048, ge=1)


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
