"""The BERT encoder of the paper: post-LN layers, T5 relative position bias, Admin's residual scales (C.1)."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from fast_electra.batch import Layout
from fast_electra.model.attention import RelativePositionBias, attention, choose
from fast_electra.model.dropout import KeyedDropout
from fast_electra.settings import Settings


class EncoderSettings(Settings):
    """Sizes of an encoder (Table 2), its position encoding (Table 3), and how it starts and is regularised."""

    vocabulary_size: int = Field(ge=6, le=16_777_216)
    layers: int = Field(ge=1, le=1000)
    hidden_size: int = Field(ge=1, le=65_536)
    ffn_size: int = Field(ge=1, le=262_144)
    heads: int = Field(ge=1, le=1024)
    embedding_size: int | None = Field(default=None, ge=1, le=65_536)  # None: hidden_size; ELECTRA-small has less
    relative_buckets: int = Field(default=32, ge=4, le=65_536)
    relative_max_distance: int = Field(default=128, ge=2, le=65_536)
    relative_start: Literal["zero", "local"] = "zero"
    initialization: Literal["admin", "bert"] = "admin"
    initial_std: float = Field(default=0.02, gt=0.0, le=1.0)
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    attention_dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    activation_checkpointing: bool = False
    attention: Literal["auto", "triton", "sdpa", "matmul"] = "auto"  # which backend; see `model.attention`

    @model_validator(mode="after")
    def _divisible(self) -> "EncoderSettings":
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        if self.relative_buckets % 4 or self.relative_max_distance <= self.relative_buckets // 4:
            raise ValueError(
                f"relative_buckets ({self.relative_buckets}) must be a multiple of 4, and "
                f"relative_max_distance ({self.relative_max_distance}) over a quarter of it"
            )
        return self


class EncoderLayer(nn.Module):
    """x = LN(x * omega + f(x)), where f is attention, then feed-forward. Omega is Admin's scale, else 1."""

    def __init__(self, settings: EncoderSettings) -> None:
        """Make the weights; `initialize` fills them."""
        super().__init__()
        d = settings.hidden_size
        self.heads = settings.heads
        self.qkv = nn.Linear(d, 3 * d)
        self.attention_output = nn.Linear(d, d)
        self.attention_norm = nn.LayerNorm(d)
        self.attention_omega = nn.Parameter(torch.ones(d))
        self.ffn_input = nn.Linear(d, settings.ffn_size)
        self.ffn_output = nn.Linear(settings.ffn_size, d)
        self.ffn_norm = nn.LayerNorm(d)
        self.ffn_omega = nn.Parameter(torch.ones(d))

    def mix(
        self, x_TD: Tensor, bias_HR: Tensor, layout: Layout, backend: str, drop: KeyedDropout | None = None
    ) -> Tensor:
        """Return the mixed values of the heads, [T, D]: the attention branch before its output projection."""
        qkv_T3Hd = self.qkv(x_TD).unflatten(1, (3, self.heads, -1))
        return attention(qkv_T3Hd, bias_HR, layout, drop, backend).flatten(1)

    def feed(self, x_TD: Tensor) -> Tensor:
        """Return the feed-forward branch, before dropout and residual."""
        return self.ffn_output(F.gelu(self.ffn_input(x_TD)))

    def forward(
        self,
        x_TD: Tensor,
        bias_HR: Tensor,
        layout: Layout,
        backend: str,
        positions_M: Tensor | None = None,
        drop: KeyedDropout | None = None,
    ) -> Tensor:
        """Return [T, D]; with `positions_M`, only the rows [M, D] of these tokens. See also `attention`."""

        def dropout(x: Tensor, branch: int) -> Tensor:
            return x if drop is None else drop.hidden(x, branch, layout, positions_M)

        mixed = self.mix(x_TD, bias_HR, layout, backend, drop)
        if positions_M is not None:
            mixed, x_TD = (x.index_select(0, positions_M) for x in (mixed, x_TD))
        x = self.attention_norm(x_TD * self.attention_omega + dropout(self.attention_output(mixed), 0))
        return self.ffn_norm(x * self.ffn_omega + dropout(self.feed(x), 1))


class Encoder(nn.Module):
    """Token ids [T] to hidden states [T, D], each sequence by itself."""

    def __init__(self, settings: EncoderSettings) -> None:
        """Make the weights; `initialize` fills them."""
        super().__init__()
        self.settings = settings
        self.hidden_size, self.vocabulary_size = settings.hidden_size, settings.vocabulary_size
        embedding_size = settings.embedding_size or settings.hidden_size
        self.embedding = nn.Embedding(settings.vocabulary_size, embedding_size)
        projected = embedding_size != self.hidden_size
        self.embedding_projection = nn.Linear(embedding_size, self.hidden_size) if projected else nn.Identity()
        self.embedding_norm = nn.LayerNorm(settings.hidden_size)
        self.relative_bias = RelativePositionBias(
            settings.relative_buckets, settings.relative_max_distance, settings.heads, settings.relative_start
        )
        self.layers = nn.ModuleList(EncoderLayer(settings) for _ in range(settings.layers))
        # The training engine sets its activation checkpointing here. It is called as checkpoint(layer, *inputs).
        self.checkpoint: Callable[..., Any] | None = None

    def embed(self, tokens_T: Tensor) -> Tensor:
        """Return the input of the first layer, before dropout: [T, D]."""
        x_TD: Tensor = self.embedding_norm(self.embedding_projection(self.embedding(tokens_T)))
        return x_TD

    def forward(
        self, tokens_T: Tensor, layout: Layout, positions_M: Tensor | None = None, drop: KeyedDropout | None = None
    ) -> Tensor:
        """Return hidden states [T, D]; with `positions_M`, int64, only those of these tokens, [M, D].

        The last layer then computes no others. `drop` says what to drop in eval mode, if an augmentation asks for it.
        """
        settings, x_TD = self.settings, self.embed(tokens_T)
        head_size = settings.hidden_size // settings.heads
        if self.training:
            drop = KeyedDropout(settings.dropout, settings.attention_dropout, quick=True)
        if drop is not None:
            x_TD = drop.hidden(x_TD, 0, layout)
        backend, bias_HR = choose(settings.attention, x_TD, head_size, drop), self.relative_bias(layout.longest)
        checkpoint = self.checkpoint if self.training and torch.is_grad_enabled() else None
        for number, layer in enumerate(self.layers, start=1):
            read_M = positions_M if layer is self.layers[-1] else None
            inputs = (x_TD, bias_HR, layout, backend, read_M, None if drop is None else drop.of_layer(number))
            x_TD = checkpoint(layer, *inputs) if checkpoint else layer(*inputs)
        return x_TD
