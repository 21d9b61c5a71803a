"""Other ways to draw from softmax(scale * hidden @ weight.T). All of them are exact.

The last two keep no logits either. They are the alternatives to the definition of our noise; see docs/sampling.md.
"""

import torch
from torch import Tensor

from fast_electra.batch import ceil_div
from fast_electra_kernels import logits
from fast_electra_kernels.noise import exponential, random_bits
from fast_electra_kernels.workspace import block_shape

TILE = 128  # tokens of a tile in `two_level`


def dense(hidden_MD: Tensor, weight_VD: Tensor, scale: float) -> Tensor:
    """Draw by torch's softmax and multinomial from a whole matrix of logits."""
    logits_MV = torch.nn.functional.linear(hidden_MD, weight_VD).float()
    return torch.multinomial(torch.softmax(logits_MV.mul_(scale), dim=1), 1)[:, 0]


def gumbel_max(hidden_MD: Tensor, weight_VD: Tensor, scale: float, keys_M: Tensor) -> Tensor:
    """Draw with a Gumbel number for every logit, block by block. This is the plainest definition of a draw."""
    height, width = block_shape(len(hidden_MD), len(weight_VD), hidden_MD.is_cuda)
    drawn = []
    for rows in torch.arange(len(hidden_MD), device=hidden_MD.device).split(height):
        best_R = torch.full((len(rows),), -torch.inf, device=hidden_MD.device)
        ids_R = torch.zeros_like(rows)
        for first in range(0, len(weight_VD), width):
            scores_RC = logits(hidden_MD[rows], weight_VD[first : first + width], None).mul_(scale)
            tokens_C = torch.arange(first, first + scores_RC.shape[1], dtype=torch.int32, device=rows.device)
            scores_RC -= exponential(random_bits(keys_M[rows], tokens_C)).log_()
            value_R, place_R = scores_RC.max(1)
            better_R = value_R > best_R
            best_R, ids_R = torch.where(better_R, value_R, best_R), torch.where(better_R, place_R + first, ids_R)
        drawn.append(ids_R)
    return torch.cat(drawn)


def two_level(hidden_MD: Tensor, weight_VD: Tensor, scale: float, keys_M: Tensor) -> Tensor:
    """Draw a tile of tokens by the tiles' log-sum-exp, then a token in the tile, whose logits are computed again."""
    height, width = block_shape(len(hidden_MD), len(weight_VD), hidden_MD.is_cuda)
    width = ceil_div(width, TILE) * TILE
    tiles, offsets = len(weight_VD) // TILE, torch.arange(TILE, device=hidden_MD.device)
    assert len(weight_VD) % TILE == 0
    drawn = []
    for rows in torch.arange(len(hidden_MD), device=hidden_MD.device).split(height):
        sums = []
        for first in range(0, len(weight_VD), width):
            scores_RC = logits(hidden_MD[rows], weight_VD[first : first + width], None).mul_(scale)
            sums.append(scores_RC.view(len(rows), -1, TILE).logsumexp(2))
        counters = torch.arange(tiles + TILE, dtype=torch.int32, device=rows.device)
        noise = exponential(random_bits(keys_M[rows], counters)).log_()
        tile_R = torch.cat(sums, dim=1).sub_(noise[:, :tiles]).argmax(1)
        ids_R = torch.empty_like(rows)
        for part in torch.arange(len(rows), device=rows.device).split(64):
            tokens_PC = tile_R[part, None] * TILE + offsets
            scores_PC = torch.einsum("pd,pcd->pc", hidden_MD[rows[part]].float(), weight_VD[tokens_PC].float()) * scale
            place_P1 = (scores_PC - noise[part, tiles:]).argmax(1, keepdim=True)
            ids_R[part] = tokens_PC.gather(1, place_P1)[:, 0]
        drawn.append(ids_R)
    return torch.cat(drawn)
