"""DriftDisplay: the numbers that it draws."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from ipca_sklearn.inspection import DriftDisplay
from ipca_sklearn.monitoring import DriftMonitor

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def _close_figures() -> Any:
    yield
    plt.close("all")


def texts(display: DriftDisplay) -> str:
    return " ".join(text.get_text() for text in display.ax_.get_legend().get_texts())


def test_the_course_is_the_history_in_powers_of_ten_with_a_line_at_the_limit() -> None:
    monitor = DriftMonitor(alpha=0.001, n_history=100).update(np.random.default_rng(0).random(500))
    display = DriftDisplay.from_monitor(monitor)
    np.testing.assert_array_equal(display.line_.get_xdata(), monitor.history_[:, 0])
    np.testing.assert_allclose(10 ** display.line_.get_ydata(), np.exp(monitor.history_[:, 1]))
    np.testing.assert_allclose(display.limit_.get_ydata(), 3)
    assert "alarm at 1,000" in texts(display) and "changed" not in texts(display)


def test_an_alarm_and_the_change_before_it_are_drawn() -> None:
    rng = np.random.default_rng(0)
    monitor = DriftMonitor().update(np.concatenate([rng.random(1500), rng.random(100) ** 4]))
    _, axis = plt.subplots()
    display = DriftDisplay.from_monitor(monitor, ax=axis)
    assert display.ax_ is axis and monitor.alarm_
    assert f"alarm: frame {monitor.alarm_at_:,}" in texts(display)
    assert f"changed since about frame {monitor.changed_since_:,}" in texts(display)
    assert axis.get_ylim() == (-1, 5)  # what comes after the alarm does not squeeze what was before


def test_a_monitor_that_has_seen_nothing_is_drawn_and_others_are_refused() -> None:
    display = DriftDisplay.from_monitor(DriftMonitor().fit())
    assert len(display.line_.get_xdata()) == 0 and display.alarm_at is None
    with pytest.raises(NotFittedError):
        DriftDisplay.from_monitor(DriftMonitor())
    with pytest.raises(TypeError, match="str is no monitor"):
        DriftDisplay.from_monitor("monitor")
