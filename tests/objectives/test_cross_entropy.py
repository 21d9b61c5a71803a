"""Cross-entropy in blocks of rows, compared with PyTorch's on a copy of all logits."""

import pytest
import torch
import torch.nn.functional as F

from fast_electra.objectives import cross_entropy
from fast_electra.objectives.cross_entropy import CrossEntropy


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 23])  # a block has 8 rows
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_pytorch(monkeypatch: pytest.MonkeyPatch, rows: int, dtype: torch.dtype) -> None:
    monkeypatch.setattr(cross_entropy, "BLOCK_CPU", 8 * 50)
    torch.manual_seed(0)
    ours_MV = (torch.randn(rows, 50) * 20).to(dtype).requires_grad_()
    theirs_MV = ours_MV.detach().clone().requires_grad_()
    target_M, weight_M = torch.randint(0, 50, (rows,)), torch.randn(rows)
    loss_M, best_M = CrossEntropy.apply(ours_MV, target_M)
    expected_M = F.cross_entropy(theirs_MV.float(), target_M, reduction="none")
    assert torch.equal(best_M, theirs_MV.argmax(1)) and loss_M.dtype == torch.float32
    assert torch.allclose(loss_M, expected_M, rtol=1e-6, atol=1e-5)
    (loss_M * weight_M).sum().backward()
    (expected_M * weight_M).sum().backward()
    assert ours_MV.grad is not None and theirs_MV.grad is not None and ours_MV.grad.dtype == dtype
    assert torch.equal(ours_MV, theirs_MV)  # the logits themselves are as they were
    step = max(2 * torch.finfo(dtype).eps, 1e-5)  # a logit of 60 is rounded to 4e-6 in fp32
    assert torch.allclose(ours_MV.grad.float(), theirs_MV.grad.float(), rtol=step, atol=1e-6)


def test_the_class_of_equal_logits_is_the_first() -> None:
    assert CrossEntropy.apply(torch.zeros(3, 9).bfloat16(), torch.zeros(3, dtype=torch.int64))[1].tolist() == [0, 0, 0]


def test_a_logit_that_is_not_finite_makes_its_own_loss_not_finite() -> None:
    logits_MV = torch.zeros(2, 4)
    logits_MV[0, 1] = torch.nan
    assert CrossEntropy.apply(logits_MV, torch.tensor([0, 0]))[0].isfinite().tolist() == [False, True]


def test_large_logits_do_not_overflow() -> None:
    logits_MV = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss_M, _ = CrossEntropy.apply(logits_MV, torch.tensor([1]))
    loss_M.sum().backward()
    assert loss_M.tolist() == [2e4] and logits_MV.grad is not None
    assert logits_MV.grad.tolist() == [[1.0, -1.0, 0.0]]
