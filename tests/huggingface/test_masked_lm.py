"""Masked language models of transformers as the auxiliary: the rows that the head reads, and the draws."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fast_electra.batch import Layout, MaskedBatch, TokenBatch
from fast_electra.corruption import Masking, mask
from fast_electra.huggingface.masked_lm import HuggingFaceMaskedLM, open_masked_lm
from fast_electra.replacement.auxiliary import DropToken, Temperature, TermFrequencyInterpolation
from fast_electra.settings import UserError
from fast_electra.training.engines import inference_engine
from fast_electra_kernels import gumbel

transformers = pytest.importorskip("transformers")
from huggingface.zoo import FAMILIES, PAD, config_of, masked_lm  # noqa: E402 (it needs transformers)

SIZE, NEVER_DRAWN = 200, (0, 1, 2, 3, 4, 150)
ONE_LAYER = {"hidden_size": 32, "num_hidden_layers": 1}
LENGTHS = torch.tensor([40, 9, 26])


def batch() -> MaskedBatch:
    """Three sequences of random tokens, none of them special, masked."""
    layout = Layout.of(LENGTHS, torch.tensor([11, 12, 13]))
    tokens_T = torch.randint(5, SIZE, (int(LENGTHS.sum()),), generator=torch.Generator().manual_seed(1))
    tokens_T[layout.position_T == 0] = 2
    tokens_T[layout.starts_B + layout.sizes_B - 1] = 3
    return mask(TokenBatch(tokens_T, layout, torch.arange(3)), Masking(0.3, 4))


def own_logits(model: Any, masked: MaskedBatch) -> torch.Tensor:
    """Return the model's own logits at the masked positions [M, V], each sequence computed without padding."""
    parts = []
    for tokens in masked.tokens_T.split(LENGTHS.tolist()):
        parts.append(model(input_ids=tokens[None]).logits[0])
    return torch.cat(parts)[masked.positions_M, :SIZE]


def winners(logits_MV: torch.Tensor, masked: MaskedBatch, never: tuple[int, ...] = NEVER_DRAWN) -> torch.Tensor:
    """Return the draws by definition: the highest logit plus noise."""
    scores_MV = logits_MV + gumbel(masked.keys_M, torch.arange(SIZE, dtype=torch.int32))
    scores_MV[:, list(never)] = -torch.inf
    return scores_MV.argmax(1)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_draws_are_those_of_the_models_own_logits(tmp_path: Path, family: str) -> None:
    theirs, masked = masked_lm(tmp_path, family), batch()
    opened, _ = open_masked_lm(tmp_path, SIZE, PAD, NEVER_DRAWN, 64)
    before = {name: weight.clone() for name, weight in opened.state_dict().items()}
    model = inference_engine(opened, "fp32")
    for temperature in (1.0, 2.0):
        drawn = Temperature(model, 1).sample(masked, temperature)
        assert torch.equal(drawn.tokens_M, winners(own_logits(theirs, masked) / temperature, masked))
    logits_MV = own_logits(theirs, masked)
    logits_MV[:, list(NEVER_DRAWN)] = -torch.inf
    wanted_M = logits_MV.softmax(1).gather(1, masked.original_M[:, None])[:, 0]
    found_M = Temperature(model, 1).sample(masked, 1.0).original_probability_M
    torch.testing.assert_close(found_M, wanted_M, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(weight, before[name]) for name, weight in opened.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in opened.modules())


@pytest.mark.parametrize("family", ["deberta", "deberta-v2"])
def test_deberta_of_both_forms_of_head(tmp_path: Path, family: str) -> None:
    theirs, masked = masked_lm(tmp_path, family, legacy=False), batch()
    opened, _ = open_masked_lm(tmp_path, SIZE, PAD, NEVER_DRAWN, 64)
    with torch.no_grad():
        drawn = Temperature(opened, 1).sample(masked, 1.5)
        assert torch.equal(drawn.tokens_M, winners(own_logits(theirs, masked) / 1.5, masked))


