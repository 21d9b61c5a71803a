"""The rows of a task as token sequences: what the loader reads in fine-tuning, in the place of a corpus."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fast_electra.corpus.sequences import Order

# Rows of one or two texts, and L, to the framed ids of each row, at most L, and whether it was cut.
Encode = Callable[[list[tuple[str, ...]], int], list[tuple[list[int], bool]]]


class Examples:
    """Sequences by number, in the order of the rows.

    Attributes:
        length: L, which no sequence exceeds.
        cut: how many of them were longer than allowed, and lost tokens.
    """

    def __init__(self, texts: list[tuple[str, ...]], encode: Encode, length: int) -> None:
        """Encode each row as a sequence of at most L = `length` tokens."""
        self.length, encoded = length, encode(texts, length)
        self.cut = sum(cut for _, cut in encoded)
        self._ids = [np.array(ids, dtype=np.int64) for ids, _ in encoded]
        self._lengths = torch.tensor([len(ids) for ids in self._ids])
        self.order = Order(len(self._ids))

    def __len__(self) -> int:
        return len(self._ids)

    def lengths(self, sequence: Tensor) -> Tensor:
        """Return the number of tokens of each sequence, int64."""
        return self._lengths[sequence]

    def tokens(self, sequence: Tensor) -> Tensor:
        """Return the tokens of sequences, one sequence after another: int64 [T]."""
        return torch.from_numpy(np.concatenate([self._ids[number] for number in sequence.tolist()]))


def shortened(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
    """Return two lists of ids of at most `room` ids together. The longer one loses its end first."""
    longest_second = max(room // 2, room - len(first))
    second = second[:longest_second]
    return first[: room - len(second)], second
