"""The share of new normal images that a detector expects to call anomalous."""

from __future__ import annotations

from typing import Any

import numpy as np

from ipca_sklearn._utils._precision import below


def asked_rate(false_positive_rate: float | str, calibration_scores: np.ndarray, offset: float) -> float:
    """Return the share of new normal images that a model expects to call anomalous.

    With `"auto"` no share is asked for. It is then the share of the calibration scores below the threshold, counted
    with one more that is: few scores cannot tell a small share from none.
    """
    if not isinstance(false_positive_rate, str):
        return float(false_positive_rate)
    return float((np.sum(below(calibration_scores, offset)) + 1) / (len(calibration_scores) + 1))


def is_chosen(detector: Any) -> bool:
    """Return whether the threshold of a detector is the one that `set_threshold` has chosen."""
    chosen = detector.chosen_threshold_
    return chosen is not None and chosen.offset == detector.offset_


def expected_rate(detector: Any) -> float:
    """Return the share of new normal images that a detector expects to call anomalous, whatever set its threshold."""
    rate = "auto" if is_chosen(detector) else detector.false_positive_rate
    return asked_rate(rate, detector.calibration_scores_, detector.offset_)
