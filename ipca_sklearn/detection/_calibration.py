"""From the scores of normal images that a model had not learnt to thresholds and p-values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.stats import median_abs_deviation
from torch import Tensor

from ipca_sklearn.decomposition._batches import StepReader

# Most calibration images that are kept: enough for any rate above 1 in 1000.
MAX_IMAGES = 8192


def n_calibration_images(n_samples: int, weight: float) -> int:
    """Return how many of the latest images set the thresholds; the scores of earlier ones come from a poorer model.

    `weight` is the sum of the weights of the samples in the model: less than their number with forgetting.
    """
    return min(MAX_IMAGES, max(2, min(n_samples, round(weight)) // 2))


def split_for_calibration(steps: StepReader, calibration: float | str) -> tuple[StepReader, StepReader | None]:
    """Return the images to learn, and the last ones, which are held out, if `calibration` is a fraction."""
    if isinstance(calibration, str):  # "prequential"
        return steps, None
    n_held_out = min(max(1, round(calibration * steps.n_samples)), steps.n_samples - 1)
    learnt, held_out = steps.split(steps.n_samples - n_held_out)
    return learnt, held_out if n_held_out else None


def first_scored_image(n_learnt: int, steps: StepReader, calibration: float | str) -> float:
    """Return the number of the first image to score before it is learnt: earlier scores would be dropped in the end.

    Infinity where the calibration images are held out.
    """
    if not isinstance(calibration, str):
        return np.inf
    if steps.may_skip:  # the total is not known
        return 0
    total = n_learnt + steps.n_samples
    return total - n_calibration_images(total, total)


@lru_cache(maxsize=32)
def _order_statistics(n_values: int) -> tuple[list[int], np.ndarray]:
    """Return ranks (0 is the largest) that represent `n_values` sorted values, and the share that each represents.

    The largest value represents itself. Ranks get sparser towards small values, from which no threshold is made.
    """
    edges = np.unique(np.geomspace(1, n_values, 48).round().astype(int))  # the last rank, plus one, of each group
    starts = np.concatenate([[0], edges[:-1]])
    return list((starts + edges - 1) // 2), (edges - starts) / n_values


def upper_quantiles(maps: Tensor) -> Tensor:
    """Return about 40 order statistics of each map (n, ...), largest first: they give any upper quantile."""
    values = maps.flatten(1)
    return values.sort(dim=1, descending=True).values[:, _order_statistics(values.shape[1])[0]]


@dataclass(frozen=True)
class Calibration:
    """Scores of normal images by models that had not learnt them, in the order of the images.

    Parameters
    ----------
    summaries : ndarray of shape (n, 2 + q)
        Per image: the weight of the images that the model had learnt when it scored this one, the image score (higher
        is more normal), and the `upper_quantiles` of the map.
    n_patches : int
        Number of values of a map.
    """

    summaries: np.ndarray
    n_patches: int

    @classmethod
    def empty(cls, n_patches: int) -> Calibration:
        """Return the calibration by no image."""
        return cls(np.empty((0, 2 + len(_order_statistics(n_patches)[0]))), n_patches)

    def extended(self, parts: Iterable[np.ndarray]) -> Calibration:
        """Return this calibration with later images added."""
        return Calibration(np.concatenate([self.summaries, *parts]), self.n_patches)

    def latest(self, n_images: int) -> Calibration:
        """Return the last `n_images`."""
        return Calibration(self.summaries[-n_images:], self.n_patches)

    def corrected_to(self, weight: float) -> ReferenceScores:
        """Return the scores as a model that has learnt images of this weight would give them."""
        # Models of less than half the weight are too far off to be corrected; they serve only if there are no others.
        near = self.summaries[:, 0] >= weight / 2
        summaries = self.summaries[near] if near.any() else self.summaries
        learnt, scores, quantiles = summaries[:, 0], summaries[:, 1], summaries[:, 2:]
        shares = _order_statistics(self.n_patches)[1]
        return ReferenceScores(
            scores * _sample_size_correction(learnt, -scores, weight),
            quantiles[:, 0] * _sample_size_correction(learnt, quantiles[:, 0], weight),
            quantiles * _sample_size_correction(learnt, quantiles @ shares, weight)[:, None],
            shares,
        )


def _sample_size_correction(learnt: np.ndarray, distances: np.ndarray, weight: float) -> np.ndarray:
    """Return the factors that turn distances by models of weights `learnt` into those by a model of `weight`.

    To first order, distances from a model of n images exceed those from a model of infinitely many by the factor
    exp(c / n): the errors of mean, directions and noise of each patch are of relative size 1 / n. Least squares over
    the medians of the images that one model has scored give c, which is not below 0 (more images do no harm).
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
class ReferenceScores:
    """Scores of normal images that were not learnt, all by one model: the reference of thresholds and p-values.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        Image scores, higher is more normal.
    maxima : ndarray of shape (n,)
        Largest values of the maps.
    quantiles : ndarray of shape (n, q)
        `upper_quantiles` of the maps.
    shares : ndarray of shape (q,)
        Share of the values of a map that each column represents.
    """

    scores: np.ndarray
    maxima: np.ndarray
    quantiles: np.ndarray
    shares: np.ndarray

    def offset(self, false_positive_rate: Any) -> float:
        """Return the score below which an image is called anomalous."""
        return _lower_threshold(self.scores, false_positive_rate)

    def map_threshold(self, false_positive_rate: Any, pixel_false_positive_rate: Any) -> float:
        """Return the value above which a patch of a map is called anomalous."""
        if pixel_false_positive_rate == "image":
            return -_lower_threshold(-self.maxima, false_positive_rate)
        if not len(self.quantiles):
            return np.inf
        descending = np.argsort(-self.quantiles, axis=None)
        above = np.cumsum(np.tile(self.shares / len(self.quantiles), len(self.quantiles))[descending])
        last = min(np.searchsorted(above, pixel_false_positive_rate, side="right"), len(above) - 1)
        return float(self.quantiles.flat[descending[last]])

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Return (1 + number of reference images that score as low or lower) / (1 + number of them); NaN for NaN."""
        as_low = np.searchsorted(np.sort(self.scores), scores, side="right")
        return np.where(np.isnan(scores), np.nan, (1 + as_low) / (1 + len(self.scores)))


def _lower_threshold(scores: np.ndarray, rate: Any) -> float:
    """Return the score that a share `rate` of new scores falls below, or three robust standard deviations ("auto").

    With "weibull" the k-th smallest of n scores is the quantile k / (n + 1): that is the expected share of new scores
    below it, for any distribution. Without scores the threshold is minus infinity: nothing falls below it.
    """
    if not len(scores):
        return -np.inf
    if rate != "auto":
        return float(np.quantile(scores, rate, method="weibull"))
    return float(np.median(scores) - 3 * median_abs_deviation(scores, scale="normal"))
