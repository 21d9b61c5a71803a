"""Sequences within one document, and their order in each epoch (paper, appendix B).

A document of n tokens is cut into ceil(n / (L - 2)) pieces of nearly equal length, so that nothing is lost and no short
tail remains. Each piece is framed as [CLS] ... [SEP]. Documents are never joined. Only documents below a minimal length
are left out, and they are counted.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fast_electra import randomness
from fast_electra.corpus.frozen_tokenizer import FrozenTokenizer
from fast_electra.corpus.shards import TOKENIZER, Shards
from fast_electra.corpus.tokenizer import Tokenizer
from fast_electra.settings import UserError

ORDER_BLOCK = 4096  # samples whose order is computed together


class Dropped(NamedTuple):
    """Numbers of documents that are left out, and of their tokens."""

    documents: int
    tokens: int


class Sequences:
    """All sequences of one split, addressed by number. Memory holds two numbers for each document, and no tokens."""

    def __init__(self, shards: Shards, tokenizer: Tokenizer, length: int, minimum: int = 8) -> None:
        """Cut the documents of `shards` that have at least `minimum` tokens to L = `length`, [CLS] and [SEP] included.

        Raises:
            UserError: the shards were made with another tokenizer, or no document is long enough.
        """
        if tokenizer.hash != shards.tokenizer_hash:
            made_by, given = shards.tokenizer_hash[:12], tokenizer.hash[:12]
            message = (
                f"the shards were made with another tokenizer (sha256 {made_by}) than the one given ({given}); name "
                "the one that made them in fast_electra.corpus.tokenizer, or run `fast-electra corpus` again"
            )
            if isinstance(tokenizer, FrozenTokenizer):
                message += (
                    ". Another version of transformers may build another pipeline from the same directory: the folder "
                    f"`{TOKENIZER}` in that of the shards holds the one that was used"
                )
            raise UserError(message)
        self.shards, self.tokenizer, self.length = shards, tokenizer, length
        lengths = shards.lengths
        kept = lengths >= minimum
        self.dropped = Dropped(int((~kept).sum()), int(lengths[~kept].sum()))
        pieces = np.where(kept, (lengths - 1) // (length - 2) + 1, 0)
        self._first = np.concatenate([[0], np.cumsum(pieces)])  # number of each document's first sequence
        if len(self) == 0:
            raise UserError(f"the corpus has no document of at least {minimum} tokens; add text to it")
        self._order = Order(len(self))

    def __len__(self) -> int:
        return int(self._first[-1])

    def _span(self, sequence: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return document, first token and end of each sequence."""
        document = np.searchsorted(self._first, sequence, side="right") - 1
        piece = sequence - self._first[document]
        pieces = self._first[document + 1] - self._first[document]
        tokens = self.shards.lengths[document]
        return document, tokens * piece // pieces, tokens * (piece + 1) // pieces

    def lengths(self, sequence: Tensor) -> Tensor:
        """Return the positions of each sequence, [CLS] and [SEP] included, int64. No token is read."""
        _, start, stop = self._span(sequence.numpy())
        return torch.from_numpy(stop - start + 2)

    def tokens(self, sequence: Tensor) -> Tensor:
        """Return the tokens of sequences, one sequence after another: int64 [T]."""
        cls, sep = [self.tokenizer.cls_id], [self.tokenizer.sep_id]
        parts: list[Any] = []
        for document, start, stop in zip(*(part.tolist() for part in self._span(sequence.numpy())), strict=True):
            parts += [cls, self.shards.tokens(document, start, stop), sep]
        return torch.from_numpy(np.concatenate(parts, dtype=np.int64, casting="unsafe"))

    def order(self, seed: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return sequence and epoch of samples [start, stop) of the endless training stream: see `Order`."""
        return self._order(seed, start, stop)


class Order:
    """The endless training stream over `size` sequences. Each epoch is a permutation of all."""

    def __init__(self, size: int) -> None:
        """Order the numbers below `size`."""
        self._size = size
        self._block = lru_cache(maxsize=2)(self._compute_block)

    def __call__(self, seed: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return sequence and epoch of samples [start, stop), int64 each. Both depend on (seed, sample) alone."""
        first = start // ORDER_BLOCK
        blocks = [self._block(seed, block) for block in range(first, (stop - 1) // ORDER_BLOCK + 1)]
        within = slice(start - first * ORDER_BLOCK, stop - first * ORDER_BLOCK)
        return torch.cat(blocks)[within], torch.arange(start, stop) // self._size

    def _compute_block(self, seed: int, block: int) -> Tensor:
        # Many samples at once, kept for the next batches: permuting one costs as much as permuting thousands.
        sample = torch.arange(block * ORDER_BLOCK, (block + 1) * ORDER_BLOCK)
        rounds = randomness.key(seed, randomness.ORDER, (sample // self._size)[:, None], torch.arange(4))
        return randomness.permute(sample % self._size, self._size, rounds)
