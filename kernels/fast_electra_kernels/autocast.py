"""Protection from a caller's autocast, which would round products to 16 bits and so change the drawn tokens."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_autocast() -> Iterator[None]:
    """Switch autocast off. Every public function that takes tensors is decorated with this."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield
