"""Replacements from a frozen masked language model, made easier by an augmentation (Eq. 1, E.2).

An augmentation acts on one of three things: the model's output (temperature, interpolation with term frequency), the
model (dropout, attention dropout), or its input (drop token): the methods `output`, `dropout` and `input` of
`Auxiliary`. The curriculum sets its strength.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fast_electra import randomness
from fast_electra.batch import Draws, Layout, MaskedBatch
from fast_electra.model.dropout import KeyedDropout
from fast_electra.replacement.distribution import GAMMA, TEMPERATURE, Range, axis_position
from fast_electra.settings import UserError
from fast_electra_kernels import Pieces, concatenate, envelope, gumbel, logits, row_blocks, sample_with_statistics


class FrozenMaskedLM(Protocol):
    """What an auxiliary model must offer. Ours does, and any existing masked language model can."""

    @property
    def head(self) -> tuple[Tensor, Tensor]:
        """Weight [V, E] and bias [V] of the vocabulary head."""
        ...

    def hidden(self, tokens_T: Tensor, layout: Layout, positions_M: Tensor, drop: KeyedDropout | None = None) -> Tensor:
        """Return what the vocabulary head multiplies, at the tokens `positions_M`: [M, E].

        `drop` says what to drop inside the model.
        """
        ...


class Auxiliary:
    """Draws x_hat ~ p_aux(. | i, x_masked), and never takes the most likely token instead.

    Each augmentation overrides the one method that it changes. The paper searches for the best gamma_max of each
    augmentation but does not print it, so the initial values are ours.
    """

    range: ClassVar[Range]  # of the strength
    needs_frequency: ClassVar[bool] = False  # whether the augmentation needs log p_TF

    def __init__(self, model: FrozenMaskedLM, unk_id: int | None, log_frequency_V: Tensor | None = None) -> None:
        """Draw from `model`.

        Args:
            model: the frozen auxiliary.
            unk_id: what `DropToken` puts in the place of a token; None if the tokenizer has no such id.
            log_frequency_V: log p_TF on the model's device, or None if `needs_frequency` is False.
        """
        self.model, self.unk_id = model, unk_id
        self.log_frequency_V = None if log_frequency_V is None else log_frequency_V.float()
        self.parameter: str | None = self.range.parameter
        self.floor = self.range.floor

    @torch.no_grad()
    def sample(self, masked: MaskedBatch, strength: float) -> Draws:
        """Draw by Gumbel-max; see `fast_electra_kernels.sample`."""
        hidden_ME, (scale, prior_V) = self.hidden(masked, strength), self.output(strength)
        keys_M, original_M = masked.keys_M, masked.original_M
        with _sampling():
            ids_M, statistics = sample_with_statistics(
                hidden_ME, *self.model.head, scale=scale, prior_V=prior_V, keys_M=keys_M, original_M=original_M
            )
        return Draws(ids_M, statistics.entropy_M, statistics.original_M.exp())

    def hidden(self, masked: MaskedBatch, strength: float) -> Tensor:
        """Return what the vocabulary head multiplies: [M, E]."""
        tokens_T, drop = self.input(masked, strength), self.dropout(masked, strength)
        return self.model.hidden(tokens_T, masked.layout, masked.positions_M, drop)

    def input(self, masked: MaskedBatch, strength: float) -> Tensor:
        """Return the model's input, int64 [T]."""
        return masked.tokens_T

    def dropout(self, masked: MaskedBatch, strength: float) -> KeyedDropout | None:
        """Return what is dropped inside the model."""
        return None

    def output(self, strength: float) -> tuple[float, Tensor | None]:
        """Return the factor of the logits, and what is added to them: [V] or None."""
        return 1.0, None


class OutputAugmentation(Auxiliary):
    """An augmentation of the output. Its log-scores are straight lines over the axis: 1/T, or gamma."""

    def lines(self, logits_RV: Tensor, noise_RV: Tensor) -> tuple[Tensor, Tensor]:
        """Return slopes and intercepts [R, V] of the perturbed log-scores."""
        raise NotImplementedError

    @torch.no_grad()
    def pieces(self, masked: MaskedBatch, low: float, high: float) -> Pieces:
        """Return the draws at every point of the axis in [low, high]. The head is applied once."""
        hidden_ME = self.hidden(masked, self.floor)
        weight_VE, bias_V = self.model.head
        tokens_V = torch.arange(len(weight_VE), dtype=torch.int32, device=weight_VE.device)
        found = []
        for rows in row_blocks(len(hidden_ME), len(weight_VE), hidden_ME.is_cuda):
            logits_RV = logits(hidden_ME[rows], weight_VE, bias_V)
            noise_RV = gumbel(masked.keys_M[rows], tokens_V)
            with _sampling():
                found.append(envelope(*self.lines(logits_RV, noise_RV), low, high))
        return concatenate(found)


