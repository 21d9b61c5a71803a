"""The rows of a task as token sequences: what the loader reads in fine-tuning, in the place of a corpus."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fast_electra.corpus.sequences import Order

Encode = Callable[[tuple[str, ...], int], tuple[list[int], bool]]  # one or two texts, L -> framed ids, whether cut


class Examples:
    """Sequences by number, in the order of the rows.

    Attributes:
        cut: how many of them were longer than allowed, and lost tokens.
    """

    def __init__(self, texts: Sequence[tuple[str, ...]], encode: Encode, length: int) -> None:
        """Encode each row as a sequence of at most L = `length` tokens."""
        encoded = [encode(row, length) for row in texts]
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
