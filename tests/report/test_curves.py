"""Curves must stay small for long runs, keep spikes, and follow the median."""

import numpy as np
from pages import Page

from fast_electra.report.curves import draw_panels, running_median


def test_a_long_run_is_drawn_small_and_keeps_its_spike() -> None:
    rows = [{"update": update, "loss": 0.3 + 0.001 * (update % 7)} for update in range(1, 20001)]
    ((_, calm),) = draw_panels("rtd", rows, [], "a-")
    rows[12345]["loss"] = 9.0
    ((_, spiked),) = draw_panels("rtd", rows, [], "a-")
    assert len(calm) < 100_000
    labels = Page(spiked).text("text").split()
    assert "8" in labels  # the axis reaches to the one high value
    assert "8" not in Page(calm).text("text").split()


def test_running_median_ignores_a_spike_and_follows_a_level() -> None:
    values = np.concatenate([np.zeros(50), np.ones(50)])
    values[20] = 1e9
    smooth = running_median(values)
    assert smooth.shape == values.shape
    assert set(smooth[:45]) == {0.0}
    assert set(smooth[55:]) == {1.0}
    assert list(running_median(np.array([3.0]))) == [3.0]
