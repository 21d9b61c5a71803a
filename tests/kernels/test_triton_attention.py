"""Attention with a bias of the distance, forward and backward, in Triton's interpreter if there is no GPU."""

import math
from collections.abc import Callable

import pytest
import torch
from draws import DEVICE
from torch import Tensor

from fast_electra_kernels.triton_attention import Plan, Tiles, attention, dropout_mask

KEY = 12345
# Small tiles, so that the interpreter sees several blocks of each kind.
SMALL = Plan(Tiles(32, 32, 4, 1), Tiles(32, 16, 4, 1), Tiles(16, 32, 4, 1), Tiles(16, 32, 4, 1))
RAGGED = (37, 1, 16, 70, 33)


def rows(lengths: tuple[int, ...], stride: int | None) -> tuple[Tensor, Tensor]:
    """Starts and lengths, one after the other, or every `stride` rows."""
    lengths_B = torch.tensor(lengths, dtype=torch.int32)
    starts_B = lengths_B.cumsum(0) - lengths_B if stride is None else torch.arange(len(lengths)) * stride
    return starts_B.to(torch.int32), lengths_B


def naive(qkv: Tensor, bias_HR: Tensor, starts_B: Tensor, lengths_B: Tensor, rate: float, key: int) -> Tensor:
    """The same in plain torch, one sequence after the other, in the dtype of the inputs."""
    t, _, heads, d = qkv.shape
    reach = bias_HR.shape[1] // 2
    # The kernels' rates are multiples of 2^-16.
    exact = round(rate * 2**16) / 2**16
    outputs = []
    keep = dropout_mask(key, rate, len(starts_B), heads, int(lengths_B.max())).to(qkv.device)
    for number, (start, length) in enumerate(zip(starts_B.tolist(), lengths_B.tolist(), strict=True)):
        q, k, v = qkv[start : start + length].unbind(1)
        position = torch.arange(length, device=qkv.device)
        bias_HLL = bias_HR[:, position[None, :] - position[:, None] + reach]
        scores_HLL = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(d) + bias_HLL.to(q.dtype)
        kept_HLL = scores_HLL.softmax(-1) * keep[number, :, :length, :length] / (1 - exact)
        outputs.append((start, torch.einsum("hqk,khd->qhd", kept_HLL, v)))
    output = torch.zeros(t, heads, d, dtype=qkv.dtype, device=qkv.device)
    for start, part in outputs:
        output = output.index_copy(0, torch.arange(start, start + len(part), device=qkv.device), part)
    return output


def gradients(function: Callable[[Tensor, Tensor], Tensor], qkv: Tensor, bias: Tensor, grad: Tensor) -> list[Tensor]:
    """Output, gradients of queries, keys, values, and that of the bias."""
    qkv, bias = qkv.detach().requires_grad_(), bias.detach().requires_grad_()
    output = function(qkv, bias)
    output.backward(grad.to(output.dtype))
    assert qkv.grad is not None and bias.grad is not None
    return [output.detach(), *qkv.grad.unbind(1), bias.grad]


def compare(
    dtype: torch.dtype, lengths: tuple[int, ...], stride: int | None, heads: int, d: int, rate: float, plan: Plan | None
) -> None:
    """Assert that errors against float64 are at most those of a naive computation in the same dtype, plus a little."""
    starts, lengths_B = rows(lengths, stride)
    t = int((starts + lengths_B).max()) + 3
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(t, 3, heads, d, generator=generator).to(DEVICE, dtype)
    bias = torch.randn(heads, 2 * (max(lengths) + 5) - 1, generator=generator).to(DEVICE, dtype)
    grad = torch.randn(t, heads, d, generator=generator).to(DEVICE, dtype)
    on_device = (starts.to(DEVICE), lengths_B.to(DEVICE))

    def ours(qkv: Tensor, bias: Tensor) -> Tensor:
        return attention(qkv, bias, *on_device, max(lengths), rate, KEY, plan=plan)

    def plain(qkv: Tensor, bias: Tensor) -> Tensor:
        return naive(qkv, bias, starts, lengths_B, rate, KEY)

    found, again = gradients(ours, qkv, bias, grad), gradients(ours, qkv, bias, grad)
    exact, inexact = gradients(plain, qkv.double(), bias.double(), grad), gradients(plain, qkv, bias, grad)
    for name, a, b, x, y in zip(("output", "q", "k", "v", "bias"), found, again, exact, inexact, strict=True):
        assert torch.equal(a, b), f"two runs differ in {name}"
        assert a.dtype == dtype
        for norm, times in ((2.0, 1.1), (math.inf, 2.0)):  # the largest error is that of one element, so it varies more
            error, limit = (float((z.double() - x).norm(norm) / x.norm(norm)) for z in (a, y))
            assert error <= times * limit + 0.25 * torch.finfo(dtype).eps + 2e-7, (name, norm, error, limit)
        if name != "bias":
            inside = torch.zeros(t, dtype=torch.bool)
            for start, length in zip(starts.tolist(), lengths_B.tolist(), strict=True):
                inside[start : start + length] = True
            assert not a.cpu()[~inside].any(), f"rows of no sequence have {name}"


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unpadded_rows_in_several_blocks(dtype: torch.dtype, rate: float) -> None:
    compare(dtype, RAGGED, None, 2, 32, rate, SMALL)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_padded_rows(rate: float) -> None:
    compare(torch.float32, RAGGED, 72, 1, 64, rate, SMALL)


