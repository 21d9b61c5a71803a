"""L_RTD: replaced-token detection against a given distribution of replacements (section 2). This is Fast-ELECTRA."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fast_electra.batch import CorruptedBatch, TokenBatch
from fast_electra.corruption.corrupt import corrupt
from fast_electra.curriculum import CurriculumSettings
from fast_electra.model.heads import Discriminator
from fast_electra.objectives.objective import Forward
from fast_electra.replacement.distribution import Distribution

# The AUC is read off two histograms of the logits, which add over ranks as single scores would not.
BINS, RANGE = 1024, 16.0
PRIOR = 10.0  # sightings of a token that weigh as much as the mean rate of all tokens


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
        self.vocabulary_size = model.encoder.settings.vocabulary_size

    def value(self, u: float) -> float:
        """The temperature T(u), Eq. 2."""
        return self.curriculum.value(u, self.distribution.floor)

    def corrupt(self, batch: TokenBatch, value: float) -> CorruptedBatch:
        return corrupt(
            batch, self.distribution, value, seed=self.seed, fraction=self.mask_fraction, mask_id=self.mask_id
        )

    def loss(self, forward: Forward, batch: TokenBatch, value: float | None) -> tuple[Tensor, Tensor]:
        """Sums: loss, tokens, replaced ones, predicted replaced, rightly so; then the two histograms of the logits."""
        assert value is not None
        return self.detect(forward, self.corrupt(batch, value))

    def detect(self, forward: Forward, corrupted: CorruptedBatch) -> tuple[Tensor, Tensor]:
        """The loss of given corrupted sequences."""
        batch = corrupted.masked.original
        logits_BL = forward(corrupted.tokens_BL, batch.attended_BL).float()
        replaced_BL, real_BL = corrupted.replaced_BL, batch.real_BL
        loss_BL = F.binary_cross_entropy_with_logits(logits_BL, replaced_BL.float(), reduction="none")
        loss_sum = (loss_BL * real_BL).sum()
        return loss_sum / batch.global_tokens, detection_sums(loss_sum, logits_BL, replaced_BL, real_BL)

    def summary(self, sums: Tensor) -> dict[str, float | None]:
        loss_sum, tokens, replaced, predicted, right = sums[:5].tolist()
        return {
            "loss": loss_sum / tokens,
            "replaced_fraction": replaced / tokens,
            "recall": right / replaced if replaced else None,
            "precision": right / predicted if predicted else None,
            "auc": auc(sums[5 : 5 + BINS], sums[5 + BINS : 5 + 2 * BINS]),
        }

    @property
    def heldout_size(self) -> int:
        return 5 + 2 * BINS + self.reference_size

    @property
    def reference_size(self) -> int:
        return 2 * self.vocabulary_size

    def heldout_sums(self, forward: Forward, batch: TokenBatch, value: float | None) -> Tensor:
        """The sums of `loss`, then those of each token."""
        assert value is not None
        corrupted = self.corrupt(batch, value)
        return torch.cat([self.detect(forward, corrupted)[1], self.token_sums(corrupted)])

    def reference_sums(self, batch: TokenBatch, value: float | None) -> Tensor:
        """Training sequences tell how often each token is a replacement."""
        assert value is not None
        return self.token_sums(self.corrupt(batch, value))

    def token_sums(self, corrupted: CorruptedBatch) -> Tensor:
        """How often each token stood unreplaced, then how often as a replacement: float64 [2 V]."""
        sums = torch.zeros(self.reference_size, dtype=torch.float64, device=corrupted.tokens_BL.device)
        index_BL = corrupted.tokens_BL + self.vocabulary_size * corrupted.replaced_BL
        return sums.scatter_add_(0, index_BL.flatten(), corrupted.masked.original.real_BL.flatten().double())

    def heldout_summary(self, sums: Tensor, reference: Tensor) -> dict[str, float | None]:
        row = {f"heldout_{name}": figure for name, figure in self.summary(sums).items()}
        identity = auc_token_identity(sums[5 + 2 * BINS :].view(2, -1), reference.view(2, -1))
        return row | {"heldout_auc_token_identity": identity}


@torch.no_grad()
def detection_sums(loss_sum: Tensor, logits_BL: Tensor, replaced_BL: Tensor, real_BL: Tensor) -> Tensor:
    """The additive figures of one micro-batch, float64 [5 + 2 BINS]; nothing here waits for the device."""
    predicted_BL = (logits_BL > 0) & real_BL
    counts = torch.stack([real_BL.sum(), replaced_BL.sum(), predicted_BL.sum(), (predicted_BL & replaced_BL).sum()])
    # A NaN logit falls into the first bin: the update is skipped and said to be so elsewhere.
    level_BL = ((logits_BL.nan_to_num() + RANGE) * (BINS / (2 * RANGE))).long().clamp(0, BINS - 1)
    histograms = torch.zeros(2 * BINS, dtype=torch.float64, device=logits_BL.device)
    histograms.scatter_add_(0, (level_BL + BINS * replaced_BL).flatten(), real_BL.flatten().double())
    return torch.cat([loss_sum.detach().double()[None], counts.double(), histograms])


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
