"""From scores of normal images that a model had not learnt from to thresholds and p-values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

# Images kept, at most: enough for any share above 1 in 1000.
MAX_IMAGES = 8192


def window(n_samples: int, weight: float) -> int:
    """Return how many of the latest images set the thresholds: early scores come from a poor model.

    `weight` is what the model's samples weigh together: less than their number where the past is forgotten.
    """
    return min(MAX_IMAGES, max(2, min(n_samples, round(weight)) // 2))


@lru_cache(maxsize=32)
def _tail_ranks(n_values: int) -> tuple[list[int], np.ndarray]:
    """Return ranks (0 is the largest) that stand for all of `n_values` sorted values, and the share of each.

    The largest value stands for itself; towards the small ones, of which no threshold is made, ranks get sparse.
    """
    edges = np.unique(np.geomspace(1, n_values, 48).round().astype(int))  # the last rank, plus one, of each group
    starts = np.concatenate([[0], edges[:-1]])
    return list((starts + edges - 1) // 2), (edges - starts) / n_values


def tails(maps: Tensor) -> Tensor:
    """Return about 40 values of each map (n, ...), largest first, from which any upper quantile can be told."""
    values = maps.flatten(1)
    return values.sort(dim=1, descending=True).values[:, _tail_ranks(values.shape[1])[0]]


@dataclass(frozen=True)
class Calibration:
    """How unseen normal images looked to the model, in the order in which they came.

    Parameters
    ----------
    summaries : ndarray of shape (n, 1 + q)
        Image scores (higher is more normal), and `tails` of the maps.
    n_patches : int
        Values of a map.
    """

    summaries: np.ndarray
    n_patches: int

    @property
    def scores(self) -> np.ndarray:
        """Image scores (n,)."""
        return self.summaries[:, 0]

    def extended(self, parts: Iterable[np.ndarray]) -> Calibration:
        """Return this with later images added."""
        return Calibration(np.concatenate([self.summaries, *parts]), self.n_patches)

    def latest(self, n_images: int) -> Calibration:
        """Return the last `n_images`."""
        return Calibration(self.summaries[-n_images:], self.n_patches)

    def offset(self, contamination: Any) -> float:
        """Return the score below which an image is called anomalous."""
        return _lower_threshold(self.scores, contamination)

    def map_threshold(self, contamination: Any, pixel_contamination: Any) -> float:
        """Return the value above which a patch of a map is called anomalous."""
        tails = self.summaries[:, 1:]
        if pixel_contamination == "image":
            return -_lower_threshold(-tails[:, 0], contamination)
        if not len(tails):
            return np.inf
        descending = np.argsort(-tails, axis=None)
        shares = np.tile(_tail_ranks(self.n_patches)[1] / len(tails), len(tails))
        above = np.cumsum(shares[descending])
        last = min(np.searchsorted(above, pixel_contamination, side="right"), len(above) - 1)
        return float(tails.flat[descending[last]])

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Return (1 + number of calibration images that score as low or lower) / (1 + number of them)."""
        as_low = np.searchsorted(np.sort(self.scores), scores, side="right")
        return (1 + as_low) / (1 + len(self.scores))


def no_calibration(n_patches: int) -> Calibration:
    """Return the calibration by no image."""
    return Calibration(np.empty((0, 1 + len(_tail_ranks(n_patches)[0]))), n_patches)


def _lower_threshold(scores: np.ndarray, contamination: Any) -> float:
    """Return what a share `contamination` of new scores falls below, or three robust standard deviations ("auto").

    With "weibull" the k-th smallest of n scores stands for the share k / (n + 1): that is where a new score falls below
    it on average, whatever the distribution is. Nothing is below minus infinity, the threshold of no scores.
    """
    if not len(scores):
        return -np.inf
    if contamination != "auto":
        return float(np.quantile(scores, contamination, method="weibull"))
    median = np.median(scores)
    return float(median - 3 * 1.4826 * np.median(np.abs(scores - median)))
