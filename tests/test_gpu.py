"""What only a GPU can show: that it agrees with the CPU. Skipped where there is none; see `benchmarks/gpu.sh`."""

import pytest
import torch
from scipy import stats

from fast_electra import randomness
from fast_electra.model.attention import BACKENDS, attention
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import Discriminator
from fast_electra_kernels import IMPLEMENTATIONS, gumbel, sample, sample_with_statistics, workspace_bytes

pytestmark = pytest.mark.gpu


def test_noise_is_that_of_the_cpu() -> None:
    keys, tokens = randomness.key(1, torch.arange(64)), torch.arange(5000, dtype=torch.int32)
    on_gpu = gumbel(keys.cuda(), tokens.cuda()).cpu()
    assert torch.allclose(on_gpu, gumbel(keys, tokens), atol=1e-5)
    assert torch.equal(randomness.key(1, torch.arange(64).cuda()).cpu(), keys)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_draws_are_those_of_the_cpu(impl: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2000, 64, generator=generator), torch.randn(3001, 64, generator=generator) * 0.3
    hidden, weight, keys = hidden.to(dtype), weight.to(dtype), randomness.key(2, torch.arange(2000))
    for m in (1, 2000):  # one row too, of which Triton might compile a special case
        on_cpu = sample(hidden[:m], weight, scale=0.5, keys_M=keys[:m], impl="reference")
        on_gpu = sample(hidden[:m].cuda(), weight.cuda(), scale=0.5, keys_M=keys[:m].cuda(), impl=impl).cpu()
        assert float((on_cpu != on_gpu).float().mean()) < 2e-3  # ties of rounding


@pytest.mark.parametrize("temperature", [1.0, 1.5, 2.0, 4.0])
def test_the_kernel_draws_from_the_smoothed_softmax(temperature: float) -> None:
    """As on a CPU, and with as many draws; error rate 0.1% each."""
    logits_V = torch.randn(50, generator=torch.Generator().manual_seed(3)) * 1.5
    hidden, weight = torch.ones(1_000_000, 16, device="cuda"), torch.zeros(50, 16, device="cuda")
    weight[:, 0] = logits_V.cuda()
    keys = randomness.key(1, torch.arange(1_000_000)).cuda()
    ids = sample(hidden, weight, scale=1 / temperature, keys_M=keys, impl="triton").cpu()
    expected = torch.softmax(logits_V.double() / temperature, 0) * len(ids)
    assert stats.chisquare(torch.bincount(ids, minlength=50).double().numpy(), expected.numpy()).pvalue > 1e-3


def test_rare_tokens_of_a_large_vocabulary_have_their_share_on_a_gpu() -> None:
    """127,000 tokens under 1e-6 each are a tenth of all: 200,000 draws see 0.7% of that."""
    p_V = torch.full((128_000,), 0.1 / 127_000, dtype=torch.float64)
    p_V[:1000] = 0.9 / 1000
    keys = randomness.key(3, torch.arange(200_000)).cuda()
    hidden, weight = (
        torch.zeros(200_000, 16, device="cuda").bfloat16(),
        torch.zeros(128_000, 16, device="cuda").bfloat16(),
    )
    ids = sample(hidden, weight, p_V.log().float().cuda(), scale=1.0, keys_M=keys, impl="triton").cpu()
    rare = ids[ids >= 1000]
    assert stats.binomtest(len(rare), 200_000, 0.1).pvalue > 1e-3
    assert stats.chisquare(torch.bincount((rare - 1000) // 2540, minlength=50).numpy()).pvalue > 1e-3


def test_the_kernel_holds_what_it_says() -> None:
    """At most 1/60 of the logits in 16 bits, for the paper's base model and 64 sequences."""
    hidden, weight = (
        torch.randn(4928, 768, device="cuda").bfloat16(),
        torch.randn(128_000, 768, device="cuda").bfloat16(),
    )
    keys = randomness.key(4, torch.arange(4928)).cuda()
    original = torch.zeros_like(keys)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    sample_with_statistics(hidden, weight, scale=0.5, keys_M=keys, original_M=original, impl="triton")
    held = torch.cuda.max_memory_allocated() - before
    assert held <= 2 * 4928 * 128_000 / 60
    assert held <= 1.05 * workspace_bytes(4928, 128_000, "triton", on_gpu=True)


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
    model = Discriminator.new(settings).cuda().to(torch.bfloat16).eval()
    tokens = torch.randint(5, 100, (2, 32), device="cuda")
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[1, 20:] = False
    other = tokens.masked_fill(~real, 9)
    assert torch.equal(model(tokens, real)[real], model(other, real)[real])
