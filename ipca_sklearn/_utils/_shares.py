"""Shares of images, and how well they are known."""

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest


def clopper_pearson(chosen: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the Clopper-Pearson interval of the proportion of True (n,), n at least 1."""
    interval = binomtest(int(chosen.sum()), len(chosen)).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)
