"""What only a GPU can show: that it agrees with the CPU. Skipped where there is none; see `benchmarks/gpu.sh`."""

import pytest
import torch

from fast_electra import randomness
from fast_electra.model.attention import BACKENDS, attention
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import Discriminator
from fast_electra_kernels import gumbel, sample

pytestmark = pytest.mark.gpu


def test_noise_is_that_of_the_cpu() -> None:
    keys, tokens = randomness.key(1, torch.arange(64)), torch.arange(5000, dtype=torch.int32)
    on_gpu = gumbel(keys.cuda(), tokens.cuda()).cpu()
    assert torch.allclose(on_gpu, gumbel(keys, tokens), atol=1e-5)
    assert torch.equal(randomness.key(1, torch.arange(64).cuda()).cpu(), keys)


def test_draws_are_those_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2000, 64, generator=generator), torch.randn(3000, 64, generator=generator) * 0.3
    keys = randomness.key(2, torch.arange(2000))
    on_cpu = sample(hidden, weight, scale=0.5, keys_M=keys)
    on_gpu = sample(hidden.cuda(), weight.cuda(), scale=0.5, keys_M=keys.cuda()).cpu()
    assert float((on_cpu != on_gpu).float().mean()) < 2e-3  # ties of rounding


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_agrees_with_the_cpu(backend: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, 4, 128, 64, generator=generator) for _ in range(3)]
    bias = torch.randn(1, 4, 128, 128, generator=generator)
    grads = []
    for device, kind in (("cpu", torch.float32), ("cuda", dtype)):
        leaves = [tensor.to(device, kind).requires_grad_() for tensor in (*tensors, bias)]
        out = attention(*leaves, backend=backend)
        out.float().square().sum().backward()
        grads.append([tensor.float().cpu() for tensor in (out.detach(), *(leaf.grad for leaf in leaves))])
    tolerance = 2e-3 if dtype is torch.float32 else 4e-2
    for found, expected in zip(grads[1], grads[0], strict=True):
        assert float((found - expected).abs().max()) < tolerance * float(expected.abs().max())


def test_padding_changes_nothing() -> None:
    settings = EncoderSettings(vocabulary_size=100, layers=2, hidden_size=64, ffn_size=128, heads=4)
    model = Discriminator(settings).cuda().to(torch.bfloat16).eval()
    tokens = torch.randint(5, 100, (2, 32), device="cuda")
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[1, 20:] = False
    other = tokens.masked_fill(~real, 9)
    assert torch.equal(model(tokens, real)[real], model(other, real)[real])
