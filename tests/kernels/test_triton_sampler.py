"""The two Triton kernels alone, in Triton's interpreter if there is no GPU.

`test_sample.py` has the tests that all implementations share, and `test_gpu.py` makes millions of draws.
"""

import math

import pytest
import torch
from draws import DEVICE, D, V, assert_equal_up_to_ties, chi_square, keys, logits_as_model, model

from fast_electra_kernels import default_implementation, gumbel, sample, triton_draw, triton_sampler
from fast_electra_kernels.contract import Request
from fast_electra_kernels.sample import default_for


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_triton_follows_the_smoothed_softmax(temperature: float) -> None:
    """With fewer draws, because the interpreter is slow. Error rate 0.1%."""
    logits_V = torch.randn(V, generator=torch.Generator().manual_seed(3)) * 1.5
    model_V = (tensor.to(DEVICE) for tensor in logits_as_model(logits_V, 20_000))
    ids = sample(*model_V, scale=1 / temperature, keys_M=keys(20_000).to(DEVICE), impl="triton").cpu()
    assert chi_square(ids, torch.softmax(logits_V.double() / temperature, 0)) > 1e-3


def test_triton_at_the_papers_vocabulary() -> None:
    """With V = 128,000 most groups are never searched, and rare tokens have a part of the probability."""
    hidden, weight, bias = (tensor.to(DEVICE, torch.bfloat16) for tensor in model(100, 128_000, 32, 2.0))
    bias[:500] += 6.0
    ids = sample(hidden, weight, bias, scale=0.7, keys_M=keys(100).to(DEVICE), impl="triton").cpu()
    scores_MV = 0.7 * (hidden.cpu().double() @ weight.cpu().double().T + bias.cpu().double())
    assert_equal_up_to_ties(ids, scores_MV, keys(100))
    assert 0 < int((scores_MV.log_softmax(1).gather(1, ids[:, None]) < math.log(1e-5)).sum()) < 100


def test_triton_with_the_tiles_of_a_gpu() -> None:
    """The interpreter uses larger tiles to be fast; those of GPUs split the work differently."""
    hidden, weight, bias = (tensor.to(DEVICE) for tensor in model(100, 300, 72, 2.0))
    for dtype in (torch.float32, torch.bfloat16):
        shape = triton_sampler.tiles(dtype, (9, 0))
        request = Request(hidden.to(dtype), weight.to(dtype), bias, 1.0, None, keys(100).to(DEVICE), None)
        scores_MV = hidden.to(dtype).cpu().double() @ weight.to(dtype).cpu().double().T + bias.cpu().double()
        assert_equal_up_to_ties(triton_sampler.sample(request, shape).ids_M.cpu(), scores_MV, keys(100))


@pytest.mark.parametrize(
    ("capability", "tokens", "default"),
    [
        ((7, 5), 128, "blocked"),
        ((8, 0), 128, "triton"),
        ((8, 9), 128, "triton"),
        ((9, 0), 256, "triton"),
        ((10, 0), 256, "triton"),
        ((12, 0), 128, "triton"),
    ],
)
def test_what_each_generation_of_gpus_gets(capability: tuple[int, int], tokens: int, default: str) -> None:
    """Tiles that fit into its shared memory (see `test_compile_kernels.py`), or `blocked` if Triton would spill."""
    for dtype in (torch.bfloat16, torch.float16):
        assert triton_sampler.tiles(dtype, capability) == triton_sampler.Tiles(128, tokens, 64, 3, 8)
    assert triton_sampler.tiles(torch.float32, capability) == triton_sampler.Tiles(64, 64, 32, 2, 4)
    assert default_for(capability) == default


def test_the_default_without_a_gpu() -> None:
    assert default_for(None) == default_implementation(torch.device("cpu")) == "blocked"


@pytest.mark.parametrize("level", [0.0, 65536.0])
def test_triton_searches_again_if_slots_hold_too_few_groups(level: float) -> None:
    """With a table of 4 groups, the winner is often outside it; at a high level, float32 rounds many bounds alike."""
    hidden, weight, bias = model(300, 1000, 16, 1.0)
    device_parts = (hidden.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE), 1.0, torch.full((1000,), level).to(DEVICE))
    search = triton_draw.Search(2, 2, 1, 1, 128)
    ids = triton_sampler.sample(Request(*device_parts, keys(300).to(DEVICE), None), search=search).ids_M.cpu()
    scores_MV = hidden.double() @ weight.double().T + bias
    if level:
        perturbed_MV = scores_MV + gumbel(keys(300), torch.arange(1000, dtype=torch.int32), torch.float64)
        behind_M = perturbed_MV.max(1)[0] - perturbed_MV.gather(1, ids[:, None])[:, 0]
        assert float(behind_M.max()) < 0.05  # a few steps of float32
    else:
        assert_equal_up_to_ties(ids, scores_MV, keys(300))


def test_triton_draws_the_same_tokens_in_any_batch() -> None:
    hidden, weight, _ = (tensor.to(DEVICE) for tensor in model(30, 100, D, 3.0, seed=5))
    more = {"scale": 0.7, "impl": "triton"}
    whole = sample(hidden, weight, keys_M=keys(30).to(DEVICE), **more)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    for part in (order[:13], order[13:]):
        assert torch.equal(sample(hidden[part], weight, keys_M=keys(30).to(DEVICE)[part], **more), whole[part])
