"""The spine: original sequences to corrupted ones. Training online and preprocessing offline both run these lines."""

from pydantic import Field

from fast_electra.batch import CorruptedBatch, Draws, MaskedBatch, TokenBatch
from fast_electra.corruption.masking import mask
from fast_electra.replacement.distribution import Distribution
from fast_electra.settings import Settings


class CorruptionSettings(Settings):
    """What is masked. The paper: 15% of the positions, special tokens never (appendix B)."""

    mask_fraction: float = Field(default=0.15, gt=0.0, lt=1.0)


def corrupt(
    batch: TokenBatch, distribution: Distribution, value: float, *, seed: int, fraction: float, mask_id: int
) -> CorruptedBatch:
    """Masks the batch, draws a replacement for each masked position, and puts it in.

    Args:
        value: the curriculum's value at this update: the temperature T of Eq. 1, or another distribution's gamma.
    """
    masked = mask(batch, seed, fraction, mask_id)
    draws = distribution.sample(masked, value)
    return replace(masked, draws)


def replace(masked: MaskedBatch, draws: Draws) -> CorruptedBatch:
    """The corrupted sequences and their labels 1(x_hat != x): a lucky guess counts as original (section 2)."""
    original_BL = masked.original.tokens_BL
    tokens_BL = original_BL.flatten().index_copy(0, masked.positions_M, draws.tokens_M).view_as(original_BL)
    return CorruptedBatch(masked=masked, tokens_BL=tokens_BL, draws=draws, replaced_BL=tokens_BL != original_BL)
