"""The BERT encoder of the paper: post-LN layers, T5 relative position bias, Admin's residual scales (C.1)."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from fast_electra.model.attention import RelativePositionBias, attention, attention_of_distances, runs_triton
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
        self.heads, self.dropout, self.attention_dropout = settings.heads, settings.dropout, settings.attention_dropout
        self.backend = None if settings.attention in ("auto", "triton") else settings.attention
        self.qkv = nn.Linear(d, 3 * d)
        self.attention_output = nn.Linear(d, d)
        self.attention_norm = nn.LayerNorm(d)
        self.attention_omega = nn.Parameter(torch.ones(d))
        self.ffn_input = nn.Linear(d, settings.ffn_size)
        self.ffn_output = nn.Linear(settings.ffn_size, d)
        self.ffn_norm = nn.LayerNorm(d)
        self.ffn_omega = nn.Parameter(torch.ones(d))

    def mix(self, x_BLD: Tensor, bias: Tensor, padding: Tensor | None, drop: KeyedDropout | None = None) -> Tensor:
        """Return the mixed values of the heads, [B, L, D]: the attention branch before its output projection.

        See `attention` for `bias` and `padding`, and `Encoder.forward` for `drop`.
        """
        b, length, d = x_BLD.shape
        qkv = self.qkv(x_BLD).view(b, length, 3, self.heads, d // self.heads)
        if bias.dim() == 2:
            rate = self.attention_dropout if self.training else 0.0
            return attention_of_distances(qkv, bias, padding, rate).view(b, length, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.training:
            mixed_BHLd = attention(q, k, v, bias, padding, self.attention_dropout, self.backend)
        elif drop is not None and drop.attention_rate > 0.0:
            mixed_BHLd = attention(q, k, v, bias, padding, drop.attention, backend="matmul")
        else:
            mixed_BHLd = attention(q, k, v, bias, padding, backend="sdpa")
        return mixed_BHLd.transpose(1, 2).reshape(b, length, d)

    def feed(self, x_BLD: Tensor) -> Tensor:
        """Return the feed-forward branch, before dropout and residual."""
        return self.ffn_output(F.gelu(self.ffn_input(x_BLD)))

    def forward(
        self,
        x_BLD: Tensor,
        bias: Tensor,
        padding: Tensor | None = None,
        positions_M: Tensor | None = None,
        drop: KeyedDropout | None = None,
    ) -> Tensor:
        """Return [B, L, D]; with `positions_M`, only the rows [M, D] at these flat positions. See also `mix`."""
        length = x_BLD.shape[1]

        def dropout(x: Tensor, branch: int) -> Tensor:
            if drop is not None:
                return drop.hidden(x, branch, positions_M, length)
            return F.dropout(x, self.dropout, self.training)

        mixed = self.mix(x_BLD, bias, padding, drop)
        if positions_M is not None:
            mixed, x_BLD = (t.flatten(0, 1).index_select(0, positions_M) for t in (mixed, x_BLD))
        x = self.attention_norm(x_BLD * self.attention_omega + dropout(self.attention_output(mixed), 0))
        return self.ffn_norm(x * self.ffn_omega + dropout(self.feed(x), 1))


class Encoder(nn.Module):
    """Token ids [B, L] to hidden states [B, L, D]. Nothing attends to padding, where hidden states are undefined."""

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

    def embed(self, tokens_BL: Tensor) -> Tensor:
        """Return the input of the first layer, [B, L, D]."""
        x_BLD = self.embedding_norm(self.embedding_projection(self.embedding(tokens_BL)))
        return F.dropout(x_BLD, self.settings.dropout, self.training)

    def forward(
        self,
        tokens_BL: Tensor,
        real_BL: Tensor | None = None,
        positions_M: Tensor | None = None,
        drop: KeyedDropout | None = None,
    ) -> Tensor:
        """Return hidden states [B, L, D]; with `positions_M`, int64, only those at these flat positions, [M, D].

        The last layer then computes no others. `real_BL` is False at padding; None if there is none, which is faster.
        `drop` says what to drop in eval mode, if an augmentation asks for it.
        """
        x_BLD = self.embed(tokens_BL)
        if drop is not None:
            x_BLD = drop.hidden(x_BLD, 0, None, tokens_BL.shape[1])
        padding: Tensor | None = None
        drops_probabilities = drop is not None and drop.attention_rate > 0.0  # only `matmul` does so by key
        if not drops_probabilities and runs_triton(self.settings.attention, x_BLD, self.settings.heads):
            bias = self.relative_bias.of_distances(tokens_BL.shape[1])
            padding = None if real_BL is None else real_BL.sum(1, dtype=torch.int32)
        else:
            bias = self.relative_bias(tokens_BL.shape[1])[None]
        if (
            real_BL is not None and padding is None
        ):  # the lowest finite number, because a row of -inf alone would become NaN
            lowest = torch.finfo(bias.dtype).min
            padding = torch.zeros_like(real_BL, dtype=bias.dtype).masked_fill_(~real_BL, lowest)[:, None, None]
        checkpoint = self.checkpoint if self.training and torch.is_grad_enabled() else None
        for number, layer in enumerate(self.layers, start=1):
            inputs: tuple[Any, ...] = (x_BLD, bias, padding, positions_M if layer is self.layers[-1] else None)
            if drop is not None:
                inputs = (*inputs, drop.of_layer(number))
            x_BLD = checkpoint(layer, *inputs) if checkpoint else layer(*inputs)
        return x_BLD
