"""The figures of replaced-token detection, shared by objectives rtd and joint (section 2)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fast_electra.batch import CorruptedBatch
from fast_electra.objectives.objective import Forward, Row, Sums

# The AUC is read from two histograms of the logits. They add over ranks; single scores would not.
BINS, RANGE = 1024, 16.0
PRIOR = 10.0  # smoothing: the mean replacement rate weighs as much as so many occurrences of a token


class Judged(NamedTuple):
    """Corrupted sequences, and what the main model says of them."""

    corrupted: CorruptedBatch
    logits_T: Tensor  # float32, of "this token was replaced"


def judge(forward: Forward, corrupted: CorruptedBatch) -> Judged:
    """Run the main model on corrupted sequences."""
    return Judged(corrupted, forward(corrupted.tokens_T, corrupted.masked.layout).float())


@torch.no_grad()
def detection_sums(judged: Judged, loss_sum: Tensor) -> Sums:
    """Return the additive figures of one micro-batch, whose losses add up to `loss_sum`; nothing waits for the device.

    They are `loss`; `tokens`, and how many are `replaced`, `predicted` to be, and rightly so (`found`); `masked` ones,
    and there the sums of `entropy` and of `original_probability` (NaN if they are not known); and `logits_2K`,
    histograms of the logits of original and of replaced tokens.
    """
    (corrupted, logits_T), draws = judged, judged.corrupted.draws
    replaced_T, predicted_T = corrupted.replaced_T, logits_T > 0
    # A NaN logit falls into the first bin. The update is then skipped, and the row says so.
    level_T = ((logits_T.nan_to_num() + RANGE) * (BINS / (2 * RANGE))).long().clamp(0, BINS - 1)
    sums = {
        "loss": loss_sum.detach(),
        "tokens": torch.full_like(loss_sum, len(logits_T)),
        "replaced": replaced_T.sum(),
        "predicted": predicted_T.sum(),
        "found": (predicted_T & replaced_T).sum(),
        "masked": torch.full_like(loss_sum, draws.tokens_M.numel()),
        "logits_2K": _counts(level_T, BINS, replaced_T),
    }
    for name, figure_M in (("entropy", draws.entropy_M), ("original_probability", draws.original_probability_M)):
        sums[name] = torch.full_like(loss_sum, torch.nan) if figure_M is None else figure_M.sum()
    return {name: value.double() for name, value in sums.items()}


def detection_summary(sums: Sums) -> Row:
    """Return a row of figures from the sums of `detection_sums`.

    The last two measure the curriculum: how undecided the distribution of replacements is (nats, mean over masked
    positions), and how probable the original token is. They are None if replacements come from an offline store.
    """

    def ratio(part: str, whole: str) -> float | None:
        quotient = float(sums[part] / sums[whole])
        return None if math.isnan(quotient) else quotient

    return {
        "loss": float(sums["loss"] / sums["tokens"]),
        "replaced_fraction": ratio("replaced", "tokens"),
        "recall": ratio("found", "replaced"),
        "precision": ratio("found", "predicted"),
        "auc": auc(*sums["logits_2K"]),
        "replacement_entropy": ratio("entropy", "masked"),
        "original_probability": ratio("original_probability", "masked"),
    }


@torch.no_grad()
def token_counts(corrupted: CorruptedBatch, vocabulary_size: int) -> Sums:
    """Count how often each token is original and how often it is a replacement: float64 [2, V].

    The sum is named after the source of the sequences: `heldout_2V` or `reference_2V`.
    """
    source = corrupted.masked.original.source
    return {f"{source}_2V": _counts(corrupted.tokens_T, vocabulary_size, corrupted.replaced_T)}


def _counts(value_T: Tensor, values: int, replaced_T: Tensor) -> Tensor:
    """Return histograms of integers in [0, values) over original and over replaced tokens: float64 [2, values]."""
    counts = torch.zeros(2 * values, dtype=torch.float64, device=value_T.device)  # bincount would wait for the device
    return counts.scatter_add_(0, value_T + values * replaced_T, counts.new_ones(len(value_T))).view(2, values)


def auc(negatives: Tensor, positives: Tensor) -> float | None:
    """Return the area under the ROC curve: the probability that a positive scores higher than a negative.

    Both classes are given as counts per score level, lowest level first. Ties count half. The result is None if a class
    is empty.
    """
    pairs = negatives.sum() * positives.sum()
    if not float(pairs):
        return None
    below = negatives.cumsum(0) - negatives
    return float((positives * (below + negatives / 2)).sum() / pairs)


def auc_token_identity(heldout_2V: Tensor, reference_2V: Tensor) -> float | None:
    """Return the best AUC that a token alone allows, without its context, from two results of `token_counts`.

    Each token of the held-out sequences is scored by its rate of being a replacement in the reference sequences. On the
    same sequences, rare tokens would be known by heart, and the AUC would be far above what any model could reach. The
    rates of rare tokens are drawn towards the mean rate.
    """
    mean = reference_2V[1].sum() / reference_2V.sum()
    rate_V = (reference_2V[1] + PRIOR * mean) / (reference_2V.sum(0) + PRIOR)
    order = rate_V.argsort()
    return auc(heldout_2V[0][order], heldout_2V[1][order])


def detection_evaluation(sums: Sums) -> Row:
    """Return an evaluation row from sums of `detection_sums` and both `token_counts`."""
    figures = detection_summary(sums) | {
        "auc_token_identity": auc_token_identity(sums["heldout_2V"], sums["reference_2V"])
    }
    return {f"heldout_{name}": figure for name, figure in figures.items()}
