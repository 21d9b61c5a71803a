"""T5's buckets, backends beside the definition, the choice of kernels, and sequences that nothing else touches."""

from contextlib import AbstractContextManager
from typing import Any

import deepspeed
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.t5.modeling_t5 import T5Attention

from fast_electra.batch import Layout
from fast_electra.model import attention as attention_module
from fast_electra.model.attention import RelativePositionBias, attention, relative_buckets
from fast_electra.model.dropout import KeyedDropout
from fast_electra.model.encoder import Encoder, EncoderSettings
from fast_electra.model.rectangles import SPARED, rectangles
from fast_electra.settings import UserError

SMALL = EncoderSettings(vocabulary_size=50, layers=2, hidden_size=32, ffn_size=64, heads=4)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (128, 256)])  # Table 3, base and large
def test_buckets_are_those_of_t5(buckets: int, max_distance: int) -> None:
    position = torch.arange(512)
    offset = position[None, :] - position[:, None]
    expected = T5Attention._relative_position_bucket(offset, True, buckets, max_distance)
    assert torch.equal(relative_buckets(offset, buckets, max_distance), expected)


LENGTHS = {"ragged": [17, 3, 40, 17, 39, 1, 120], "full": [24] * 4, "one": [33]}


def inputs(lengths: list[int], device: str = "cpu", d: int = 32) -> tuple[Tensor, Tensor, Layout]:
    """Queries, keys, values [T, 3, H, d] and biases of four heads, float32 leaves, for sequences of these lengths."""
    generator, layout = torch.Generator().manual_seed(0), Layout.of(torch.tensor(lengths)).to(torch.device(device))
    qkv, bias = (
        torch.randn(*shape, generator=generator).to(device).requires_grad_()
        for shape in ((sum(lengths), 3, 4, d), (4, 2 * max(lengths) - 1))
    )
    return qkv, bias, layout


