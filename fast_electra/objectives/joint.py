"""L_MLM + lambda L_RTD: the auxiliary trained together with the main model, as in ELECTRA and METRO (section 2)."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fast_electra.batch import CorruptedBatch, Draws, TokenBatch
from fast_electra.corruption import Masking, mask, replace
from fast_electra.model.encoder import Encoder
from fast_electra.model.joint import SHARINGS, JointModel
from fast_electra.objectives import detection
from fast_electra.objectives.detection import Judged
from fast_electra.objectives.mlm import masked_loss
from fast_electra.objectives.objective import Export, Forward, Row, Sums, export
from fast_electra.objectives.rtd import replaced_loss
from fast_electra.settings import Settings, one_of
from fast_electra_kernels import sample_logits


class JointSettings(Settings):
    """How the two models are trained together. The paper's lambda is 70 for base and 50 for large (Table 3)."""

    loss_weight: float = Field(default=50.0, gt=0.0, le=1_000_000)  # lambda
    auxiliary_layers: int = Field(default=4, ge=1, le=1000)  # Table 2; all else is as in `model`
    embedding_sharing: Annotated[str, one_of(SHARINGS)] = "shared"


class Joint:
    """Mean of -log p(x_i | i, x_masked) over masked positions, plus lambda times L_RTD over all tokens."""

    name = "joint"
    parameter: str | None = None
    sources: tuple[str, ...] = ("heldout", "reference")

    def __init__(self, model: JointModel, settings: JointSettings, masking: Masking) -> None:
        """Train both models of `model` on the positions that `masking` chooses."""
        self.model, self.settings, self.masking = model, settings, masking

    def strength(self, u: float) -> None:
        """Return None: the auxiliary's own progress is the curriculum."""
        return None

    def judge(self, forward: Forward, batch: TokenBatch, strength: float | None) -> Judged:
        """Corrupt the batch by draws from the auxiliary and return it with the main model's logits."""
        return detection.judge(forward, self._corrupt(forward, batch)[0])

    def loss(self, forward: Forward, batch: TokenBatch, strength: float | None) -> tuple[Tensor, Sums]:
        """See `Objective`; the sums are those of `masked_loss` and of `detection.detection_sums`."""
        corrupted, mlm_sum, sums = self._corrupt(forward, batch)
        judged = detection.judge(forward, corrupted)
        rtd_sum = replaced_loss(judged)
        loss = mlm_sum / batch.global_masked + self.settings.loss_weight * (rtd_sum / batch.global_tokens)
        return loss, sums | detection.detection_sums(judged, rtd_sum)

    def _corrupt(self, forward: Forward, batch: TokenBatch) -> tuple[CorruptedBatch, Tensor, Sums]:
        """Sequences corrupted by draws from the auxiliary, its sum of losses, and the sums of `masked_loss`."""
        masked = mask(batch, self.masking)
        logits_MV = forward(masked.tokens_T, batch.layout, masked.positions_M)
        mlm_sum, sums = masked_loss(logits_MV, masked)
        with torch.no_grad():
            try:
                tokens_M, statistics = sample_logits(logits_MV.detach(), masked.keys_M, masked.original_M)
                draws = Draws(tokens_M, statistics.entropy_M, statistics.original_M.exp())
            except ValueError:  # NaN or +inf: nothing can be drawn. The loss is not finite: the loop skips the update
                draws = Draws(masked.original_M)
            return replace(masked, draws), mlm_sum, sums

    def summary(self, sums: Sums) -> Row:
        """Return detection's figures, and `loss`, the whole objective, with its parts `mlm_loss` and `rtd_loss`."""
        row = detection.detection_summary(sums)
        mlm_loss, accuracy = (float(sums[name] / sums["masked"]) for name in ("mlm_loss", "correct"))
        total = mlm_loss + self.settings.loss_weight * (row["loss"] or 0.0)
        return row | {"loss": total, "mlm_loss": mlm_loss, "rtd_loss": row["loss"], "accuracy": accuracy}

    def evaluate(self, forward: Forward, batch: TokenBatch, strength: float | None) -> Sums:
        """Return the sums of `loss`, and counts of each token."""
        corrupted, _, sums = self._corrupt(forward, batch)
        counts = detection.token_counts(corrupted, self.model.main.encoder.vocabulary_size)
        if batch.source == "reference":
            return counts
        judged = detection.judge(forward, corrupted)
        return sums | detection.detection_sums(judged, replaced_loss(judged)) | counts

    def evaluation(self, sums: Sums) -> Row:
        """Return a row whose `heldout_loss` is that of detection, as for objective rtd; the auxiliary's beside it."""
        row = self.summary(sums)
        own = {"heldout_mlm_loss": row["mlm_loss"], "heldout_mlm_accuracy": row["accuracy"]}
        return detection.detection_evaluation(sums) | own

    def exports(self, weights: dict[str, Tensor]) -> list[Export]:
        """Return the main model, and the auxiliary, which Fast-ELECTRA can use: `auxiliary.run=RUN/auxiliary`."""
        main, auxiliary = self.model.split(weights)
        encoder = self.model.main.encoder
        assert isinstance(encoder, Encoder)
        return [
            export("model", "rtd", encoder.settings, main),
            export("auxiliary/model", "mlm", self.model.auxiliary.encoder.settings, auxiliary),
        ]
