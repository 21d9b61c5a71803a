"""Cross-entropy over a large vocabulary, in fp32 but without a copy of all logits in fp32."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK_CPU, BLOCK_GPU = 1 << 20, 1 << 24  # logits in fp32 at a time: 4 MiB fit into a processor's cache; 64 MiB


class CrossEntropy(torch.autograd.Function):
    """-log softmax(logits)[target] of each row, and the class of the highest logit.

    PyTorch's `cross_entropy` of `logits.float()` holds three fp32 arrays of the logits' size. Here a block of rows is
    fp32 at a time. The gradient has the dtype of the logits, to which each element is rounded once, as there.
    """

    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, target_M: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses [M], float32, and the best classes [M], int64."""
        total_M = torch.empty(len(logits_MV), device=logits_MV.device)  # log of the sum of exp
        best_M = torch.empty_like(target_M)
        for rows in blocks(logits_MV):
            total_M[rows] = logits_MV[rows].float().logsumexp(dim=1)
            best_M[rows] = logits_MV[rows].max(dim=1).indices  # on a CPU argmax takes six times as long
        ctx.save_for_backward(logits_MV, target_M, total_M)
        ctx.mark_non_differentiable(best_M)
        return total_M - logits_MV.gather(1, target_M[:, None])[:, 0].float(), best_M

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        """Return softmax(logits) - onehot(target), times the gradient of each row's loss."""
        logits_MV, target_M, total_M = ctx.saved_tensors
        gradient_MV = torch.empty_like(logits_MV)
        for rows in blocks(logits_MV):
            gradient_MV[rows] = _gradient(logits_MV[rows], target_M[rows], total_M[rows], gradients[0][rows])
        return gradient_MV, None


def _gradient(logits_RV: Tensor, target_R: Tensor, total_R: Tensor, gradient_R: Tensor) -> Tensor:
    """Return the gradient of a block's logits, in fp32. It is a function, so that its memory is free for the next."""
    share_RV = (logits_RV - total_R[:, None]).exp_()  # fp32, because the second is: the logits may have 16 bits
    share_RV.scatter_add_(1, target_R[:, None], torch.full_like(share_RV[:, :1], -1.0))
    return share_RV.mul_(gradient_R[:, None])


def blocks(logits_MV: Tensor) -> Iterator[slice]:
    """Yield slices of rows."""
    size = block_rows(logits_MV.shape[1], logits_MV.is_cuda)
    return (slice(first, first + size) for first in range(0, len(logits_MV), size))


def block_rows(vocabulary: int, on_gpu: bool) -> int:
    """Return the number of rows of a block."""
    return max(1, (BLOCK_GPU if on_gpu else BLOCK_CPU) // vocabulary)