def naive(qkv: Tensor, bias_HR: Tensor, lengths: list[int], dropped: list[Tensor] | None = None) -> Tensor:
    """Each sequence by itself, in float64, with every pair's bias looked up; `dropped` are factors [H, l, l]."""
    outputs = []
    for number, part in enumerate(qkv.double().split(lengths)):
        q, k, v = part.permute(1, 2, 0, 3)
        position = torch.arange(len(part), device=qkv.device)
        bias = bias_HR.double()[:, position[None, :] - position[:, None] + bias_HR.shape[1] // 2]
        p = (q @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(-1)
        outputs.append((p * dropped[number] if dropped else p) @ v)
    return torch.cat([out.transpose(0, 1) for out in outputs])


def gradients(out: Tensor, *leaves: Tensor) -> list[Tensor]:
    """The result and the gradients of a sum that weighs every number differently."""
    weight = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=torch.float64).view(out.shape) ** 3
    return [out.detach(), *torch.autograd.grad((out.double() * weight).sum(), leaves)]


def agree(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        scale = max(1e-3, float(other.abs().max()))
        assert float((one.double() - other.double()).abs().max()) < tolerance * scale


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("backend", ["sdpa", "matmul"])
@pytest.mark.parametrize("device", DEVICES)
def test_every_backend_is_the_definition_in_value_and_gradient(device: str, backend: str, lengths: str) -> None:
    """Triton's kernels have their own tests."""
    qkv, bias, layout = inputs(LENGTHS[lengths], device)
    found = gradients(attention(qkv, bias, layout, backend=backend), qkv, bias)
    agree(found, gradients(naive(qkv, bias, LENGTHS[lengths]), qkv, bias), 1e-5 if device == "cpu" else 2e-3)


@pytest.mark.parametrize("backend", ["sdpa", "matmul"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", DEVICES)
def test_16_bit_agrees_with_the_definition(device: str, dtype: torch.dtype, backend: str) -> None:
    qkv, bias, layout = inputs(LENGTHS["ragged"], device)
    half = [leaf.detach().to(dtype).requires_grad_() for leaf in (qkv, bias)]
    found = gradients(attention(*half, layout, backend=backend), *half)
    assert all(tensor.dtype == dtype for tensor in found)
    agree(found, gradients(naive(*half, LENGTHS["ragged"]), *half), 4e-2)


def test_dropped_probabilities_have_the_same_gradient_as_the_definition() -> None:
    """The backward pass makes the choice again: it must be the choice of the forward pass."""
    qkv, bias, layout = inputs(LENGTHS["ragged"])
    drop = KeyedDropout(attention_rate=0.3, quick=True, site=3)
    keys = drop.query_keys(layout, 4).split(LENGTHS["ragged"])
    factors = [drop.apply(torch.ones(4, len(part), len(part)), part.T, 0.3).double() for part in keys]
    assert abs(float((factors[6] == 0).double().mean()) - 0.3) < 0.01
    found = gradients(attention(qkv, bias, layout, drop), qkv, bias)
    agree(found, gradients(naive(qkv, bias, LENGTHS["ragged"], factors), qkv, bias), 1e-5)


def test_what_is_dropped_depends_on_the_sequence_alone() -> None:
    """Another batch, other neighbours, another order: the same output, so the number of ranks changes nothing."""
    lengths = LENGTHS["ragged"]
    layout, encoder = Layout.of(torch.tensor(lengths), 7 * torch.arange(len(lengths))), Encoder(SMALL).train()
    tokens = torch.randint(5, 50, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    whole = encoder(tokens, layout).split(lengths)
    parts = tokens.split(lengths)
    for number in (6, 0, 2):
        alone = Layout.of(layout.lengths_B[[number]], layout.keys_B[[number]])
        assert torch.allclose(encoder(parts[number], alone), whole[number], atol=1e-5)
        other = Layout.of(layout.lengths_B[[number]], layout.keys_B[[number]] + 1)
        assert not torch.allclose(encoder(parts[number], other), whole[number], atol=0.1)


def test_rectangles_hold_every_token_once_and_little_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    for longest in (64, 128, 512):
        for whole in (False, True):
            lengths_B = torch.randint(longest // 3, longest + 1, (64,), generator=generator)
            layout = Layout.of(lengths_B)
            found = rectangles(layout, whole)
            x_T = torch.arange(len(layout.sequence_T))
            assert torch.equal(found.joined([part.of(x_T) for part in found.parts]), x_T)
            pairs = sum(part.sequences * part.length**2 for part in found.parts)
            assert whole or pairs < int(lengths_B.square().sum()) + SPARED * len(lengths_B)
            assert not whole or len(found.parts) == 1


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> list[set[SDPBackend]]:
    """Kernels that each call of attention allows. Attention is fused, as on an old GPU."""
    seen: list[set[SDPBackend]] = []

    def record(kernels: list[SDPBackend]) -> AbstractContextManager[Any]:
        seen.append(set(kernels))
        return sdpa_kernel(kernels)

    monkeypatch.setattr(attention_module, "sdpa_kernel", record)
    return seen


FUSED = EncoderSettings(**SMALL.model_dump() | {"attention": "sdpa"})


def random_tokens(lengths: list[int], seed: int = 1) -> tuple[Tensor, Layout]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 50, (sum(lengths),), generator=generator), Layout.of(torch.tensor(lengths))


def test_a_frozen_model_may_use_kernels_without_a_gradient_of_the_bias(allowed: list[set[SDPBackend]]) -> None:
    encoder, given = Encoder(FUSED).eval(), random_tokens([24, 24])
    trained = encoder(*given)
    assert SDPBackend.CUDNN_ATTENTION not in set.union(*allowed)
    allowed.clear()
    frozen = encoder.requires_grad_(False)(*given)
    assert all(SDPBackend.CUDNN_ATTENTION in kernels for kernels in allowed) and allowed
    assert torch.equal(trained, frozen)


def test_activation_checkpointing_uses_the_same_kernels_in_both_forward_passes(allowed: list[set[SDPBackend]]) -> None:
    """The first runs without gradients. Under another kernel, dropout would drop other probabilities."""
    encoder = Encoder(FUSED).train()
    encoder.checkpoint = deepspeed.checkpointing.checkpoint
    encoder(*random_tokens([24])).sum().backward()
    assert len(allowed) == 2 * SMALL.layers
    assert SDPBackend.CUDNN_ATTENTION not in set.union(*allowed)


@pytest.mark.parametrize("backend", ["matmul", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_sequence_of_a_batch_has_the_states_and_gradients_that_it_has_alone(
    dtype: torch.dtype, backend: str
) -> None:
    settings = SMALL.model_copy(update={"attention": backend, "dropout": 0.0, "attention_dropout": 0.0})
    encoder, lengths = Encoder(settings).to(dtype).train(), LENGTHS["ragged"]
    torch.nn.init.normal_(encoder.relative_bias.table)
    tokens, layout = random_tokens(lengths)
    weights = torch.randn(sum(lengths), 32, generator=torch.Generator().manual_seed(2)).to(dtype)

    def states_and_gradients(*parts: tuple[Tensor, Layout, Tensor]) -> list[Tensor]:
        encoder.zero_grad()
        states = [encoder(tokens, layout) for tokens, layout, _ in parts]
        sum((state * weight).sum() for state, (_, _, weight) in zip(states, parts, strict=True)).backward()
        return [torch.cat(states).detach(), *(parameter.grad.clone() for parameter in encoder.parameters())]

    alone = [
        (part, Layout.of(torch.tensor([len(part)])), weight)
        for part, weight in zip(tokens.split(lengths), weights.split(lengths), strict=True)
    ]
    found, expected = states_and_gradients((tokens, layout, weights)), states_and_gradients(*alone)
    agree(found, expected, 1e-5 if dtype is torch.float32 else 0.1)


def test_every_layer_shares_one_bias_table_and_there_are_no_absolute_positions() -> None:
    encoder = Encoder(SMALL)
    assert [name for name, _ in encoder.named_parameters() if "table" in name or "position" in name] == [
        "relative_bias.table"
    ]
    with torch.no_grad():
        encoder.eval().relative_bias.table.zero_()
        tokens, layout = random_tokens([20], seed=2)
        order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
        assert torch.allclose(encoder(tokens, layout)[order], encoder(tokens[order], layout), atol=1e-5)


def test_local_start_falls_with_distance_and_has_a_side_per_head() -> None:
    bias = RelativePositionBias(32, 128, 4, "local")(40).detach()
    zero = RelativePositionBias(32, 128, 4, "zero")(40)
    assert not zero.any()
    right, left = bias[:, 40:], bias[:, :39].flip(-1)  # by distance 1, 2, ...
    assert (right.diff() <= 0).all() and (left.diff() <= 0).all()
    assert (left[0::2] > right[0::2]).all() and (right[1::2] > left[1::2]).all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_tritons_kernels_train_as_the_other_backends_do(monkeypatch: pytest.MonkeyPatch, checkpointing: bool) -> None:
    """Their own tests compare every gradient with float64; this one is about how the encoder calls them."""
    pytest.importorskip("triton")
    monkeypatch.setattr("fast_electra.model.encoder.choose", lambda name, *_: name)
    given, results = random_tokens([40, 25]), []
    for backend in ("matmul", "triton"):
        settings = EncoderSettings(
            vocabulary_size=50, layers=2, hidden_size=64, ffn_size=64, heads=2, dropout=0.0, attention_dropout=0.0,
            attention=backend,
        )  # fmt: skip
        torch.manual_seed(0)
        encoder = Encoder(settings).train()
        encoder.relative_bias.table.data.normal_()
        if checkpointing:
            encoder.checkpoint = deepspeed.checkpointing.checkpoint
        out = encoder(*given)
        (out * torch.linspace(-1, 1, 64).roll(7) ** 3).sum().backward()
        results.append([out.detach(), *(parameter.grad for parameter in encoder.parameters())])
    for expected, found in zip(*results, strict=True):
        assert found.isfinite().all()
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("backend", ["triton", "matmul"])
def test_dropout_is_the_same_when_checkpointing_repeats_it(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr("fast_electra.model.encoder.choose", lambda *_: backend)
    gradients = []
    for checkpoint in (None, deepspeed.checkpointing.checkpoint):
        torch.manual_seed(0)
        encoder = Encoder(EncoderSettings(vocabulary_size=50, layers=2, hidden_size=64, ffn_size=64, heads=2)).train()
        encoder.checkpoint = checkpoint
        encoder(*random_tokens([20, 12])).sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_tritons_kernels_are_refused_where_they_cannot_run() -> None:
    settings = EncoderSettings(**SMALL.model_dump() | {"attention": "triton"})
    with pytest.raises(UserError, match=r"fast_electra\.model\.attention: triton needs an Ampere GPU"):
        Encoder(settings).train()(*random_tokens([24]))
