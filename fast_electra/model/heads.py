"""The two models: an encoder with a masked-language-model head, and one with a replaced-token-detection head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast_electra.model.dropout import KeyedDropout
from fast_electra.model.encoder import Encoder, EncoderSettings
from fast_electra.model.initialize import initialize


class MaskedLanguageModel(nn.Module):
    """p(. | i, x_masked): the auxiliary model. Its head is tied to the embedding and sees masked positions only."""

    def __init__(self, settings: EncoderSettings, seed: int = 0) -> None:
        super().__init__()
        self.encoder = Encoder(settings)
        embedding_size = self.encoder.embedding.embedding_dim
        self.transform = nn.Linear(settings.hidden_size, embedding_size)
        self.norm = nn.LayerNorm(embedding_size)
        self.bias = nn.Parameter(torch.zeros(settings.vocabulary_size))
        initialize(self, self.encoder, seed)

    def forward(
        self,
        tokens_BL: Tensor,
        real_BL: Tensor | None,
        positions_M: Tensor,
        hidden_only: bool = False,
        drop: KeyedDropout | None = None,
    ) -> Tensor:
        """Logits at the masked positions, [M, V]; with `hidden_only`, the [M, E] from which a sampler makes them.

        `drop` drops some of what a frozen model computes, where an augmentation asks for it.
        """
        hidden_MD = self.encoder(tokens_BL, real_BL, positions_M, drop)
        hidden_ME = self.norm(F.gelu(self.transform(hidden_MD)))
        return hidden_ME if hidden_only else F.linear(hidden_ME, self.encoder.embedding.weight, self.bias)


class Discriminator(nn.Module):
    """The main model: for each position, the logit of "this token was replaced"."""

    def __init__(self, settings: EncoderSettings, seed: int = 0) -> None:
        super().__init__()
        self.encoder = Encoder(settings)
        self.transform = nn.Linear(settings.hidden_size, settings.hidden_size)
        self.output = nn.Linear(settings.hidden_size, 1)
        initialize(self, self.encoder, seed)

    def forward(self, tokens_BL: Tensor, real_BL: Tensor | None) -> Tensor:
        """Logits of replacement, [B, L]."""
        return self.output(F.gelu(self.transform(self.encoder(tokens_BL, real_BL)))).squeeze(-1)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, tied ones once: the figures of Table 2."""
    return sum(parameter.numel() for parameter in model.parameters())
