"""L_MLM + lambda L_RTD: an auxiliary model trained together with the main model (section 2).

ELECTRA's and METRO's way, to compare with. It shares loader, loop, masks and detection with Fast-ELECTRA: what differs
stands here.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fast_electra.batch import CorruptedBatch, Draws, TokenBatch
from fast_electra.corruption import mask, replace
from fast_electra.model.joint import JointModel
from fast_electra.objectives import detection
from fast_electra.objectives.objective import Export, Forward
from fast_electra.settings import Settings
from fast_electra_kernels import sample_logits


class JointSettings(Settings):
    """How the two models are trained together. The paper's lambda is 70 for base and 50 for large (Table 3)."""

    loss_weight: float = Field(default=50.0, gt=0.0, allow_inf_nan=False)  # lambda
    auxiliary_layers: int = Field(default=4, ge=1)  # Table 2; all else is as in `model`
    embedding_sharing: Literal["shared", "gradient_disentangled", "none"] = "shared"


class Joint:
    """Both means: -log p(x_i | i, x_masked) over masked positions, and lambda times L_RTD over non-padding tokens."""

    name = "joint"
    parameter: str | None = None

    def __init__(
        self, model: JointModel, settings: JointSettings, *, seed: int, mask_fraction: float, mask_id: int
    ) -> None:
        self.model, self.settings = model, settings
        self.seed, self.mask_fraction, self.mask_id = seed, mask_fraction, mask_id
        self.vocabulary_size = model.main.encoder.settings.vocabulary_size
        self.reference_size = 2 * self.vocabulary_size
        self.heldout_size = 2 + detection.SIZE + self.reference_size

    def value(self, u: float) -> None:
        """The auxiliary's own progress is the curriculum."""
        return None

    def loss(self, forward: Forward, batch: TokenBatch, value: float | None) -> tuple[Tensor, Tensor]:
        """Sums: MLM loss and right predictions, then those of `detection.detection_sums`."""
        corrupted, mlm_sum, correct = self.propose(forward, batch)
        detection_loss, sums = detection.detect(forward, corrupted)
        loss = mlm_sum / batch.global_masked + self.settings.loss_weight * detection_loss
        return loss, torch.cat([torch.stack([mlm_sum.detach().double(), correct.double()]), sums])

    def propose(self, forward: Forward, batch: TokenBatch) -> tuple[CorruptedBatch, Tensor, Tensor]:
        """The auxiliary's sum of losses and right predictions, and the sequences corrupted by draws from it."""
        masked = mask(batch, self.seed, self.mask_fraction, self.mask_id)
        logits_MV = forward(masked.tokens_BL, batch.attended_BL, masked.positions_M)
        original_M = batch.tokens_BL.flatten().index_select(0, masked.positions_M)
        mlm_sum = F.cross_entropy(logits_MV.float(), original_M, reduction="sum")
        with torch.no_grad():
            try:
                tokens_M, statistics = sample_logits(logits_MV.detach(), masked.keys_M, original_M)
                draws = Draws(tokens_M, statistics.entropy_M, statistics.original_M.exp())
            except (
                ValueError
            ):  # NaN or +inf: nothing can be drawn, and the loss is not finite: the loop skips the update
                draws = Draws(original_M)
            return replace(masked, draws), mlm_sum, (logits_MV.argmax(dim=1) == original_M).sum()

    def corrupt(self, forward: Forward, batch: TokenBatch, value: float | None) -> CorruptedBatch:
        """The sequences that the main model is to judge."""
        return self.propose(forward, batch)[0]

    def summary(self, sums: Tensor) -> dict[str, float | None]:
        """`loss` is the whole objective; `mlm_loss` and `rtd_loss` are its parts."""
        row = detection.detection_summary(sums[2:])
        mlm_loss, accuracy = (sums[:2] / sums[2 + detection.MASKED]).tolist()
        total = mlm_loss + self.settings.loss_weight * (row["loss"] or 0.0)
        return row | {"loss": total, "mlm_loss": mlm_loss, "rtd_loss": row["loss"], "accuracy": accuracy}

    def heldout_sums(self, forward: Forward, batch: TokenBatch, value: float | None) -> Tensor:
        """The sums of `loss`, then those of each token."""
        corrupted, mlm_sum, correct = self.propose(forward, batch)
        _, sums = detection.detect(forward, corrupted)
        head = torch.stack([mlm_sum.double(), correct.double()])
        return torch.cat([head, sums, detection.token_sums(corrupted, self.vocabulary_size)])

    def reference_sums(self, forward: Forward, batch: TokenBatch, value: float | None) -> Tensor:
        return detection.token_sums(self.corrupt(forward, batch, value), self.vocabulary_size)

    def heldout_summary(self, sums: Tensor, reference: Tensor) -> dict[str, float | None]:
        """`heldout_loss` is that of detection, as for objective rtd; `heldout_mlm_loss` the auxiliary's."""
        mlm_loss, accuracy = (sums[:2] / sums[2 + detection.MASKED]).tolist()
        own = {"heldout_mlm_loss": mlm_loss, "heldout_mlm_accuracy": accuracy}
        return detection.heldout_detection(sums[2:], reference) | own

    def exports(self, weights: dict[str, Tensor]) -> list[Export]:
        """The main model; and the auxiliary, which Fast-ELECTRA can be given as `auxiliary.run=RUN/auxiliary`."""
        main, auxiliary = self.model.split(weights)
        return [
            Export("model", "rtd", self.model.main.encoder.settings, main),
            Export("auxiliary/model", "mlm", self.model.auxiliary.encoder.settings, auxiliary),
        ]
