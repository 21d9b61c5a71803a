"""Heads that transformers lacks, on encoders that it has. An export holds a copy, which runs if its user trusts it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LayoutLMv3Config, LayoutLMv3Model, MPNetConfig, MPNetModel, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput, TokenClassifierOutput
from transformers.models.layoutlmv3.modeling_layoutlmv3 import LayoutLMv3PreTrainedModel
from transformers.models.mpnet.modeling_mpnet import MPNetPreTrainedModel


class ReplacedTokenDetection(PreTrainedModel):
    """For each token, the logit of "this token was replaced": [B, L]."""

    encoder_class: Any

    def __init__(self, config: Any) -> None:
        """Make the layers; `from_pretrained` fills them."""
        super().__init__(config)
        encoder = self.encoder_class(config)
        encoder.pooler = None  # MPNet's, which an export has no weights for
        setattr(self, self.base_model_prefix, encoder)
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, **inputs: Any) -> TokenClassifierOutput:
        """Return the logits; the inputs are those of the encoder."""
        hidden_BLD = self.base_model(input_ids, **inputs)[0]
        return TokenClassifierOutput(logits=self.output(F.gelu(self.transform(hidden_BLD))).squeeze(-1))


class MPNetForReplacedTokenDetection(ReplacedTokenDetection, MPNetPreTrainedModel):
    """With an encoder of 32 buckets and distance 128."""

    config_class, encoder_class = MPNetConfig, MPNetModel


class LayoutLMv3ForReplacedTokenDetection(ReplacedTokenDetection, LayoutLMv3PreTrainedModel):
    """With any other encoder."""

    config_class, encoder_class = LayoutLMv3Config, LayoutLMv3Model


class LayoutLMv3ForMaskedLM(LayoutLMv3PreTrainedModel):
    """Logits of the vocabulary, [B, L, V]. The head is tied to the word embeddings if those have its size."""

    config_class = LayoutLMv3Config

    def __init__(self, config: Any) -> None:
        """Make the layers; `from_pretrained` fills them."""
        super().__init__(config)
        size, vocabulary = config.masked_lm_size, config.vocab_size
        self.layoutlmv3 = LayoutLMv3Model(config)
        self.transform = nn.Linear(config.hidden_size, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.decoder = None if size == config.hidden_size else nn.Linear(size, vocabulary, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, **inputs: Any) -> MaskedLMOutput:
        """Return the logits; the inputs are those of the encoder."""
        hidden_BLD = self.layoutlmv3(input_ids, **inputs)[0]
        table_VE = (self.decoder or self.layoutlmv3.get_input_embeddings()).weight
        return MaskedLMOutput(logits=F.linear(self.norm(F.gelu(self.transform(hidden_BLD))), table_VE, self.bias))
