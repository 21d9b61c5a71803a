"""L_RTD: replaced-token detection against a given distribution of replacements (section 2). This is Fast-ELECTRA."""

import torch.nn.functional as F
from torch import Tensor

from fast_electra.batch import CorruptedBatch, TokenBatch
from fast_electra.corruption import Masking, corrupt
from fast_electra.curriculum import CurriculumSettings
from fast_electra.model.heads import Discriminator
from fast_electra.objectives import detection
from fast_electra.objectives.detection import Judged
from fast_electra.objectives.objective import Export, Forward, Sums, export_main_model
from fast_electra.replacement.distribution import Distribution


class RTD:
    """Mean binary cross-entropy of "this token was replaced" over all tokens."""

    name = "rtd"
    sources: tuple[str, ...] = ("heldout", "reference")
    summary = staticmethod(detection.detection_summary)
    evaluation = staticmethod(detection.detection_evaluation)

    def __init__(
        self, model: Discriminator, distribution: Distribution, curriculum: CurriculumSettings, masking: Masking
    ) -> None:
        """Train `model` to find the replacements that `distribution` draws at the strength of `curriculum`."""
        self.model, self.distribution, self.curriculum, self.masking = model, distribution, curriculum, masking
        self.parameter: str | None = distribution.parameter

    def strength(self, u: float) -> float:
        """Return the temperature T(u) of Eq. 2, or gamma(u)."""
        return self.curriculum.strength(u, self.distribution.floor)

    def judge(self, forward: Forward, batch: TokenBatch, strength: float | None) -> Judged:
        """Corrupt the batch and return it with the model's logits."""
        return detection.judge(forward, self._corrupt(batch, strength))

    def _corrupt(self, batch: TokenBatch, strength: float | None) -> CorruptedBatch:
        assert strength is not None
        return corrupt(batch, self.masking, self.distribution, strength)

    def loss(self, forward: Forward, batch: TokenBatch, strength: float | None) -> tuple[Tensor, Sums]:
        """See `Objective`; the sums are those of `detection.detection_sums`."""
        judged = self.judge(forward, batch, strength)
        loss_sum = replaced_loss(judged)
        return loss_sum / batch.global_tokens, detection.detection_sums(judged, loss_sum)

    def evaluate(self, forward: Forward, batch: TokenBatch, strength: float | None) -> Sums:
        """See `Objective`. Of reference sequences only the tokens are counted: the model does not run."""
        corrupted = self._corrupt(batch, strength)
        counts = detection.token_counts(corrupted, self.model.encoder.vocabulary_size)
        if batch.source == "reference":
            return counts
        judged = detection.judge(forward, corrupted)
        return detection.detection_sums(judged, replaced_loss(judged)) | counts

    def exports(self, weights: dict[str, Tensor]) -> list[Export]:
        """Return the main model."""
        return [export_main_model(self.model, weights)]


def replaced_loss(judged: Judged) -> Tensor:
    """Return the sum of the binary cross-entropy of "this token was replaced" over all tokens."""
    return F.binary_cross_entropy_with_logits(judged.logits_T, judged.corrupted.replaced_T.float(), reduction="sum")
