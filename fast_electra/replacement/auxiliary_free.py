"""Replacements without an auxiliary model: uniform, term frequency, smoothed one-hot (D.1), and paths between (E.3).

All five are geometric mixtures p_v ~ q_v^gamma * s_v^(1 - gamma). Here q is uniform or the term frequency, and s is
smoothed one-hot: s_x = 1 - alpha for the original token x, and alpha / (V - 1) for each other token. Footnote 7 and E.3
define the path between two distributions as this product. "Uniform" is over the entire vocabulary, special tokens
included, as D.1 says. No document holds special tokens, so their term frequency is 0; at gamma = 0, 0^0 = 1.

A draw is a race. The token with the highest line gamma * log q_v + (1 - gamma) * log s_v + (Gumbel noise of v) wins.
This is an exact draw from p, and one noise gives the draws at every gamma. Only a few of the V lines of a position
have a chance, and only those are made. For this, tokens are grouped: within a group, q varies by at most a factor 2.
The Gumbel noise of token v is -log of the first arrival of a Poisson process of rate 1. The processes of the n tokens
of a group, taken together, have the arrivals

    A_k = (E_1 + ... + E_k) / n,   with standard exponential E_j,

and each arrival belongs to a token that is drawn uniformly from the group. A later arrival of the same token simply
loses. So only the first K arrivals of each group are made. All later ones lie below the group's bound: the line with
the noise -log A_K and the largest q of the group. If a bound wins at a position, the race is repeated there with 2 K
arrivals, of which the first K are the same.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fast_electra.batch import Draws, MaskedBatch
from fast_electra.corpus.frequency import NEVER
from fast_electra.replacement.distribution import axis_position
from fast_electra.settings import UserError
from fast_electra_kernels import Pieces, concatenate, envelope
from fast_electra_kernels.noise import exponential, random_bits

_ARRIVALS = 4  # K of the first race: about one position in ten thousand needs a second race
_BLOCK = 2**18  # number of lines held at a time, over all positions: some tens of MB


class Mixture(NamedTuple):
    """The geometric mixture that a name stands for."""

    frequency: bool  # True if q is the term frequency, False if it is uniform
    gamma: float | None  # constant if there is no curriculum; None if the curriculum gives it


AUXILIARY_FREE = {
    "uniform": Mixture(False, 1.0),
    "term_frequency": Mixture(True, 1.0),
    "smoothed_one_hot": Mixture(False, 0.0),
    "uniform_to_smoothed_one_hot": Mixture(False, None),
    "term_frequency_to_smoothed_one_hot": Mixture(True, None),
}


class _Lines(NamedTuple):
    """The lines of each position: x itself, K arrivals of each group, and a bound for the rest of each group."""

    slopes_MC: Tensor  # float64, over gamma
    intercepts_MC: Tensor  # float64
    tokens_MC: Tensor  # int64, -1 for a bound


class AuxiliaryFree:
    """x_hat ~ q^gamma * s^(1 - gamma), drawn without a [masked, vocabulary] matrix.

    A draw is a function of the position's key, the original token and gamma. It is exact up to one bias: an arrival
    belongs to token (bits * n) >> 32 of its group of n, with 32 random bits, so shares are off by less than n / 2^32.

    Attributes:
        parameter: "gamma"; None if gamma is constant.
        floor: 0, to which gamma falls.
    """

    floor = 0.0

    def __init__(self, log_q_V: Tensor, alpha: float, gamma: float | None) -> None:
        """Group the tokens by q; raise a UserError if alpha is not in (0, 1).

        `log_q_V` is float64 [V] on the device of the batches, normalised, `NEVER` where q is 0; V >= 2. A `gamma` is a
        constant in place of the curriculum's strength.
        """
        if not 0.0 < alpha < 1.0:
            key = "fast_electra.replacement.alpha"
            raise UserError(f"{key} must lie between 0 and 1, not be {alpha}; the paper's is 0.35")
        assert log_q_V.dtype == torch.float64 and len(log_q_V) >= 2
        self.gamma, self.arrivals = gamma, _ARRIVALS  # the draws do not depend on the latter
        self.parameter = "gamma" if gamma is None else None
        self.log_q_V = log_q_V
        self.log_x, self.log_other = math.log1p(-alpha), math.log(alpha / (len(log_q_V) - 1))
        # Groups are made on the CPU, so that every device has the same. Their borders are a fraction of an octave off
        # the largest q. At the ratios 1/2, 1/4, ... of small counts, rounding could decide for either side.
        log_q_V = log_q_V.cpu()
        octaves_V = ((log_q_V.max() - log_q_V) / math.log(2.0) + 0.3).floor()
        _, groups_V, sizes_G = torch.unique(octaves_V, return_inverse=True, return_counts=True)
        lowest_G = torch.full(sizes_G.shape, -math.inf, dtype=torch.float64)
        largest_G = lowest_G.scatter_reduce(0, groups_V, log_q_V, "amax")
        device = self.log_q_V.device
        self.members_V = groups_V.argsort(stable=True).to(device)  # the tokens, group after group
        self.firsts_G = (sizes_G.cumsum(0) - sizes_G).to(device)  # where each group begins among them
        self.sizes_G, self.largest_G = sizes_G.to(device), largest_G.to(device)

    @torch.no_grad()
    def sample(self, masked: MaskedBatch, strength: float) -> Draws:
        """Draw at gamma = `strength`, or at the constant gamma if there is one. The draws have both figures.

        Raises:
            UserError: gamma is not in [0, 1].
        """
        gamma = self._gamma(strength)
        tokens_M = torch.full_like(masked.original_M, -1)
        rows_M, arrivals = torch.arange(len(tokens_M), device=tokens_M.device), self.arrivals
        while len(rows_M):
            for rows, lines in self._race(masked, rows_M, arrivals):
                winners = (lines.slopes_MC * gamma + lines.intercepts_MC).argmax(dim=1)
                tokens_M[rows] = lines.tokens_MC.gather(1, winners[:, None])[:, 0]
            rows_M, arrivals = rows_M[tokens_M[rows_M] < 0], 2 * arrivals
        return Draws(tokens_M, *self._figures(masked.original_M, gamma))

    def _gamma(self, strength: float) -> float:
        if self.gamma is not None:
            return self.gamma
        if not 0.0 <= strength <= 1.0:
            raise UserError(f"gamma must lie in [0, 1], not be {strength}; see fast_electra.curriculum.initial")
        return axis_position("gamma", strength)

    @torch.no_grad()
    def pieces(self, masked: MaskedBatch, low: float, high: float) -> Pieces:
        """Return the draws at every gamma in [low, high], 0 <= low < high <= 1: the upper envelope of the lines."""
        if self.gamma is not None:  # one piece for the whole axis
            tokens_M = self.sample(masked, self.gamma).tokens_M
            starts_M = torch.full(tokens_M.shape, -math.inf, device=tokens_M.device)
            return Pieces(torch.ones_like(tokens_M), tokens_M, starts_M)
        low, high = self._gamma(low), self._gamma(high)
        settled: list[Tensor] = []  # positions
        found: list[Pieces] = []  # theirs
        rows_M, arrivals = torch.arange(len(masked.keys_M), device=masked.keys_M.device), self.arrivals
        while len(rows_M) or not found:
            open_rows = []
            for rows, lines in self._race(masked, rows_M, arrivals):
                pieces = envelope(lines.slopes_MC, lines.intercepts_MC, low, high)
                owner_P = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), pieces.counts_M)
                tokens_P = lines.tokens_MC[owner_P, pieces.tokens_P]
                decided = torch.ones_like(rows, dtype=torch.bool)
                decided[owner_P[tokens_P < 0]] = False
                kept_P = decided[owner_P]
                settled.append(rows[decided])
                found.append(Pieces(pieces.counts_M[decided], tokens_P[kept_P], pieces.starts_P[kept_P]))
                open_rows.append(rows[~decided])
            rows_M, arrivals = torch.cat(open_rows), 2 * arrivals
        settled_M, pieces = torch.cat(settled), concatenate(found)
        order_P = settled_M.repeat_interleave(pieces.counts_M).argsort(stable=True)
        return Pieces(pieces.counts_M[settled_M.argsort()], pieces.tokens_P[order_P], pieces.starts_P[order_P])

    def _race(self, masked: MaskedBatch, rows_M: Tensor, arrivals: int) -> Iterator[tuple[Tensor, _Lines]]:
        """Yield the given rows and their lines, block by block."""
        originals_M, lines = masked.original_M, len(self.sizes_G) * (arrivals + 1) + 1
        for rows in rows_M.split(max(1, _BLOCK // lines)):
            yield rows, self._lines(masked.keys_M[rows], originals_M[rows], arrivals)

    def _lines(self, keys_M: Tensor, originals_M: Tensor, arrivals: int) -> _Lines:
        m, g = len(keys_M), len(self.sizes_G)
        # Number 0 is the noise of x. The others follow arrival by arrival, so the first ones do not depend on K.
        numbers = torch.arange(1 + 2 * arrivals * g, dtype=torch.int32, device=keys_M.device)
        bits = random_bits(keys_M, numbers)
        own_M1 = exponential(bits[:, :1], torch.float64)
        times_MKG = exponential(bits[:, 1::2], torch.float64).view(m, arrivals, g).cumsum(dim=1) / self.sizes_G
        unsigned_MKG = (bits[:, 2::2].to(torch.int64) & 0xFFFFFFFF).view(m, arrivals, g)
        places_MKG = self.firsts_G + ((unsigned_MKG * self.sizes_G) >> 32)
        tokens_MA = self.members_V[places_MKG].flatten(1)
        # x has a line of its own, so its arrivals in the group are void. A group of one token needs no bound.
        void_MA = tokens_MA == originals_M[:, None]
        bound_G = self.largest_G - self.log_other
        slopes = (
            (self.log_q_V[originals_M] - self.log_x)[:, None],
            (self.log_q_V[tokens_MA] - self.log_other).masked_fill(void_MA, 0.0),
            bound_G.masked_fill(self.sizes_G == 1, 0.0).expand(m, g),
        )
        intercepts = (
            self.log_x - own_M1.log(),
            (self.log_other - times_MKG.flatten(1).log()).masked_fill(void_MA, NEVER),
            (self.log_other - times_MKG[:, -1].log()).masked_fill(self.sizes_G == 1, NEVER),
        )
        tokens = (originals_M[:, None], tokens_MA, torch.full((m, g), -1, device=keys_M.device))
        return _Lines(torch.cat(slopes, dim=1), torch.cat(intercepts, dim=1), torch.cat(tokens, dim=1))

    def _figures(self, originals_M: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
        """Return entropy (nats) and probability of the original token, float32 [M] each, in O(V) for all positions.

        After division by (alpha / (V - 1))^(1 - gamma), each token weighs q^gamma, and x weighs exp(log_ratio) q^gamma.
        """
        log_V = gamma * self.log_q_V
        weight_V = log_V.exp()
        log_ratio = (1.0 - gamma) * (self.log_x - self.log_other)
        log_M, weight_M = log_V[originals_M], weight_V[originals_M]
        new_M = weight_M * math.exp(log_ratio)
        total_M = weight_V.sum() - weight_M + new_M
        mean_M = ((weight_V * log_V).sum() - weight_M * log_M + new_M * (log_M + log_ratio)) / total_M
        return (total_M.log() - mean_M).clamp_min(0.0).float(), (new_M / total_M).float()


def auxiliary_free(
    name: str,
    vocabulary_size: int,
    alpha: float = 0.35,
    log_frequency_V: Tensor | None = None,
    device: torch.device | None = None,
) -> AuxiliaryFree:
    """Return the distribution of a name in `AUXILIARY_FREE`, for batches on `device` (None for the CPU).

    `alpha` is the share of smoothed one-hot that goes to other tokens than the original; the paper's is 0.35 (D.1).
    Uniform and term frequency do not depend on it. Term frequency needs `log_frequency_V`, float64 [V]; see
    `log_frequency`.
    """
    if AUXILIARY_FREE[name].frequency:
        assert log_frequency_V is not None and len(log_frequency_V) == vocabulary_size
        log_q_V = log_frequency_V
    else:
        log_q_V = torch.full((vocabulary_size,), -math.log(vocabulary_size), dtype=torch.float64)
    return AuxiliaryFree(log_q_V.to(device or torch.device("cpu")), alpha, AUXILIARY_FREE[name].gamma)
