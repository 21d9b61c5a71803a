"""`sample` in plain PyTorch: rows in blocks, each block's logits computed, perturbed and forgotten."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fast_electra_kernels.noise import gumbel

# Elements of one block of logits. On a CPU a block stays in the outer cache, but has never so few rows that the product
# reads the whole weight for a handful of them; on a GPU blocks are larger, because each one is a launch.
_BLOCK_CPU, _BLOCK_GPU, _LEAST_ROWS = 1 << 18, 1 << 26, 64


def sample(
    hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, scale: float, prior_V: Tensor | None, keys_M: Tensor
) -> Tensor:
    """See `fast_electra_kernels.sample`."""
    vocabulary = weight_VD.shape[0]
    tokens_V = torch.arange(vocabulary, dtype=torch.int32, device=hidden_MD.device)
    ids_M = torch.empty(hidden_MD.shape[0], dtype=torch.int64, device=hidden_MD.device)
    rows = max(_LEAST_ROWS, (_BLOCK_GPU if hidden_MD.is_cuda else _BLOCK_CPU) // vocabulary)
    for start in range(0, hidden_MD.shape[0], rows):
        block = slice(start, start + rows)
        scores = F.linear(hidden_MD[block], weight_VD, bias_V).float()
        if scale != 1.0:
            scores *= scale
        if prior_V is not None:
            scores += prior_V
        best, ids_M[block] = scores.add_(gumbel(keys_M[block], tokens_V)).max(dim=1)
        if not bool((best < torch.inf).all()):  # NaN and +inf both fail; -inf only means never drawn
            raise ValueError(f"logits of rows {start} to {start + scores.shape[0] - 1} hold NaN or +inf")
    return ids_M
