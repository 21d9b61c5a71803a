"""The models: an encoder with a head for masked tokens, for replaced tokens, or for whole sequences."""

from collections.abc import Callable
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast_electra.batch import Layout
from fast_electra.model.dropout import KeyedDropout
from fast_electra.model.encoder import Encoder, EncoderSettings
from fast_electra.model.initialize import initialize


class TokenEncoder(Protocol):
    """What a main model must offer: ours does, and any existing encoder can."""

    hidden_size: int  # D
    vocabulary_size: int  # V

    def __call__(self, tokens_T: Tensor, layout: Layout) -> Tensor:
        """Return hidden states [T, D] from int64 tokens; the layout says which tokens are a sequence."""


class MaskedLanguageModel(nn.Module):
    """p(. | i, x_masked): the auxiliary model. Its head is tied to the embedding and reads masked positions only."""

    def __init__(self, settings: EncoderSettings, seed: int = 0) -> None:
        """Build a new model, whose initial weights the seed determines."""
        super().__init__()
        self.encoder = Encoder(settings)
        embedding_size = self.encoder.embedding.embedding_dim
        self.transform = nn.Linear(settings.hidden_size, embedding_size)
        self.norm = nn.LayerNorm(embedding_size)
        self.bias = nn.Parameter(torch.zeros(settings.vocabulary_size))
        initialize(self, self.encoder, seed)

    def forward(
        self,
        tokens_T: Tensor,
        layout: Layout,
        positions_M: Tensor,
        hidden_only: bool = False,
        drop: KeyedDropout | None = None,
    ) -> Tensor:
        """Return logits at the masked positions, [M, V]; if `hidden_only`, what the vocabulary head multiplies, [M, E].

        See `Encoder.forward` for the other arguments.
        """
        hidden_MD = self.encoder(tokens_T, layout, positions_M, drop)
        hidden_ME = self.norm(F.gelu(self.transform(hidden_MD)))
        return hidden_ME if hidden_only else F.linear(hidden_ME, *self.head)

    def hidden(self, tokens_T: Tensor, layout: Layout, positions_M: Tensor, drop: KeyedDropout | None = None) -> Tensor:
        """Return what the vocabulary head multiplies, [M, E]; see `forward`."""
        hidden_ME: Tensor = self(tokens_T, layout, positions_M, hidden_only=True, drop=drop)
        return hidden_ME

    @property
    def head(self) -> tuple[Tensor, Tensor]:
        """Weight [V, E] and bias [V] of the vocabulary head."""
        return self.encoder.embedding.weight, self.bias


class Discriminator(nn.Module):
    """The main model: for each token, the logit of "this token was replaced"."""

    def __init__(self, encoder: TokenEncoder, activation: Callable[[Tensor], Tensor] = F.gelu) -> None:
        """Put a new head on an encoder, an `nn.Module` that keeps its weights; `new` makes both."""
        super().__init__()
        self.encoder, self.activation = encoder, activation
        self.transform = nn.Linear(encoder.hidden_size, encoder.hidden_size)
        self.output = nn.Linear(encoder.hidden_size, 1)

    @classmethod
    def new(cls, settings: EncoderSettings, seed: int = 0) -> Self:
        """Build a new model, whose initial weights the seed determines."""
        encoder = Encoder(settings)
        model = cls(encoder)
        initialize(model, encoder, seed)
        return model

    def forward(self, tokens_T: Tensor, layout: Layout) -> Tensor:
        """Return logits of replacement, [T]."""
        x_TD = self.states(tokens_T, layout)
        logits_T: Tensor = self.output(self.activation(self.transform(x_TD))).squeeze(-1)
        return logits_T

    def states(self, tokens_T: Tensor, layout: Layout) -> Tensor:
        """Return what the head reads, [T, D]."""
        return self.encoder(tokens_T, layout)


class DebertaDiscriminator(Discriminator):
    """The main model with DeBERTaV3's head, which adds the state of [CLS] to each."""

    def __init__(self, encoder: TokenEncoder, eps: float) -> None:
        """Put a new head on an encoder; `eps` is that of its LayerNorm."""
        super().__init__(encoder)
        self.norm = nn.LayerNorm(encoder.hidden_size, eps)

    def states(self, tokens_T: Tensor, layout: Layout) -> Tensor:
        """Return what the head reads, [T, D]."""
        x_TD = self.encoder(tokens_T, layout)
        first_T = layout.starts_B.long()[layout.sequence_T]
        summed_TD: Tensor = self.norm(x_TD + x_TD.index_select(0, first_T))
        return summed_TD


class SequenceClassifier(nn.Module):
    """The model of fine-tuning (C.1): logits of a sequence's classes, or one number, from the state of [CLS]."""

    def __init__(self, encoder: Encoder, outputs: int) -> None:
        """Put a new head with C = `outputs` outputs on an encoder, which keeps its weights."""
        super().__init__()
        self.encoder = encoder
        self.transform = nn.Linear(encoder.hidden_size, encoder.hidden_size)
        self.output = nn.Linear(encoder.hidden_size, outputs)

    @classmethod
    def new(cls, settings: EncoderSettings, outputs: int, seed: int = 0) -> Self:
        """Build a new model, whose initial weights the seed determines."""
        encoder = Encoder(settings)
        model = cls(encoder, outputs)
        initialize(model, encoder, seed)
        return model

    def forward(self, tokens_T: Tensor, layout: Layout) -> Tensor:
        """Return [B, C]. The head drops as the encoder's residual branches do, as if it were one layer more."""
        first_B, settings = layout.starts_B.long(), self.encoder.settings
        x_BD = self.encoder(tokens_T, layout, first_B)
        if not self.training or settings.dropout == 0.0:
            logits_BC: Tensor = self.output(torch.tanh(self.transform(x_BD)))
            return logits_BC
        drop = KeyedDropout(settings.dropout, quick=True).of_layer(settings.layers + 1)
        x_BD = torch.tanh(self.transform(drop.hidden(x_BD, 0, layout, first_B)))
        dropped: Tensor = self.output(drop.hidden(x_BD, 1, layout, first_B))
        return dropped


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters (Table 2). A tied one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
