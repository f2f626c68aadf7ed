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
    summaries : ndarray of shape (n, 2 + q)
        What the images that the model had learnt weighed when it scored this one, the image score (higher is more
        normal), and `tails` of the map.
    n_patches : int
        Values of a map.
    """

    summaries: np.ndarray
    n_patches: int

    def extended(self, parts: Iterable[np.ndarray]) -> Calibration:
        """Return this with later images added."""
        return Calibration(np.concatenate([self.summaries, *parts]), self.n_patches)

    def latest(self, n_images: int) -> Calibration:
        """Return the last `n_images`."""
        return Calibration(self.summaries[-n_images:], self.n_patches)

    def seen_by(self, weight: float) -> Reference:
        """Return what a model that has learnt images of this weight would have said."""
        good = self.summaries[:, 0] >= weight / 2  # poorer models are too far off to correct, if there are others
        summaries = self.summaries[good] if good.any() else self.summaries
        learnt, scores, tails = summaries[:, 0], summaries[:, 1], summaries[:, 2:]
        shares = _tail_ranks(self.n_patches)[1]
        return Reference(
            scores * _growth(learnt, -scores, weight),
            tails[:, 0] * _growth(learnt, tails[:, 0], weight),
            tails * _growth(learnt, tails @ shares, weight)[:, None],
            shares,
        )


def no_calibration(n_patches: int) -> Calibration:
    """Return the calibration by no image."""
    return Calibration(np.empty((0, 2 + len(_tail_ranks(n_patches)[0]))), n_patches)


def _growth(learnt: np.ndarray, distances: np.ndarray, weight: float) -> np.ndarray:
    """Return what distances by models that had learnt images of weights `learnt` are multiplied by to be those of now.

    Distances from a model of n images fall towards those from one of infinitely many as exp(c / n), to first order:
    mean, directions and noise of each patch err by a share of about 1 / n. c is found by least squares over the medians
    of the images that one model has scored, and is not below 0: more images do no harm.
    """
    usable = distances > 0
    models, owner, n_images = np.unique(learnt[usable], return_inverse=True, return_counts=True)
    if len(models) < 2:
        return np.ones_like(distances)
    logs = np.log(distances[usable])
    medians = np.array([np.median(logs[owner == model]) for model in range(len(models))])
    x = 1 / models - np.average(1 / models, weights=n_images)
    slope = max(0.0, np.sum(n_images * x * medians) / np.sum(n_images * x**2))
    return np.exp(slope * (1 / weight - 1 / learnt))


@dataclass(frozen=True)
class Reference:
    """Unseen normal images, all as one model sees them.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        Image scores, higher is more normal.
    maxima : ndarray of shape (n,)
        Largest values of the maps.
    tails : ndarray of shape (n, q)
        See `tails`.
    shares : ndarray of shape (q,)
        Of the values of a map that each column stands for.
    """

    scores: np.ndarray
    maxima: np.ndarray
    tails: np.ndarray
    shares: np.ndarray

    def offset(self, contamination: Any) -> float:
        """Return the score below which an image is called anomalous."""
        return _lower_threshold(self.scores, contamination)

    def map_threshold(self, contamination: Any, pixel_contamination: Any) -> float:
        """Return the value above which a patch of a map is called anomalous."""
        if pixel_contamination == "image":
            return -_lower_threshold(-self.maxima, contamination)
        if not len(self.tails):
            return np.inf
        descending = np.argsort(-self.tails, axis=None)
        above = np.cumsum(np.tile(self.shares / len(self.tails), len(self.tails))[descending])
        last = min(np.searchsorted(above, pixel_contamination, side="right"), len(above) - 1)
        return float(self.tails.flat[descending[last]])

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Return (1 + number of reference images that score as low or lower) / (1 + number of them); NaN for NaN."""
        as_low = np.searchsorted(np.sort(self.scores), scores, side="right")
        return np.where(np.isnan(scores), np.nan, (1 + as_low) / (1 + len(self.scores)))


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
