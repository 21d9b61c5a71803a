"""T0 and tau of Eq. 2 under which an auxiliary's replacements follow a reference curve.

The auxiliary is run once. At each masked position its logits give the entropy and the probability of the original token
at any temperature; their means are smooth in log T, so that a few temperatures tell them all.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.polynomial import Chebyshev
from numpy.polynomial.chebyshev import chebpts1
from torch import Tensor

from fast_electra.calibration.reference import Reference
from fast_electra.settings import UserError
from fast_electra_kernels import logits, row_blocks

HIGHEST = 10.0  # temperature; the vocabularies of language models are all but flat there
NODES = 13  # temperatures measured; between them the interpolation errs by some 1e-5
RATES = (0.02, 1.0)  # tau; the paper tries 0.05 to 0.7 (C.3)
GRID, ZOOMS = 41, 8  # points of the search along T0 and along tau, and how often it is repeated around the best
LEARNT = 0.003  # a mean probability of the original token: who knows less at the end has learnt nothing


@dataclass(frozen=True)
class Response:
    """What the auxiliary's replacements are like at a temperature; see `Reference` for the two measures."""

    nodes_K: np.ndarray  # the temperatures that were measured
    measured_2K: np.ndarray

    @cached_property
    def curves(self) -> list[Chebyshev]:
        domain = (0.0, math.log(HIGHEST))
        return [Chebyshev.fit(np.log(self.nodes_K), row, len(row) - 1, domain) for row in self.measured_2K]

    def at(self, temperature: np.ndarray) -> np.ndarray:
        """Both measures, [2, ...], at temperatures [...] between 1 and HIGHEST."""
        return np.stack([curve(np.log(temperature)) for curve in self.curves])


def nodes() -> np.ndarray:
    """The temperatures to measure at: Chebyshev's points of log T."""
    return np.exp((chebpts1(NODES) + 1.0) / 2.0 * math.log(HIGHEST))


@torch.no_grad()
def statistics(
    hidden_ME: Tensor, weight_VE: Tensor, bias_V: Tensor, original_M: Tensor, temperatures: np.ndarray
) -> Tensor:
    """Sums over masked positions of p(original token) and of the entropy (nats) at each temperature: float64 [2, K].

    One product with the vocabulary head serves all temperatures; its logits never stand in memory as a whole.
    """
    sums = torch.zeros(2, len(temperatures), dtype=torch.float64)
    for rows in row_blocks(len(hidden_ME), len(weight_VE), hidden_ME.is_cuda):
        logits_RV = logits(hidden_ME[rows], weight_VE, bias_V)
        for k, temperature in enumerate(temperatures.tolist()):
            log_p_RV = F.log_softmax(logits_RV / temperature, dim=1)
            p_RV = log_p_RV.exp()
            sums[0, k] += p_RV.gather(1, original_M[rows, None]).sum(dtype=torch.float64).cpu()
            sums[1, k] -= (p_RV * log_p_RV).sum(dim=1).sum(dtype=torch.float64).cpu()
    return sums


def response_of(sums_2K: Tensor, masked: int, vocabulary_size: int) -> Response:
    """The response from the sums of `statistics` at `nodes()` over so many masked positions."""
    original_K, entropy_K = (sums_2K / masked).numpy()
    if not np.isfinite(original_K + entropy_K).all():
        raise UserError("the auxiliary model's logits are not finite: train or import it again")
    return Response(nodes(), np.stack([1.0 - original_K, entropy_K / math.log(vocabulary_size)]))


def target(reference: Reference, response: Response, match: str) -> np.ndarray:
    """What to follow at the reference's u, [2, P].

    "level" is the reference itself. "shape" stretches it so that it ends where the auxiliary ends, at T = 1: what is
    known (1 - each measure) is then the same share of what is known at the end.
    """
    if match == "level":
        return reference.curve_2P
    known_2P = 1.0 - reference.curve_2P
    if known_2P[:, -1].min() < LEARNT:
        raise UserError(
            f"the reference ({reference.name}) ends as ignorant as it began (replaced {reference.curve_2P[0, -1]:.1%}, "
            f"entropy {reference.curve_2P[1, -1]:.1%} of log V): there is no curriculum in it"
        )
    return 1.0 - known_2P * ((1.0 - response.at(np.array([1.0]))) / known_2P[:, -1:])


def temperatures(u: np.ndarray, initial: np.ndarray | float, rate: np.ndarray | float) -> np.ndarray:
    """Eq. 2."""
    return 1.0 + (np.asarray(initial) - 1.0) * np.exp(-u / np.asarray(rate))


def fit(response: Response, u_P: np.ndarray, target_2P: np.ndarray) -> tuple[float, float]:
    """T0 in [1, HIGHEST] and tau in RATES with the least mean square of both residuals, each point of u weighing alike.

    Both measures count alike: they run from 0 to 1. A grid over log T0 and log tau, then finer ones around its best:
    two unknowns need no more.
    """
    lowest, highest = np.log([1.0, RATES[0]]), np.log([HIGHEST, RATES[1]])
    low, high = lowest, highest
    for _ in range(ZOOMS):
        axes = np.exp(np.linspace(low, high, GRID))
        ours_2GGP = response.at(temperatures(u_P, axes[:, None, None, 0], axes[None, :, None, 1]))
        error_GG = ((ours_2GGP - target_2P[:, None, None]) ** 2).mean(axis=(0, 3))
        first, second = np.unravel_index(error_GG.argmin(), error_GG.shape)
        best = np.log([axes[first, 0], axes[second, 1]])
        reach = (high - low) / 5
        low, high = np.maximum(best - reach, lowest), np.minimum(best + reach, highest)
    return float(np.exp(best[0])), float(np.exp(best[1]))


def best_temperatures(response: Response, target_2P: np.ndarray) -> np.ndarray:
    """The temperature in [1, HIGHEST] that comes nearest to each point of the target: [P]."""
    grid_G = np.exp(np.linspace(0.0, math.log(HIGHEST), 2001))
    error_GP = ((response.at(grid_G)[:, :, None] - target_2P[:, None]) ** 2).sum(axis=0)
    return np.asarray(grid_G[error_GP.argmin(axis=0)])


def residuals(response: Response, u_P: np.ndarray, target_2P: np.ndarray, initial: float, rate: float) -> np.ndarray:
    """Root of the mean square over u of each measure's residual: [2]."""
    return np.asarray(np.sqrt(((response.at(temperatures(u_P, initial, rate)) - target_2P) ** 2).mean(axis=1)))
