"""What an implementation of `sample` is given and what it returns."""

from typing import NamedTuple

import torch
from torch import Tensor

NEVER = -1e30  # stands for -inf where it would be multiplied by a probability of 0


class Request(NamedTuple):
    """Arguments that fit each other: see `sample` for what they are."""

    hidden_MD: Tensor  # contiguous, as are all
    weight_VD: Tensor
    bias_V: Tensor | None
    scale: float
    prior_V: Tensor | None
    keys_M: Tensor
    original_M: Tensor | None  # the tokens whose log-probability is wanted; None for draws alone


class Statistics(NamedTuple):
    """Of the distributions that tokens were drawn from: float32 [M] each."""

    drawn_M: Tensor  # log-probability of the drawn token
    original_M: Tensor  # log-probability of the given (original) token
    entropy_M: Tensor  # nats


class SampleResult(NamedTuple):
    """Draws of M positions."""

    ids_M: Tensor  # int64
    valid_M: Tensor  # bool: False where NaN or +inf is among the scores, or none is finite; the draw means nothing
    statistics: Statistics | None

    @classmethod
    def joined(cls, parts: "list[SampleResult]", device: torch.device, with_statistics: bool) -> "SampleResult":
        """Blocks of positions, one after another; empty tensors where there is none."""
        if not parts:
            empty = torch.empty(0, dtype=torch.float32, device=device)
            return cls(empty.long(), empty.bool(), Statistics(empty, empty, empty) if with_statistics else None)
        statistics = None
        if with_statistics:
            columns = zip(*(part.statistics for part in parts if part.statistics is not None), strict=True)
            statistics = Statistics(*(torch.cat(column) for column in columns))
        return cls(torch.cat([part.ids_M for part in parts]), torch.cat([part.valid_M for part in parts]), statistics)
