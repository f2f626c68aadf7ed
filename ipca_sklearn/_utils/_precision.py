"""Exact comparisons of scores with thresholds, which numpy and torch round to the dtype of the scores first."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, tensor


def below(values: Any, threshold: float) -> Any:
    """Return where `values < threshold` (not NaN), without rounding the threshold to the dtype of the values."""
    nearest = _nearest(values, threshold)
    return values <= nearest if nearest < threshold else values < nearest


def above(values: Any, threshold: float) -> Any:
    """Return where `values > threshold`, as `below`."""
    nearest = _nearest(values, threshold)
    return values >= nearest if nearest > threshold else values > nearest


def difference(values: Any, threshold: float) -> Any:
    """Return `values - threshold` in the dtype of the values, negative exactly where `below` is true."""
    nearest = _nearest(values, threshold)
    rest = threshold - nearest if np.isfinite(nearest) else 0.0
    # Where a value is not the nearest one, it is farther from it than the rest, so the sign is right in any precision.
    return (values - nearest) - rest


def _nearest(values: Any, threshold: float) -> float:
    """Return the threshold as the dtype of the values has it."""
    if isinstance(values, Tensor):
        return tensor(threshold, dtype=values.dtype, device="cpu").item()
    with np.errstate(all="ignore"):  # beyond the dtype it is infinite, or 0
        return float(np.asarray(threshold).astype(np.asarray(values).dtype))