@torch.no_grad()
def test_debertav3s_generator_has_its_enhanced_mask_decoder(tmp_path: Path) -> None:
    """The reference follows Microsoft's code: the last layer twice, with positions in the queries only."""
    from safetensors.torch import load_file, save_file

    theirs, masked = masked_lm(tmp_path, "deberta-v2", legacy=False), batch()
    positions_LD = torch.randn(72, 32, generator=torch.Generator().manual_seed(3))
    weights = load_file(tmp_path / "model.safetensors")
    weights["deberta.embeddings.position_embeddings.weight"] = positions_LD
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    opened, notes = open_masked_lm(tmp_path, SIZE, PAD, NEVER_DRAWN, 64)
    body, head, wanted = theirs.deberta, theirs.lm_predictions.lm_head, []
    for tokens in masked.tokens_T.split(LENGTHS.tolist()):
        ids, ones = tokens[None], torch.ones_like(tokens)[None]
        states = body(input_ids=ids, attention_mask=ones, output_hidden_states=True).hidden_states[-2]
        query, layer = states + positions_LD[: len(tokens)], body.encoder.layer[-1]
        for _ in range(2):
            (query,) = layer(
                states,
                body.encoder.get_attention_mask(ones),
                query_states=query,
                relative_pos=body.encoder.get_rel_pos(states),
                rel_embeddings=body.encoder.get_rel_embedding(),
                output_attentions=False,
            )[:1]
        hidden = head.LayerNorm(torch.nn.functional.gelu(head.dense(query[0])))
        wanted.append(hidden @ body.embeddings.word_embeddings.weight.T + head.bias)
    logits_MV = torch.cat(wanted)[masked.positions_M, :SIZE]
    drawn = Temperature(opened, 1).sample(masked, 1.5)
    assert torch.equal(drawn.tokens_M, winners(logits_MV / 1.5, masked))
    plain_MV = own_logits(theirs, masked)
    assert (plain_MV - logits_MV).abs().max() > 0.1  # what transformers' own class would draw from
    assert notes == []


def test_an_augmentation_of_the_input_or_the_output_works(tmp_path: Path) -> None:
    masked_lm(tmp_path, "bert")
    opened, _ = open_masked_lm(tmp_path, SIZE, PAD, NEVER_DRAWN, 64)
    masked, log_frequency_V = batch(), torch.full((SIZE,), -5.0)
    for distribution in (TermFrequencyInterpolation(opened, 1, log_frequency_V), DropToken(opened, 1)):
        tokens_M = distribution.sample(masked, 0.5).tokens_M
        assert not set(tokens_M.tolist()) & set(NEVER_DRAWN)
    with pytest.raises(UserError, match=r"has no \[UNK\]"):
        DropToken(opened, None).sample(masked, 0.5)


def test_rotary_angles_stay_in_fp32(tmp_path: Path) -> None:
    masked_lm(tmp_path, "modernbert")
    opened, _ = open_masked_lm(tmp_path, SIZE, PAD, NEVER_DRAWN, 64)
    before = {name: buffer.clone() for name, buffer in opened.named_buffers() if buffer.is_floating_point()}
    assert before
    inference_engine(opened, "bf16")
    now = dict(opened.named_buffers())
    assert all(now[name].dtype == torch.float32 and torch.equal(now[name], buffer) for name, buffer in before.items())
    assert opened.head[0].dtype == opened.head[1].dtype == torch.bfloat16


@torch.no_grad()
def test_in_bf16_the_draws_are_mostly_those_of_fp32(tmp_path: Path) -> None:
    theirs, masked = masked_lm(tmp_path, "bert"), batch()
    opened, _ = open_masked_lm(tmp_path, SIZE, PAD, NEVER_DRAWN, 64)
    drawn = Temperature(inference_engine(opened, "bf16"), 1).sample(masked, 1.0)
    same = (drawn.tokens_M == winners(own_logits(theirs, masked), masked)).float().mean()
    assert same > 0.8


@pytest.mark.parametrize(
    ("family", "more", "why"),
    [
        ("fnet", ONE_LAYER | {"intermediate_size": 48}, "reads the padding"),
        ("convbert", ONE_LAYER | {"embedding_size": 16, "num_attention_heads": 2}, "reads the padding"),
        ("bart", {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1}, "an encoder with a decoder"),
    ],
)
def test_models_that_cannot_be_an_auxiliary(tmp_path: Path, family: str, more: dict[str, Any], why: str) -> None:
    masked_lm(tmp_path, family, **more)
    with pytest.raises(UserError, match=why):
        open_masked_lm(tmp_path, SIZE, PAD, NEVER_DRAWN, 64)


def test_too_few_positions(tmp_path: Path) -> None:
    masked_lm(tmp_path, "roberta", max_position_embeddings=66)  # two of them before the first token
    assert isinstance(open_masked_lm(tmp_path, SIZE, PAD, (), 64)[0], HuggingFaceMaskedLM)
    with pytest.raises(UserError, match="66 positions, not enough for sequences of 66 tokens"):
        open_masked_lm(tmp_path, SIZE, PAD, (), 66)


def test_a_config_alone_is_no_auxiliary(tmp_path: Path) -> None:
    config_of("bert").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds no weights"):
        open_masked_lm(tmp_path, SIZE, PAD, (), 64)
