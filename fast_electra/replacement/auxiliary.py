"""Replacements from a frozen masked language model, made easier by an augmentation (Eq. 1, E.2).

An augmentation acts at one of three sites: the model's output (temperature, interpolation with term frequency), the
model (dropout, attention dropout), or its input (drop token). Its strength is the curriculum's value.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from fast_electra import randomness
from fast_electra.batch import Draws, MaskedBatch
from fast_electra.corpus.tokenizer import Tokenizer
from fast_electra.model.dropout import KeyedDropout
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.replacement.distribution import RANGES, coordinate
from fast_electra.settings import Settings, UserError
from fast_electra_kernels import Pieces, concatenate, envelope, gumbel, logits, row_blocks, sample_with_statistics


class AuxiliarySettings(Settings):
    """Which model draws the replacements, and its precision; `auto` is 16 bit wherever the device computes in it."""

    run: str | None = None  # a run folder of objective `mlm`
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    cuda_graph: bool = True  # on a GPU, the model is replayed as CUDA graphs: faster, for some more memory


class Auxiliary:
    """x_hat ~ p_aux(. | i, x_masked): sampled, never argmax. Each augmentation overrides what it changes."""

    augmentation: str

    def __init__(self, engine: Any, model: MaskedLanguageModel, log_frequency_V: Tensor | None = None) -> None:
        """
        Args:
            engine: the inference engine (any callable with `model`'s signature) around the frozen `model`.
            log_frequency_V: log p_TF, for the augmentation that needs it: float, on the model's device.
        """
        self.engine, self.model = engine, model
        self.log_frequency_V = None if log_frequency_V is None else log_frequency_V.float()
        self.parameter: str | None
        self.parameter, self.floor, *_ = RANGES[self.augmentation]

    @torch.no_grad()
    def sample(self, masked: MaskedBatch, value: float) -> Draws:
        """Draws by Gumbel-max; see `fast_electra_kernels.sample`."""
        hidden_ME = self.hidden(masked, value)
        scale, prior_V = self.output(value)
        original_M = masked.original.tokens_BL.flatten().index_select(0, masked.positions_M)
        with _sampling():
            ids_M, statistics = sample_with_statistics(
                hidden_ME,
                *self.head,
                scale=scale,
                prior_V=prior_V,
                keys_M=masked.keys_M,
                original_M=original_M,
            )
        return Draws(ids_M, statistics.entropy_M, statistics.original_M.exp())

    @property
    def head(self) -> tuple[Tensor, Tensor]:
        """Weight [V, E] and bias [V] of the vocabulary head."""
        return self.model.encoder.embedding.weight, self.model.bias

    def hidden(self, masked: MaskedBatch, value: float) -> Tensor:
        """What the vocabulary head multiplies: [M, E]."""
        return self._run(masked, masked.tokens_BL)

    def output(self, value: float) -> tuple[float, Tensor | None]:
        """Factor of the logits, and what is added to them."""
        return 1.0, None

    def _run(self, masked: MaskedBatch, tokens_BL: Tensor, drop: KeyedDropout | None = None) -> Tensor:
        more = {} if drop is None else {"drop": drop}
        hidden_ME: Tensor = self.engine(
            tokens_BL, masked.original.attended_BL, masked.positions_M, hidden_only=True, **more
        )
        return hidden_ME


class _Linear(Auxiliary):
    """An augmentation of the output, whose log-scores are lines over a coordinate of the value."""

    def lines(self, logits_RV: Tensor, noise_RV: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes and intercepts [R, V] of the perturbed log-scores."""
        raise NotImplementedError

    @torch.no_grad()
    def pieces(self, masked: MaskedBatch, low: float, high: float) -> Pieces:
        """The draws at every coordinate in [low, high]: one product with the head, one set of noise."""
        hidden_ME = self.hidden(masked, self.floor)
        weight_VE, bias_V = self.head
        tokens_V = torch.arange(len(weight_VE), dtype=torch.int32, device=weight_VE.device)
        found = []
        for rows in row_blocks(len(hidden_ME), len(weight_VE), hidden_ME.is_cuda):
            logits_RV = logits(hidden_ME[rows], weight_VE, bias_V)
            noise_RV = gumbel(masked.keys_M[rows], tokens_V)
            with _sampling():
                found.append(envelope(*self.lines(logits_RV, noise_RV), low, high))
        return concatenate(found)


class Temperature(_Linear):
    """softmax(log p_aux / T), Eq. 1: it equals softmax(logits / T), for log p differs by a constant of the position."""

    augmentation = "temperature"

    def output(self, value: float) -> tuple[float, Tensor | None]:
        return coordinate("temperature", value), None

    def lines(self, logits_RV: Tensor, noise_RV: Tensor) -> tuple[Tensor, Tensor]:
        return logits_RV, noise_RV


class TermFrequencyInterpolation(_Linear):
    """p_TF^gamma p_aux^(1 - gamma), normalised: the logarithmic interpolation of E.2."""

    augmentation = "term_frequency_interpolation"

    def output(self, value: float) -> tuple[float, Tensor | None]:
        assert self.log_frequency_V is not None
        gamma = coordinate("gamma", value)
        return 1.0 - gamma, gamma * self.log_frequency_V

    def lines(self, logits_RV: Tensor, noise_RV: Tensor) -> tuple[Tensor, Tensor]:
        assert self.log_frequency_V is not None
        return self.log_frequency_V - logits_RV, logits_RV + noise_RV


class Dropout(Auxiliary):
    """Every activation dropout of the auxiliary at rate gamma, E.2: the embedding's and each residual branch's."""

    augmentation = "dropout"

    def hidden(self, masked: MaskedBatch, value: float) -> Tensor:
        return self._run(masked, masked.tokens_BL, KeyedDropout(_dropout_keys(masked), hidden_rate=value))


class AttentionDropout(Auxiliary):
    """Every attention dropout of the auxiliary at rate gamma, E.2 (drop attention)."""

    augmentation = "attention_dropout"

    def hidden(self, masked: MaskedBatch, value: float) -> Tensor:
        return self._run(masked, masked.tokens_BL, KeyedDropout(_dropout_keys(masked), attention_rate=value))


class DropToken(Auxiliary):
    """[UNK] at the fraction gamma of the non-special tokens of the auxiliary's input, E.2; [MASK] is special."""

    augmentation = "drop_token"

    def hidden(self, masked: MaskedBatch, value: float) -> Tensor:
        return self._run(masked, self.drop(masked, value))

    def drop(self, masked: MaskedBatch, fraction: float) -> Tensor:
        """int64 [B, L]: those with the smallest noise are dropped, so that a falling fraction only restores tokens."""
        b, length = masked.tokens_BL.shape
        device = masked.tokens_BL.device
        position_L = torch.arange(length, device=device)
        lengths_B1 = masked.original.lengths_B.to(device)[:, None]
        eligible_BL = (position_L > 0) & (position_L < lengths_B1 - 1)
        eligible_BL.view(-1)[masked.positions_M] = False
        noise_BL = randomness.key(randomness.DROP_TOKEN, masked.keys_B[:, None], position_L)
        order_BL = noise_BL.masked_fill(~eligible_BL, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)
        count_B1 = (eligible_BL.sum(1, keepdim=True) * fraction + 0.5).floor()
        dropped_BL = torch.zeros_like(eligible_BL).scatter(1, order_BL, position_L.expand(b, -1) < count_B1)
        return masked.tokens_BL.masked_fill(dropped_BL, Tokenizer.unk_id)


AUGMENTATIONS: dict[str, Callable[..., Auxiliary]] = {
    kind.augmentation: kind for kind in (Temperature, TermFrequencyInterpolation, Dropout, AttentionDropout, DropToken)
}


def _dropout_keys(masked: MaskedBatch) -> Tensor:
    return randomness.key(randomness.DROPOUT, masked.keys_B)


@contextmanager
def _sampling() -> Iterator[None]:
    """Turns the sampler's ValueError (NaN or +inf among the logits) into one line for the user."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"the auxiliary model cannot be sampled from ({error}): train or import it again") from None
