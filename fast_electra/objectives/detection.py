"""Replaced-token detection itself: its loss and its figures, for whatever made the corrupted sequences (section 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fast_electra.batch import CorruptedBatch
from fast_electra.objectives.objective import Forward

# The AUC is read off two histograms of the logits, which add over ranks as single scores would not.
BINS, RANGE = 1024, 16.0
COUNTS, MASKED = 8, 5  # of the sums of a batch: how many come before the histograms, and which is the masked positions
SIZE = COUNTS + 2 * BINS  # of the sums of a batch
PRIOR = 10.0  # sightings of a token that weigh as much as the mean rate of all tokens


def detect(forward: Forward, corrupted: CorruptedBatch) -> tuple[Tensor, Tensor]:
    """L_RTD as this micro-batch's share of the mean over all non-padding tokens, and sums float64 [SIZE]."""
    batch = corrupted.masked.original
    logits_BL = forward(corrupted.tokens_BL, batch.attended_BL).float()
    loss_BL = F.binary_cross_entropy_with_logits(logits_BL, corrupted.replaced_BL.float(), reduction="none")
    loss_sum = (loss_BL * batch.real_BL).sum()
    return loss_sum / batch.global_tokens, detection_sums(loss_sum, logits_BL, corrupted)


@torch.no_grad()
def detection_sums(loss_sum: Tensor, logits_BL: Tensor, corrupted: CorruptedBatch) -> Tensor:
    """The additive figures of one micro-batch, float64 [SIZE]; nothing here waits for the device.

    Loss; tokens, replaced ones, predicted replaced, rightly so; masked positions, entropies and probabilities of the
    original token there (NaN where not known); then the two histograms of the logits.
    """
    replaced_BL, real_BL, draws = corrupted.replaced_BL, corrupted.masked.original.real_BL, corrupted.draws
    predicted_BL = (logits_BL > 0) & real_BL
    counts = torch.stack([real_BL.sum(), replaced_BL.sum(), predicted_BL.sum(), (predicted_BL & replaced_BL).sum()])
    meter = [torch.full_like(loss_sum, draws.tokens_M.numel())]
    for figure_M in (draws.entropy_M, draws.original_M):
        meter.append(torch.full_like(loss_sum, torch.nan) if figure_M is None else figure_M.sum())
    # A NaN logit falls into the first bin: the update is skipped and said to be so elsewhere.
    level_BL = ((logits_BL.nan_to_num() + RANGE) * (BINS / (2 * RANGE))).long().clamp(0, BINS - 1)
    histograms = torch.zeros(2 * BINS, dtype=torch.float64, device=logits_BL.device)
    histograms.scatter_add_(0, (level_BL + BINS * replaced_BL).flatten(), real_BL.flatten().double())
    return torch.cat([loss_sum.detach().double()[None], counts.double(), torch.stack(meter).double(), histograms])


def detection_summary(sums: Tensor) -> dict[str, float | None]:
    """A row of figures from summed sums [SIZE].

    The last two measure the curriculum: how undecided the distribution of replacements is (nats, mean over masked
    positions), and how probable the original token. They are None where replacements come from an offline store.
    """
    loss_sum, tokens, replaced, predicted, right, masked, entropy, original = sums[:COUNTS].tolist()
    return {
        "loss": loss_sum / tokens,
        "replaced_fraction": replaced / tokens,
        "recall": right / replaced if replaced else None,
        "precision": right / predicted if predicted else None,
        "auc": auc(sums[COUNTS : COUNTS + BINS], sums[COUNTS + BINS : SIZE]),
        "replacement_entropy": entropy / masked if entropy == entropy else None,
        "original_probability": original / masked if original == original else None,
    }


def token_sums(corrupted: CorruptedBatch, vocabulary_size: int) -> Tensor:
    """How often each token stood unreplaced, then how often as a replacement: float64 [2 V]."""
    sums = torch.zeros(2 * vocabulary_size, dtype=torch.float64, device=corrupted.tokens_BL.device)
    index_BL = corrupted.tokens_BL + vocabulary_size * corrupted.replaced_BL
    return sums.scatter_add_(0, index_BL.flatten(), corrupted.masked.original.real_BL.flatten().double())


def auc(negatives: Tensor, positives: Tensor) -> float | None:
    """Area under the ROC curve from counts per score level, lowest first; None where a class is empty.

    The probability that a positive scores higher than a negative, ties counted half.
    """
    pairs = negatives.sum() * positives.sum()
    if not float(pairs):
        return None
    below = negatives.cumsum(0) - negatives
    return float((positives * (below + negatives / 2)).sum() / pairs)


def auc_token_identity(heldout_2V: Tensor, reference_2V: Tensor) -> float | None:
    """The best AUC that the token alone allows, without its context.

    Each token is scored by its rate of being a replacement, estimated on other sequences than those judged: estimated
    on the same ones, rare tokens would be told by heart, and the AUC be far above what any model could reach.

    Args:
        heldout_2V: counts of each token unreplaced and as a replacement, on the sequences judged.
        reference_2V: the same on other sequences; rare tokens are drawn towards the mean rate.
    """
    mean = reference_2V[1].sum() / reference_2V.sum()
    rate_V = (reference_2V[1] + PRIOR * mean) / (reference_2V.sum(0) + PRIOR)
    order = rate_V.argsort()
    return auc(heldout_2V[0][order], heldout_2V[1][order])


def heldout_detection(sums: Tensor, reference: Tensor) -> dict[str, float | None]:
    """An evaluation row from detection's sums followed by token sums [SIZE + 2 V], and reference sums [2 V]."""
    row = {f"heldout_{name}": figure for name, figure in detection_summary(sums[:SIZE]).items()}
    identity = auc_token_identity(sums[SIZE:].view(2, -1), reference.view(2, -1))
    return row | {"heldout_auc_token_identity": identity}
