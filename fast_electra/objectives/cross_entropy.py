"""Cross-entropy over a large vocabulary, in fp32 but without a copy of all logits in fp32."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK = {"cpu": 2**20, "cuda": 2**26}  # logits in fp32 at a time: 4 MiB, because a processor's cache is small; 256 MiB


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
            share_MV = (logits_MV[rows].float() - total_M[rows, None]).exp_()  # not in place: the logits may be fp32
            share_MV.scatter_add_(1, target_M[rows, None], torch.full_like(share_MV[:, :1], -1.0))
            gradient_MV[rows] = share_MV.mul_(gradients[0][rows, None])
        return gradient_MV, None


def blocks(logits_MV: Tensor) -> Iterator[slice]:
    """Yield slices of rows."""
    size = max(1, BLOCK.get(logits_MV.device.type, BLOCK["cpu"]) // logits_MV.shape[1])
    return (slice(first, first + size) for first in range(0, len(logits_MV), size))
