"""The arguments and the result of every implementation of `sample`."""

from typing import NamedTuple

import torch
from torch import Tensor

NEVER = -1e30  # used instead of -inf where it is multiplied by 0, because 0 * -inf is NaN


class Request(NamedTuple):
    """Checked arguments; `sample` documents them."""

    hidden_MD: Tensor  # contiguous, as all tensors here
    weight_VD: Tensor
    bias_V: Tensor | None
    scale: float
    prior_V: Tensor | None
    keys_M: Tensor
    original_M: Tensor | None  # the tokens whose log-probability is wanted; None if only draws are wanted


class Statistics(NamedTuple):
    """Statistics of the distributions that the tokens were drawn from, each float32 [M]."""

    drawn_M: Tensor  # log-probability of the drawn token
    original_M: Tensor  # log-probability of the given (original) token
    entropy_M: Tensor  # nats


class SampleResult(NamedTuple):
    """The tokens drawn at M positions."""

    ids_M: Tensor  # int64
    valid_M: Tensor  # bool: False if a score is NaN or +inf, or all are -inf; the draw is then meaningless
    statistics: Statistics | None

    @classmethod
    def joined(cls, parts: "list[SampleResult]") -> "SampleResult":
        """Concatenate the results of one or more blocks of positions."""
        ids, valid, statistics = zip(*parts, strict=True)
        columns = None if statistics[0] is None else Statistics(*map(torch.cat, zip(*statistics, strict=True)))
        return cls(torch.cat(ids), torch.cat(valid), columns)


def scores(request: Request, rows_R: Tensor | slice, tokens_R: Tensor) -> Tensor:
    """Return the score of one token in each of some rows, float32 [R]."""
    scores_R = (request.hidden_MD[rows_R].float() * request.weight_VD[tokens_R].float()).sum(1)
    if request.bias_V is not None:
        scores_R += request.bias_V[tokens_R]
    scores_R *= request.scale
    if request.prior_V is not None:
        scores_R += request.prior_V[tokens_R]
    return scores_R
