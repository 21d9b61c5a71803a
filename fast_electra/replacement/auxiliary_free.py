"""Replacements without an auxiliary model (D.1): uniform, term frequency, smoothed one-hot, and paths between (E.3).

All five are p_v ~ q_v^gamma * s_v^(1 - gamma), where q is uniform or the term frequency, and s smoothed one-hot:
s_x = 1 - alpha for the original token x, alpha / (V - 1) for each of the others. Footnote 7 and E.3 define the
path between two distributions as this product. "Uniform" is over the entire vocabulary, special tokens included,
as D.1 says; the term frequency of a special token, which no document holds, is 0, and 0^0 = 1 at gamma = 0.

The draw is a race. The token with the highest line gamma * log q_v + (1 - gamma) * log s_v + (Gumbel noise of v) wins:
that is exactly softmax, and one noise gives the draws at every gamma. V lines a position need not be made, for all
but a few have no chance. Tokens are grouped so that q varies within a group by at most a factor 2. Token v's noise
is -log of the first arrival of a Poisson process of rate 1; the processes of a group's n tokens together have arrivals

    A_k = (E_1 + ... + E_k) / n,   E standard exponential, each the token's that is drawn uniformly from the group,

where a later arrival of the same token simply loses. So the first K arrivals of each group are taken from the top. All
that come later lie below the line -log A_K with the group's largest q, the group's bound. A position at which a
bound wins is not decided yet, and is raced again with 2 K arrivals, the first K of which are the same.
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

_ARRIVALS = 4  # K of the first race: about one position in ten thousand needs another
_BLOCK = 2**18  # lines of all positions together that are held at a time: some tens of MB


class Recipe(NamedTuple):
    """What a distribution's name means.

    Attributes:
        frequency: q is the term frequency; otherwise it is uniform.
        gamma: the constant gamma of a distribution without a curriculum; None where the curriculum gives it.
    """

    frequency: bool
    gamma: float | None


AUXILIARY_FREE = {
    "uniform": Recipe(False, 1.0),
    "term_frequency": Recipe(True, 1.0),
    "smoothed_one_hot": Recipe(False, 0.0),
    "uniform_to_smoothed_one_hot": Recipe(False, None),
    "term_frequency_to_smoothed_one_hot": Recipe(True, None),
}


class _Lines(NamedTuple):
    """The competitors at each position: x itself, K arrivals of each group, and a bound for the rest of each group."""

    slopes_MC: Tensor  # float64, over gamma
    intercepts_MC: Tensor  # float64
    tokens_MC: Tensor  # int64, -1 for a bound


class AuxiliaryFree:
    """x_hat ~ q^gamma * s^(1 - gamma), drawn exactly, without a [masked, vocabulary] matrix.

    A draw is a function of the position's key, the original token and gamma. One bias remains: a token of a group of
    n is taken with the 32-bit (bits * n) >> 32, which changes its share of the group by less than n / 2^32.
    """

    floor = 0.0

    def __init__(self, log_q_V: Tensor, alpha: float, gamma: float | None, arrivals: int = _ARRIVALS) -> None:
        """
        Args:
            log_q_V: log q, float64 [V] on the device of the batches, normalised, `NEVER` where q is 0; V >= 2.
            alpha: the share of smoothed one-hot that is not the original token's, in (0, 1).
            gamma: constant in place of the curriculum's value, or None.
            arrivals: K of the first race; the draws do not depend on it.

        Raises:
            UserError: when alpha is out of range.
        """
        if not 0.0 < alpha < 1.0:
            raise UserError(
                f"fast_electra.replacement.alpha is {alpha}: it must lie between 0 and 1; the paper's is 0.35"
            )
        assert log_q_V.dtype == torch.float64 and len(log_q_V) >= 2
        self.gamma, self.arrivals = gamma, arrivals
        self.parameter = "gamma" if gamma is None else None
        self.log_q_V = log_q_V
        self.log_x, self.log_other = math.log1p(-alpha), math.log(alpha / (len(log_q_V) - 1))
        # Groups are made on the CPU, so that every device has the same. Borders a fraction of an octave off the
        # largest q keep clear of the ratios 1/2, 1/4, ... of small counts, which rounding could put on either side.
        log_q_V = log_q_V.cpu()
        octaves_V = ((log_q_V.max() - log_q_V) / math.log(2.0) + 0.3).floor()
        _, groups_V, sizes_G = torch.unique(octaves_V, return_inverse=True, return_counts=True)
        largest_G = torch.full(sizes_G.shape, -math.inf, dtype=torch.float64).scatter_reduce(
            0, groups_V, log_q_V, "amax"
        )
        device = self.log_q_V.device
        self.members_V = groups_V.argsort(stable=True).to(device)  # the tokens, group after group
        self.firsts_G = (sizes_G.cumsum(0) - sizes_G).to(device)  # where each group begins among them
        self.sizes_G, self.largest_G = sizes_G.to(device), largest_G.to(device)

    @torch.no_grad()
    def sample(self, masked: MaskedBatch, strength: float) -> Draws:
        """Draw at gamma = `strength`, or at the constant gamma if there is one; the draws have both figures.

        Raises:
            UserError: when gamma is not in [0, 1].
        """
        gamma = self._gamma(strength) if self.gamma is None else self.gamma
        originals_M = masked.original_M
        tokens_M = torch.full_like(originals_M, -1)
        rows_M, arrivals = torch.arange(len(tokens_M), device=tokens_M.device), self.arrivals
        while len(rows_M):
            for rows, lines in self._race(masked.keys_M, originals_M, rows_M, arrivals):
                winners = (lines.slopes_MC * gamma + lines.intercepts_MC).argmax(dim=1)
                tokens_M[rows] = lines.tokens_MC.gather(1, winners[:, None])[:, 0]
            rows_M, arrivals = rows_M[tokens_M[rows_M] < 0], 2 * arrivals
        return Draws(tokens_M, *self._figures(originals_M, gamma))

    def _gamma(self, strength: float) -> float:
        if not 0.0 <= strength <= 1.0:
            raise UserError(f"gamma is {strength}: it must lie in [0, 1]; see fast_electra.curriculum.initial")
        return axis_position("gamma", strength)

    @torch.no_grad()
    def pieces(self, masked: MaskedBatch, low: float, high: float) -> Pieces:
        """The draws at every gamma in [low, high], 0 <= low < high <= 1: the upper envelope of the lines."""
        if self.gamma is not None:  # one piece for the whole axis
            tokens_M = self.sample(masked, self.gamma).tokens_M
            starts_M = torch.full(tokens_M.shape, -math.inf, device=tokens_M.device)
            return Pieces(torch.ones_like(tokens_M), tokens_M, starts_M)
        low, high = self._gamma(low), self._gamma(high)
        originals_M = masked.original_M
        settled: list[Tensor] = []
        found: list[Pieces] = []
        rows_M, arrivals = torch.arange(len(originals_M), device=originals_M.device), self.arrivals
        while len(rows_M) or not found:
            open_rows = []
            for rows, lines in self._race(masked.keys_M, originals_M, rows_M, arrivals):
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
        return _ordered(settled, found)

    def _race(
        self, keys_M: Tensor, originals_M: Tensor, rows_M: Tensor, arrivals: int
    ) -> Iterator[tuple[Tensor, _Lines]]:
        """The lines of the given rows, block by block."""
        lines = len(self.sizes_G) * (arrivals + 1) + 1
        for rows in rows_M.split(max(1, _BLOCK // lines)):
            yield rows, self._lines(keys_M[rows], originals_M[rows], arrivals)

    def _lines(self, keys_M: Tensor, originals_M: Tensor, arrivals: int) -> _Lines:
        m, g = len(keys_M), len(self.sizes_G)
        # Number 0 is x's noise; then arrival by arrival, so that the first ones do not depend on how many there are.
        numbers = torch.arange(1 + 2 * arrivals * g, dtype=torch.int32, device=keys_M.device)
        bits = random_bits(keys_M, numbers)
        own_M1 = exponential(bits[:, :1], torch.float64)
        times_MKG = exponential(bits[:, 1::2], torch.float64).view(m, arrivals, g).cumsum(dim=1) / self.sizes_G
        unsigned_MKG = (bits[:, 2::2].to(torch.int64) & 0xFFFFFFFF).view(m, arrivals, g)
        places_MKG = self.firsts_G + ((unsigned_MKG * self.sizes_G) >> 32)
        tokens_MA = self.members_V[places_MKG].flatten(1)
        # x has a line of its own, so the arrivals that fell to it are void; a group of one token needs no bound.
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
        """Entropy (nats) and probability of the original token, float32 [M] each, in closed form: O(V) for all rows.

        Divided by (alpha / (V - 1))^(1 - gamma), every token weighs q^gamma, but x weighs `ratio` times as much.
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
    """The distribution of that name.

    Args:
        name: one of `AUXILIARY_FREE`.
        vocabulary_size: V.
        alpha: of smoothed one-hot; 0.35 is the paper's (D.1). Uniform and term frequency do not depend on it.
        log_frequency_V: float64 [V], from `log_frequency`; needed by distributions with `frequency`.
        device: of the batches; None is the CPU.
    """
    if AUXILIARY_FREE[name].frequency:
        assert log_frequency_V is not None and len(log_frequency_V) == vocabulary_size
        log_q_V = log_frequency_V
    else:
        log_q_V = torch.full((vocabulary_size,), -math.log(vocabulary_size), dtype=torch.float64)
    return AuxiliaryFree(log_q_V.to(device or torch.device("cpu")), alpha, AUXILIARY_FREE[name].gamma)


def _ordered(rows: list[Tensor], parts: list[Pieces]) -> Pieces:
    """Pieces of positions 0 to M - 1 from those of the positions `rows`, found part by part."""
    pieces = concatenate(parts)
    order_M = torch.cat(rows).argsort()
    counts_M = pieces.counts_M[order_M]
    firsts_M = (pieces.counts_M.cumsum(0) - pieces.counts_M)[order_M]
    # Piece j of the result stands as far from its position's first one as it did before.
    shifts_M = firsts_M - (counts_M.cumsum(0) - counts_M)
    index_P = torch.repeat_interleave(shifts_M, counts_M)
    index_P += torch.arange(len(index_P), device=index_P.device)
    return Pieces(counts_M, pieces.tokens_P[index_P], pieces.starts_P[index_P])
