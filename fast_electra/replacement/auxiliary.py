"""Replacements from a frozen masked language model, smoothed by a temperature (Eq. 1)."""

from typing import Any, Literal

import torch
from torch import Tensor

from fast_electra.batch import MaskedBatch
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.settings import Settings, UserError
from fast_electra_kernels import sample


class AuxiliarySettings(Settings):
    """Which model draws the replacements, and its precision; `auto` is 16 bit wherever the device computes in it."""

    run: str | None = None  # a run folder of objective `mlm`
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"


class ReplacementSettings(Settings):
    """What stands at the masked positions."""

    distribution: Literal["auxiliary"] = "auxiliary"
    augmentation: Literal["temperature"] = "temperature"


class Auxiliary:
    """x_hat ~ softmax(log p_aux(. | i, x_masked) / T): sampled, never argmax.

    softmax(log p / T) equals softmax(logits / T), since log p differs from the logits by a constant of the position.
    """

    floor = 1.0

    def __init__(self, engine: Any, model: MaskedLanguageModel) -> None:
        """
        Args:
            engine: the inference engine (any callable with `model`'s signature) around the frozen `model`.
        """
        self.engine, self.model = engine, model

    @torch.no_grad()
    def sample(self, masked: MaskedBatch, value: float) -> Tensor:
        hidden_ME = self.engine(masked.tokens_BL, masked.original.attended_BL, masked.positions_M, hidden_only=True)
        weight_VE, bias_V = self.model.encoder.embedding.weight, self.model.bias
        try:
            return sample(hidden_ME, weight_VE, bias_V, scale=1.0 / value, keys_M=masked.keys_M)
        except ValueError as error:
            raise UserError(f"the auxiliary model cannot be sampled from ({error}): train or import it again") from None
