"""L_MLM: the masked language modelling that pre-trains the auxiliary model (section 2)."""

import torch
from torch import Tensor

from fast_electra import randomness
from fast_electra.batch import MaskedBatch, TokenBatch
from fast_electra.corruption import Masking, mask
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.objectives.cross_entropy import CrossEntropy
from fast_electra.objectives.objective import Export, Forward, Row, Sums, export


class MLM:
    """Mean of -log p(x_i | i, x_masked) over the masked positions. All of them read [MASK], as in the paper."""

    name = "mlm"
    parameter: str | None = None
    sources: tuple[str, ...] = ("heldout",)

    def __init__(self, model: MaskedLanguageModel, masking: Masking) -> None:
        """Train `model` on the positions that `masking` chooses."""
        self.model, self.masking = model, masking

    def strength(self, u: float) -> None:
        """Return None: there is no curriculum."""
        return None

    def loss(self, forward: Forward, batch: TokenBatch, strength: float | None) -> tuple[Tensor, Sums]:
        """See `Objective`; the sums are those of `masked_loss`."""
        masked = mask(batch, self.masking, randomness.MASK_OF_MLM)
        logits_MV = forward(masked.tokens_T, batch.layout, masked.positions_M)
        loss_sum, sums = masked_loss(logits_MV, masked)
        return loss_sum / batch.global_masked, sums

    def summary(self, sums: Sums) -> Row:
        """Return `loss` and `accuracy`."""
        loss, accuracy = (float(sums[name] / sums["masked"]) for name in ("mlm_loss", "correct"))
        return {"loss": loss, "accuracy": accuracy}

    def evaluate(self, forward: Forward, batch: TokenBatch, strength: float | None) -> Sums:
        """Return the sums of `loss`."""
        return self.loss(forward, batch, strength)[1]

    def evaluation(self, sums: Sums) -> Row:
        """Return `heldout_loss` and `heldout_mlm_accuracy`."""
        row = self.summary(sums)
        return {"heldout_loss": row["loss"], "heldout_mlm_accuracy": row["accuracy"]}

    def exports(self, weights: dict[str, Tensor]) -> list[Export]:
        """Return the model."""
        return [export("model", "mlm", self.model.encoder.settings, weights)]


def masked_loss(logits_MV: Tensor, masked: MaskedBatch) -> tuple[Tensor, Sums]:
    """Return the sum of -log p(x_i) over masked positions, and sums: `mlm_loss`, `masked` positions, `correct` ones."""
    original_M = masked.original_M
    loss_M, best_M = CrossEntropy.apply(logits_MV, original_M)
    loss_sum, correct = loss_M.sum(), (best_M == original_M).sum()
    count = torch.full_like(correct, len(original_M))
    return loss_sum, {"mlm_loss": loss_sum.detach().double(), "masked": count.double(), "correct": correct.double()}
