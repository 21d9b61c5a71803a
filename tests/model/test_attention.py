"""T5's buckets, the agreement of backends and devices, the choice of kernels, and padding that nothing attends to."""

from contextlib import AbstractContextManager
from typing import Any

import deepspeed
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.t5.modeling_t5 import T5Attention

from fast_electra.model import attention as attention_module
from fast_electra.model.attention import BACKENDS, RelativePositionBias, attention, relative_buckets
from fast_electra.model.encoder import Encoder, EncoderSettings
from fast_electra.settings import UserError

SMALL = EncoderSettings(vocabulary_size=50, layers=2, hidden_size=32, ffn_size=64, heads=4)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (128, 256)])  # Table 3, base and large
def test_buckets_are_those_of_t5(buckets: int, max_distance: int) -> None:
    position = torch.arange(512)
    offset = position[None, :] - position[:, None]
    expected = T5Attention._relative_position_bucket(offset, True, buckets, max_distance)
    assert torch.equal(relative_buckets(512, buckets, max_distance), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backends_agree_in_value_and_gradient(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 4, 17, 8, generator=generator).to(dtype) for _ in range(3))
    bias = torch.randn(1, 4, 17, 17, generator=generator).to(dtype)
    padding = torch.zeros(3, 1, 1, 17, dtype=dtype)
    padding[1, :, :, 12:] = torch.finfo(dtype).min
    results = []
    for backend in BACKENDS:
        leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v, bias)]
        attention(*leaves, padding, backend=backend).square().sum().backward()
        results.append([attention(q, k, v, bias, padding, backend=backend)] + [leaf.grad for leaf in leaves])
    for found, expected in zip(results[0], results[1], strict=True):
        assert torch.allclose(found.float(), expected.float(), atol=1e-5 if dtype is torch.float32 else 0.05, rtol=0.02)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_device_and_dtype_agrees_with_fp32_on_the_cpu(device: str, backend: str, dtype: torch.dtype) -> None:
    """In value and in all gradients."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, 4, 128, 64, generator=generator) for _ in range(3)]
    tensors.append(torch.randn(1, 4, 128, 128, generator=generator))
    results = []
    for to, kind in (("cpu", torch.float32), (device, dtype)):
        leaves = [tensor.to(to, kind, copy=True).requires_grad_() for tensor in tensors]
        out = attention(*leaves, backend=backend)
        out.float().square().sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    tolerance = 2e-3 if dtype is torch.float32 else 4e-2
    for expected, found in zip(*results, strict=True):
        assert found.dtype == dtype
        assert float((found.float().cpu() - expected).abs().max()) < tolerance * float(expected.abs().max())


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> list[set[SDPBackend]]:
    """Kernels that each call of attention allows. Attention is fused in training too, as on a GPU."""
    seen: list[set[SDPBackend]] = []

    def record(kernels: list[SDPBackend]) -> AbstractContextManager[Any]:
        seen.append(set(kernels))
        return sdpa_kernel(kernels)

    monkeypatch.setattr(attention_module, "sdpa_kernel", record)
    monkeypatch.setitem(BACKENDS, "matmul", BACKENDS["sdpa"])
    return seen


def test_a_frozen_model_may_use_kernels_without_a_gradient_of_the_bias(allowed: list[set[SDPBackend]]) -> None:
    encoder, tokens = Encoder(SMALL).eval(), torch.randint(5, 50, (2, 24))
    trained = encoder(tokens)
    assert SDPBackend.CUDNN_ATTENTION not in set.union(*allowed)
    allowed.clear()
    frozen = encoder.requires_grad_(False)(tokens)
    assert all(SDPBackend.CUDNN_ATTENTION in kernels for kernels in allowed) and allowed
    assert torch.equal(trained, frozen)


def test_activation_checkpointing_uses_the_same_kernels_in_both_forward_passes(allowed: list[set[SDPBackend]]) -> None:
    """The first runs without gradients. Under another kernel, dropout would drop other probabilities."""
    encoder, tokens = Encoder(SMALL).train(), torch.randint(5, 50, (2, 24))
    encoder.checkpoint = deepspeed.checkpointing.checkpoint
    encoder(tokens).sum().backward()
    assert len(allowed) == 2 * SMALL.layers
    assert SDPBackend.CUDNN_ATTENTION not in set.union(*allowed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_changes_nothing(dtype: torch.dtype) -> None:
    encoder = Encoder(SMALL).to(dtype).eval()
    tokens = torch.randint(5, 50, (2, 24), generator=torch.Generator().manual_seed(1))
    real = torch.ones(2, 24, dtype=torch.bool)
    real[1, 15:] = False
    other = tokens.clone()
    other[1, 15:] = 7
    assert torch.equal(encoder(tokens, real)[real], encoder(other, real)[real])
    alone = encoder(tokens[1:, :15])
    assert torch.allclose(encoder(tokens, real)[1:, :15], alone, atol=1e-5 if dtype is torch.float32 else 0.05)


def test_every_layer_shares_one_bias_table_and_there_are_no_absolute_positions() -> None:
    encoder = Encoder(SMALL)
    assert [name for name, _ in encoder.named_parameters() if "table" in name or "position" in name] == [
        "relative_bias.table"
    ]
    with torch.no_grad():
        encoder.eval().relative_bias.table.zero_()
        tokens = torch.randint(5, 50, (1, 20), generator=torch.Generator().manual_seed(2))
        order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
        assert torch.allclose(encoder(tokens)[:, order], encoder(tokens[:, order]), atol=1e-5)


def test_local_start_falls_with_distance_and_has_a_side_per_head() -> None:
    bias = RelativePositionBias(32, 128, 4, "local")(40).detach()
    zero = RelativePositionBias(32, 128, 4, "zero")(40)
    assert not zero.any()
    right, left = bias[:, 0, 1:], bias[:, -1, :-1].flip(-1)  # by distance 1, 2, ...
    assert (right.diff() <= 0).all() and (left.diff() <= 0).all()
    assert (left[0::2] > right[0::2]).all() and (right[1::2] > left[1::2]).all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_tritons_kernels_train_as_the_other_backends_do(monkeypatch: pytest.MonkeyPatch, checkpointing: bool) -> None:
    """Their own tests compare every gradient with float64; this one is about how the encoder calls them."""
    pytest.importorskip("triton")
    monkeypatch.setattr("fast_electra.model.encoder.runs_triton", lambda name, *_: name == "triton")
    tokens = torch.randint(5, 50, (2, 40), generator=torch.Generator().manual_seed(1))
    real = torch.ones(2, 40, dtype=torch.bool)
    real[1, 25:] = False
    results = []
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
        out = encoder(tokens, real)
        (out[real] * torch.linspace(-1, 1, 64).roll(7) ** 3).sum().backward()
        results.append([out[real].detach(), *(parameter.grad for parameter in encoder.parameters())])
    for expected, found in zip(*results, strict=True):
        assert found.isfinite().all()
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_tritons_dropout_is_the_same_when_checkpointing_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr("fast_electra.model.encoder.runs_triton", lambda *_: True)
    tokens = torch.randint(5, 50, (2, 20), generator=torch.Generator().manual_seed(1))
    gradients = []
    for checkpoint in (None, deepspeed.checkpointing.checkpoint):
        torch.manual_seed(0)
        encoder = Encoder(EncoderSettings(vocabulary_size=50, layers=2, hidden_size=64, ffn_size=64, heads=2)).train()
        encoder.checkpoint = checkpoint
        encoder(tokens).sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_tritons_kernels_are_refused_where_they_cannot_run() -> None:
    settings = EncoderSettings(**SMALL.model_dump() | {"attention": "triton"})
    with pytest.raises(UserError, match=r"fast_electra\.model\.attention: triton needs an Ampere GPU"):
        Encoder(settings).train()(torch.randint(5, 50, (2, 24)))
