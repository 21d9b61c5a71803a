"""Term frequency: the share of each vocabulary entry in the training documents (D.1)."""

import numpy as np
import torch
from torch import Tensor

from fast_electra.corpus.shards import Shards
from fast_electra.settings import UserError
from fast_electra_kernels import NEVER  # log 0, but finite: 0 * NEVER is 0, so 0^0 = 1 needs no special case

_BLOCK = 2**20  # tokens that are read from the memory-mapped files and counted at a time


def token_counts(shards: Shards, vocabulary_size: int, rank: int = 0, world: int = 1) -> Tensor:
    """Count each token in this rank's share of the documents: int64 [V], on the CPU.

    A share is a range of whole documents, and all shares have about as many tokens. The sum over the ranks is the
    count of the whole split. Documents hold no [CLS], [SEP] or [PAD], so their counts are 0. The vocabulary may be
    larger than that of the tokenizer that made the shards.
    """
    assert shards.manifest.vocabulary_size <= vocabulary_size, (shards.manifest.vocabulary_size, vocabulary_size)
    ends = np.cumsum(shards.lengths)
    total = int(ends[-1]) if len(ends) else 0
    # A document belongs to the rank in whose share of the tokens it ends.
    first, last = (int(np.searchsorted(ends, total * r // world, side="right")) for r in (rank, rank + 1))
    counts = np.zeros(vocabulary_size, dtype=np.int64)
    for document in range(first, last):
        length = int(shards.lengths[document])
        for start in range(0, length, _BLOCK):
            np.add.at(counts, shards.tokens(document, start, min(start + _BLOCK, length)), 1)
    return torch.from_numpy(counts)


def log_frequency(counts_V: Tensor) -> Tensor:
    """Return log p_TF, float64 [V], from the counts of all ranks, int64 [V] (D.1); `NEVER` if a count is 0.

    Raises:
        UserError: nothing was counted.
    """
    if (total := int(counts_V.sum())) == 0:
        raise UserError(
            "the documents of the corpus hold no token, so there is no term frequency: "
            "build the shards from other input, or choose another replacement distribution"
        )
    log_V = counts_V.double().log() - np.log(total)
    return log_V.masked_fill(counts_V == 0, NEVER)
