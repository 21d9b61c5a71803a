"""Steps as one writes them with transformers: joint ELECTRA (Clark et al., 2020), also with a frozen generator."""

import time

import torch
from torch import Tensor, nn
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

from contenders.common import (
    DEVICE,
    MASK,
    MASK_FRACTION,
    PAD,
    SPECIALS,
    TEMPERATURE,
    Sizes,
    Step,
    adam,
    autocast,
    update,
)
from fast_electra.batch import TokenBatch
from fast_electra.model.encoder import EncoderSettings

DISCRIMINATOR_WEIGHT = 50.0  # factor of the discriminator's loss: lambda of ELECTRA


def joint(size: Sizes, dtype: torch.dtype, attention: str) -> Step:
    """Return a step that trains generator and discriminator together, with tied embeddings, and samples at T = 1."""
    generator = ElectraForMaskedLM(_config(size.auxiliary, size.length, attention)).train().to(DEVICE)
    discriminator = ElectraForPreTraining(_config(size.discriminator, size.length, attention)).train().to(DEVICE)
    discriminator.electra.embeddings = generator.electra.embeddings
    both = nn.ModuleList([generator, discriminator])
    optimizer = adam(both)

    def step(batch: TokenBatch) -> Tensor:
        tokens_BL, real_BL = padded(batch)
        mask_BL = mask(tokens_BL)
        masked_BL = tokens_BL.masked_fill(mask_BL, MASK)
        labels_BL = tokens_BL.masked_fill(~mask_BL, -100)
        with autocast(dtype):
            generated = generator(input_ids=masked_BL, attention_mask=real_BL, labels=labels_BL)
            corrupted_BL = _replace(tokens_BL, mask_BL, generated.logits, 1.0)
            replaced_BL = (corrupted_BL != tokens_BL).long()
            detected = discriminator(input_ids=corrupted_BL, attention_mask=real_BL, labels=replaced_BL)
        update(generated.loss + DISCRIMINATOR_WEIGHT * detected.loss, both, optimizer)
        return detected.loss.detach()

    return step


def frozen(size: Sizes, dtype: torch.dtype, attention: str) -> Step:
    """Return a step that trains only the discriminator. The frozen generator is sampled at TEMPERATURE."""
    generator = ElectraForMaskedLM(_config(size.auxiliary, size.length, attention))
    generator.requires_grad_(False).eval().to(DEVICE, dtype)
    discriminator = ElectraForPreTraining(_config(size.discriminator, size.length, attention)).train().to(DEVICE)
    optimizer = adam(discriminator)

    def step(batch: TokenBatch) -> Tensor:
        tokens_BL, real_BL = padded(batch)
        mask_BL = mask(tokens_BL)
        masked_BL = tokens_BL.masked_fill(mask_BL, MASK)
        with torch.no_grad():
            generated = generator(input_ids=masked_BL, attention_mask=real_BL)
        corrupted_BL = _replace(tokens_BL, mask_BL, generated.logits, TEMPERATURE)
        replaced_BL = (corrupted_BL != tokens_BL).long()
        with autocast(dtype):
            detected = discriminator(input_ids=corrupted_BL, attention_mask=real_BL, labels=replaced_BL)
        update(detected.loss, discriminator, optimizer)
        return detected.loss.detach()

    return step


def faster_attention(size: Sizes, dtype: torch.dtype, batches: list[TokenBatch]) -> str:
    """Return `sdpa`, transformers' default, or `eager`, whichever is faster here. On a CPU either can be."""
    steps = {name: joint(size, dtype, name) for name in ("sdpa", "eager")}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(4):
        for name, step in steps.items():
            began = time.perf_counter()
            for batch in batches:
                float(step(batch.to(DEVICE)))
            seconds[name].append(time.perf_counter() - began)
    return min(seconds, key=lambda name: min(seconds[name][1:]))  # the first round warms up


def _config(settings: EncoderSettings, length: int, attention: str) -> ElectraConfig:
    config = ElectraConfig(
        vocab_size=settings.vocabulary_size,
        embedding_size=settings.embedding_size or settings.hidden_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=settings.ffn_size,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.attention_dropout,
        max_position_embeddings=length,
        pad_token_id=PAD,
    )
    config._attn_implementation = attention
    return config


def padded(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Return the tokens, int64 [B, L], and 1 where there is no padding."""
    parts = batch.tokens_T.split(batch.layout.lengths_B.tolist())
    tokens_BL = nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=PAD)
    return tokens_BL, (tokens_BL != PAD).long()


def mask(tokens_BL: Tensor) -> Tensor:
    """Choose 15% of the positions that hold text, bool [B, L]."""
    text_BL = tokens_BL >= SPECIALS
    return (torch.rand(text_BL.shape, device=DEVICE) < MASK_FRACTION) & text_BL


@torch.no_grad()
def _replace(tokens_BL: Tensor, mask_BL: Tensor, logits_BLV: Tensor, temperature: float) -> Tensor:
    """Return the sequences with a draw from softmax(logits / temperature) at each masked position."""
    corrupted_BL = tokens_BL.clone()
    corrupted_BL[mask_BL] = drawn(logits_BLV[mask_BL], temperature)
    return corrupted_BL


def drawn(logits_MV: Tensor, temperature: float) -> Tensor:
    """Return a draw from softmax(logits / temperature) for each row: int64 [M]."""
    logits_MV = logits_MV.float()
    probabilities_MV = (logits_MV if temperature == 1.0 else logits_MV / temperature).softmax(dim=-1)
    return torch.multinomial(probabilities_MV, 1).squeeze(1)
