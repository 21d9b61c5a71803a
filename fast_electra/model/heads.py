"""The two models: an encoder with a masked-language-model head, and one with a replaced-token-detection head."""

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

    def __init__(self, encoder: TokenEncoder) -> None:
        """Put a new head on an encoder, an `nn.Module` that keeps its weights; `new` makes both."""
        super().__init__()
        self.encoder = encoder
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
        logits_T: Tensor = self.output(F.gelu(self.transform(self.encoder(tokens_T, layout)))).squeeze(-1)
        return logits_T


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters (Table 2). A tied one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
