"""L_MLM: the masked language modelling that pre-trains the auxiliary model (section 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fast_electra import randomness
from fast_electra.batch import TokenBatch
from fast_electra.corruption import mask
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.objectives.objective import Export, Forward


class MLM:
    """Mean of -log p(x_i | i, x_masked) over the masked positions; all of them read [MASK], as in the paper."""

    name = "mlm"
    parameter: str | None = None
    heldout_size, reference_size = 3, 0

    def __init__(self, model: MaskedLanguageModel, *, seed: int, mask_fraction: float, mask_id: int) -> None:
        self.model, self.seed, self.mask_fraction, self.mask_id = model, seed, mask_fraction, mask_id

    def value(self, u: float) -> None:
        return None

    def loss(self, forward: Forward, batch: TokenBatch, value: float | None) -> tuple[Tensor, Tensor]:
        """Sums: loss, masked positions, right predictions."""
        masked = mask(batch, self.seed, self.mask_fraction, self.mask_id, randomness.MASK_OF_MLM)
        logits_MV = forward(masked.tokens_BL, batch.attended_BL, masked.positions_M)
        original_M = batch.tokens_BL.flatten().index_select(0, masked.positions_M)
        loss_sum = F.cross_entropy(logits_MV.float(), original_M, reduction="sum")
        with torch.no_grad():
            correct = (logits_MV.argmax(dim=1) == original_M).sum()
            count = torch.full_like(correct, len(original_M))
            sums = torch.stack([loss_sum.detach().double(), count.double(), correct.double()])
        return loss_sum / batch.global_masked, sums

    def summary(self, sums: Tensor) -> dict[str, float | None]:
        loss_sum, masked, correct = sums.tolist()
        return {"loss": loss_sum / masked, "accuracy": correct / masked}

    def heldout_sums(self, forward: Forward, batch: TokenBatch, value: float | None) -> Tensor:
        return self.loss(forward, batch, value)[1]

    def reference_sums(self, forward: Forward, batch: TokenBatch, value: float | None) -> Tensor:
        return torch.zeros(0, dtype=torch.float64)

    def heldout_summary(self, sums: Tensor, reference: Tensor) -> dict[str, float | None]:
        row = self.summary(sums)
        return {"heldout_loss": row["loss"], "heldout_mlm_accuracy": row["accuracy"]}

    def exports(self, weights: dict[str, Tensor]) -> list[Export]:
        return [Export("model", "mlm", self.model.encoder.settings, weights)]
