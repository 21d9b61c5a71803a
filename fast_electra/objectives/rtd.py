"""L_RTD: replaced-token detection against a given distribution of replacements (section 2). This is Fast-ELECTRA."""

import torch
from torch import Tensor

from fast_electra.batch import CorruptedBatch, TokenBatch
from fast_electra.corruption import corrupt
from fast_electra.curriculum import CurriculumSettings
from fast_electra.model.heads import Discriminator
from fast_electra.objectives import detection
from fast_electra.objectives.objective import Export, Forward
from fast_electra.replacement.distribution import Distribution


class RTD:
    """Mean binary cross-entropy of "this token was replaced" over all non-padding tokens."""

    name = "rtd"

    def __init__(
        self,
        model: Discriminator,
        distribution: Distribution,
        curriculum: CurriculumSettings,
        *,
        seed: int,
        mask_fraction: float,
        mask_id: int,
    ) -> None:
        self.model, self.distribution, self.curriculum = model, distribution, curriculum
        self.seed, self.mask_fraction, self.mask_id = seed, mask_fraction, mask_id
        self.parameter: str | None = distribution.parameter
        self.reference_size = 2 * model.encoder.settings.vocabulary_size
        self.heldout_size = detection.SIZE + self.reference_size

    def value(self, u: float) -> float:
        """The curriculum's value: the temperature T(u) of Eq. 2, or another distribution's gamma(u)."""
        return self.curriculum.value(u, self.distribution.floor)

    def corrupt(self, forward: Forward, batch: TokenBatch, value: float | None) -> CorruptedBatch:
        """The sequences that the model is to judge; made without it."""
        assert value is not None
        return corrupt(
            batch, self.distribution, value, seed=self.seed, fraction=self.mask_fraction, mask_id=self.mask_id
        )

    def loss(self, forward: Forward, batch: TokenBatch, value: float | None) -> tuple[Tensor, Tensor]:
        """The sums are those of `detection.detection_sums`."""
        return detection.detect(forward, self.corrupt(forward, batch, value))

    def summary(self, sums: Tensor) -> dict[str, float | None]:
        return detection.detection_summary(sums)

    def heldout_sums(self, forward: Forward, batch: TokenBatch, value: float | None) -> Tensor:
        """The sums of `loss`, then those of each token."""
        corrupted = self.corrupt(forward, batch, value)
        return torch.cat([detection.detect(forward, corrupted)[1], self._token_sums(corrupted)])

    def reference_sums(self, forward: Forward, batch: TokenBatch, value: float | None) -> Tensor:
        """Training sequences tell how often each token is a replacement."""
        return self._token_sums(self.corrupt(forward, batch, value))

    def heldout_summary(self, sums: Tensor, reference: Tensor) -> dict[str, float | None]:
        return detection.heldout_detection(sums, reference)

    def exports(self, weights: dict[str, Tensor]) -> list[Export]:
        return [Export("model", "rtd", self.model.encoder.settings, weights)]

    def _token_sums(self, corrupted: CorruptedBatch) -> Tensor:
        return detection.token_sums(corrupted, self.model.encoder.settings.vocabulary_size)