class Temperature(OutputAugmentation):
    """softmax(log p_aux / T), Eq. 1. It equals softmax(logits / T), because log p is a logit minus a constant."""

    range = TEMPERATURE

    def output(self, strength: float) -> tuple[float, Tensor | None]:
        """Return 1/T, and nothing to add."""
        return axis_position("temperature", strength), None

    def lines(self, logits_RV: Tensor, noise_RV: Tensor) -> tuple[Tensor, Tensor]:
        """Return lines over 1/T."""
        return logits_RV, noise_RV


class TermFrequencyInterpolation(OutputAugmentation):
    """p_TF^gamma p_aux^(1 - gamma), normalised: the logarithmic interpolation of E.2."""

    range = GAMMA._replace(initial=0.5)
    needs_frequency = True

    def output(self, strength: float) -> tuple[float, Tensor | None]:
        """Return 1 - gamma and gamma log p_TF."""
        assert self.log_frequency_V is not None
        gamma = axis_position("gamma", strength)
        return 1.0 - gamma, gamma * self.log_frequency_V

    def lines(self, logits_RV: Tensor, noise_RV: Tensor) -> tuple[Tensor, Tensor]:
        """Return lines over gamma."""
        assert self.log_frequency_V is not None
        return self.log_frequency_V - logits_RV, logits_RV + noise_RV


class Dropout(Auxiliary):
    """Every activation dropout of the auxiliary at rate gamma, E.2: after the embedding and in each residual branch."""

    range = GAMMA._replace(highest=0.99, initial=0.5)

    def dropout(self, masked: MaskedBatch, strength: float) -> KeyedDropout:
        """Return a dropout of activations."""
        return KeyedDropout(hidden_rate=strength)


class AttentionDropout(Auxiliary):
    """Every attention dropout of the auxiliary at rate gamma, E.2 (drop attention)."""

    range = GAMMA._replace(highest=0.99, initial=0.5)

    def dropout(self, masked: MaskedBatch, strength: float) -> KeyedDropout:
        """Return a dropout of attention."""
        return KeyedDropout(attention_rate=strength)


class DropToken(Auxiliary):
    """[UNK] for a fraction gamma of the auxiliary's input tokens, other than special tokens and [MASK], E.2."""

    range = GAMMA._replace(initial=0.5)

    def input(self, masked: MaskedBatch, strength: float) -> Tensor:
        """Drop the tokens with the smallest noise, so that a falling strength only restores tokens."""
        layout = masked.layout
        eligible_T = layout.maskable_T.index_fill(0, masked.positions_M, False)
        noise_T = randomness.key(randomness.DROP_TOKEN, layout.keys_B[layout.sequence_T], layout.position_T)
        eligible_B = torch.zeros_like(layout.keys_B).index_add(0, layout.sequence_T, eligible_T.long())
        count_B = (eligible_B * strength + 0.5).floor()
        order_T = layout.order(noise_T, eligible_T)
        dropped_T = torch.zeros_like(eligible_T)
        dropped_T[order_T] = layout.position_T < count_B[layout.sequence_T]
        if self.unk_id is None:
            raise UserError("the tokenizer has no [UNK], which augmentation drop_token needs: use another augmentation")
        return masked.tokens_T.masked_fill(dropped_T, self.unk_id)


AUGMENTATIONS: dict[str, type[Auxiliary]] = {
    "temperature": Temperature,
    "term_frequency_interpolation": TermFrequencyInterpolation,
    "dropout": Dropout,
    "attention_dropout": AttentionDropout,
    "drop_token": DropToken,
}


@contextmanager
def _sampling() -> Iterator[None]:
    """Turn the sampler's ValueError (NaN or +inf among the logits) into a UserError."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"the auxiliary model cannot be sampled from ({error}): train or import it again") from None
