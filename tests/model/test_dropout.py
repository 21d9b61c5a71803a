"""Dropout by counter: its rate, its mean, and no dependence between rows, features and sites."""

import pytest
import torch

from fast_electra import randomness
from fast_electra.batch import Layout
from fast_electra.model.dropout import KeyedDropout

LAYOUT = Layout.of(torch.full((20,), 100), randomness.key(torch.arange(20)))


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("quick", [False, True])
def test_it_has_its_rate_and_keeps_the_mean(rate: float, quick: bool) -> None:
    """200,000 numbers at each site: within 5 standard deviations (error rate under 1e-6), and sites independent."""
    drop = KeyedDropout(hidden_rate=rate, attention_rate=rate, quick=quick)
    ones_TD = torch.ones(2000, 100)
    sites = [drop.of_layer(layer).hidden(ones_TD, branch, LAYOUT) for layer in (0, 1, 2) for branch in (0, 1)]
    sites.append(drop.of_layer(1).apply(ones_TD, drop.of_layer(1).query_keys(LAYOUT, 1), rate))
    deviation = (rate * (1 - rate) / ones_TD.numel()) ** 0.5
    for kept in sites:
        assert abs(float((kept == 0).float().mean()) - rate) < 5 * deviation
        assert torch.allclose(kept[kept != 0], torch.tensor(1 / (1 - rate)), rtol=1e-4)
    for one in range(len(sites)):
        for other in range(one):
            both = float(((sites[one] == 0) & (sites[other] == 0)).float().mean())
            assert abs(both - rate**2) < 5 * rate * deviation / (1 - rate) ** 0.5 + 5e-3 * rate


@pytest.mark.parametrize("width", [255, 256])
def test_neither_features_nor_rows_depend_on_each_other(width: int) -> None:
    """Correlations of all pairs of 256 features over 40,000 rows, of neighbouring rows, and of counts of rows.

    Among 32,640 pairs, independent ones stay below 6 standard deviations with an error rate of 7e-5.
    """
    drop, rows = KeyedDropout(hidden_rate=0.1, quick=True), 40_000
    factors = drop.apply(torch.ones(rows, width), randomness.key(3, torch.arange(rows)), 0.1)
    assert factors.shape == (rows, width)
    dropped = (factors == 0).float()
    centred = dropped - dropped.mean(0)
    correlation = (centred.T @ centred / rows) / (0.1 * 0.9)
    off_diagonal = correlation - torch.diag(correlation.diagonal())
    assert float(off_diagonal.abs().max()) < 6 * rows**-0.5
    shifted = (centred[1:] * centred[:-1]).mean(0) / (0.1 * 0.9)
    assert float(shifted.abs().max()) < 5 * rows**-0.5
    variance = float(dropped.sum(1).var()) / (width * 0.1 * 0.9)  # 1 if the features of a row are independent
    assert abs(variance - 1) < 5 * (2 / rows) ** 0.5


def test_in_training_the_gradient_is_dropped_as_the_value_is() -> None:
    x = torch.randn(2000, 32, requires_grad=True)
    out = KeyedDropout(hidden_rate=0.3, quick=True).hidden(x, 0, LAYOUT)
    out.sum().backward()
    assert torch.equal(x.grad == 0, out == 0) and 0.25 < float((out == 0).float().mean()) < 0.35