@pytest.mark.parametrize("lengths", [(64, 128), (5, 3, 64), (1, 17)])
def test_whole_blocks_and_one_block(lengths: tuple[int, ...]) -> None:
    compare(torch.bfloat16, lengths, None, 2, 64, 0.1, None)


def test_the_largest_head() -> None:
    compare(torch.float32, (70, 40), None, 1, 128, 0.1, None)


def test_tensors_of_any_stride() -> None:
    """Tokens, parts and heads may lie in memory as they like; the gradient of a sum has strides 0."""
    starts, lengths = (x.to(DEVICE) for x in rows((20, 9), None))
    bias = torch.randn(2, 59, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    packed = torch.randn(29, 3, 2, 32, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    results = []
    for qkv in (packed.clone(), packed.permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3)):
        output = attention(qkv.requires_grad_(), bias, starts, lengths, 30)
        output.transpose(0, 1).sum().backward()
        results.append((output, qkv.grad))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_sequence_does_not_depend_on_the_others_or_on_padding() -> None:
    qkv = torch.randn(60, 3, 2, 32, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    bias = torch.randn(2, 79, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    starts, lengths = (x.to(DEVICE) for x in rows((25, 35), None))
    both = attention(qkv, bias, starts, lengths, 40, 0.2, KEY, covered=True)
    alone = attention(qkv[:25], bias, starts[:1], lengths[:1], 25, 0.2, KEY)
    assert torch.equal(both[:25], alone)
    padded = torch.full((80, 3, 2, 32), torch.nan, device=DEVICE)
    padded[:25], padded[40:75] = qkv[:25], qkv[25:]
    output = attention(padded, bias, *(x.to(DEVICE) for x in rows((25, 35), 40)), 40, 0.2, KEY)
    assert torch.equal(torch.cat([output[:25], output[40:75]]), both)


def test_the_bias_needs_no_gradient() -> None:
    qkv = torch.randn(9, 3, 1, 32, device=DEVICE).requires_grad_()
    starts, lengths = (x.to(DEVICE) for x in rows((9,), None))
    attention(qkv, torch.zeros(1, 17, device=DEVICE), starts, lengths, 9).sum().backward()
    assert qkv.grad is not None and qkv.grad.isfinite().all()


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_what_is_dropped_looks_random(rate: float) -> None:
    """Rate, rows, columns, and products of neighbours in rows, columns and squares: 11 tests, error rate 1e-5 each.

    The products are of the deviations from the mean, whose expectation is 0 if the neighbours are independent.
    """
    kept = dropout_mask(KEY, rate, 4, 8, 512).double()
    mean = 1 - round(rate * 2**16) / 2**16
    deviation = (kept - mean) / math.sqrt(mean * (1 - mean))  # variance 1
    scores = [deviation.mean() * math.sqrt(deviation.numel())]
    for down, right in ((0, 1), (0, 8), (0, 9), (1, 0), (8, 0), (1, 1), (64, 0), (0, 64)):
        product = deviation[..., : 512 - down, : 512 - right] * deviation[..., down:, right:]
        scores.append(product.mean() * math.sqrt(product.numel()))
    for far in (1, 8):
        left, right = deviation[..., :-far], deviation[..., far:]
        product = left[..., :-1, :] * left[..., 1:, :] * right[..., :-1, :] * right[..., 1:, :]
        scores.append(product.mean() * math.sqrt(product.numel()))
    assert max(abs(float(score)) for score in scores) < 4.42, scores
    for across in (-1, -2):  # chi-squared of the counts in rows and columns, as a normal number
        counts = deviation.sum(across).flatten() / math.sqrt(512)
        assert abs(float((counts.square().sum() - len(counts)) / math.sqrt(2 * len(counts)))) < 4.42


def test_keys_heads_and_sequences_drop_differently() -> None:
    masks = torch.cat([dropout_mask(key, 0.5, 2, 2, 128).flatten(0, 1) for key in (0, 1, 2**32, -1)]).double()
    agreement = torch.einsum("aqk,bqk->ab", masks - 0.5, masks - 0.5).mul_(4 / 128)  # of standard deviation 1
    assert (agreement - 128 * torch.eye(16)).abs().max() < 5.1  # 120 pairs, error rate 4e-5 in all


@pytest.mark.gpu
@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_compiled(dtype: torch.dtype, rate: float) -> None:
    compare(dtype, (512, 300, 1, 64, 511, 129, 450, 384), 512, 12, 64, rate, None)
    compare(dtype, (512, 300, 1, 64, 511, 129, 450, 384), None, 12, 64, rate, None)


@pytest.mark.gpu
@pytest.mark.parametrize("d", [32, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_compiled_with_other_heads(dtype: torch.dtype, d: int) -> None:
    compare(dtype, (200, 300, 70), None, 4, d, 0.1, None)
