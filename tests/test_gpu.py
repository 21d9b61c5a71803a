"""The GPU's results agree with the CPU's. Skipped where there is no GPU; `benchmarks/gpu.sh` runs them."""

import pytest
import torch
from scipy import stats

from fast_electra import randomness
from fast_electra.batch import Layout
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
    for m in (1, 2000):  # Triton might compile a special case of one row
        on_cpu = sample(hidden[:m], weight, scale=0.5, keys_M=keys[:m], impl="reference")
        on_gpu = sample(hidden[:m].cuda(), weight.cuda(), scale=0.5, keys_M=keys[:m].cuda(), impl=impl).cpu()
        assert float((on_cpu != on_gpu).float().mean()) < 2e-3  # ties of rounding


@pytest.mark.parametrize("temperature", [1.0, 1.5, 2.0, 4.0])
def test_the_kernel_draws_from_the_smoothed_softmax(temperature: float) -> None:
    """The test is the CPU's, with as many draws: each temperature fails by chance once in 1,000 sets of keys."""
    logits_V = torch.randn(50, generator=torch.Generator().manual_seed(3)) * 1.5
    hidden, weight = torch.ones(1_000_000, 16, device="cuda"), torch.zeros(50, 16, device="cuda")
    weight[:, 0] = logits_V.cuda()
    keys = randomness.key(1, torch.arange(1_000_000)).cuda()
    ids = sample(hidden, weight, scale=1 / temperature, keys_M=keys, impl="triton").cpu()
    expected = torch.softmax(logits_V.double() / temperature, 0) * len(ids)
    assert stats.chisquare(torch.bincount(ids, minlength=50).double().numpy(), expected.numpy()).pvalue > 1e-3


def test_rare_tokens_of_a_large_vocabulary_have_their_share_on_a_gpu() -> None:
    """127,000 tokens below 1e-6 each have a tenth of all probability: 200,000 draws measure it within 0.7%."""
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


def test_the_kernel_needs_no_more_memory_than_it_says() -> None:
    """It needs at most 1/60 of the logits in 16 bits, for the paper's base model and 64 sequences."""
    hidden, weight = (
        torch.randn(4928, 768, device="cuda").bfloat16(),
        torch.randn(128_000, 768, device="cuda").bfloat16(),
    )
    keys = randomness.key(4, torch.arange(4928)).cuda()
    original = torch.zeros_like(keys)
    torch.cuda.empty_cache()  # a cached block that torch does not split would count as held
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    sample_with_statistics(hidden, weight, scale=0.5, keys_M=keys, original_M=original, impl="triton")
    held = torch.cuda.max_memory_allocated() - before
    assert held <= 2 * 4928 * 128_000 / 60
    assert held <= 1.05 * workspace_bytes(4928, 128_000, "triton", on_gpu=True)


def test_a_sequence_has_the_states_that_it_has_alone() -> None:
    settings = EncoderSettings(vocabulary_size=100, layers=2, hidden_size=64, ffn_size=128, heads=2)
    model = Discriminator.new(settings).cuda().to(torch.bfloat16).eval()
    lengths, device = [32, 20, 7], torch.device("cuda")
    tokens = torch.randint(5, 100, (sum(lengths),), device=device)
    whole = model(tokens, Layout.of(torch.tensor(lengths)).to(device)).split(lengths)
    for part, expected in zip(tokens.split(lengths), whole, strict=True):
        alone = model(part, Layout.of(torch.tensor([len(part)])).to(device))
        assert torch.allclose(alone.float(), expected.float(), atol=0.05)
