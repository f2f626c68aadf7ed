"""From the scores of normal images that a model had not learnt to thresholds and p-values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from scipy.stats import median_abs_deviation
from torch import Tensor

from ipca_sklearn.decomposition._batches import StepReader
from ipca_sklearn.decomposition._fitted import Fitted, independent_samples
from ipca_sklearn.decomposition._fitted_scatter import FittedCovariance

# Most calibration images that are kept: enough for any rate above 1 in 1000.
MAX_IMAGES = 8192

# Up to this many images each one is scored by a model of the others. From the next on, half of the images make a model
# that is good enough to score the other half.
FEW_IMAGES = 64

# Scores that were corrected by more than this, because their models had learnt far fewer images, are a guess.
LARGEST_CORRECTION = 0.2

# With n samples of its own, a Gaussian that borrows up to f of them is as precise as one of n (f / n) ** 2.5. Its own
# covariance has weight n / f, which gives 2; measured (docs/dev_notes.md), as is what is added to the slope there.
_PRECISION_OF_BORROWING, _SLOPE_OF_BORROWING = 2.5, 0.2

# How much the slope of a learning curve differs between kinds of images, and how far the formula is off between two
# models, in the logarithm of distances.
_SLOPE_DEVIATION, _FORMULA_DEVIATION = 0.2, 0.003

# Fewest images that tell how much a fall varies among them, and most falls that are kept.
_FEWEST_OF_FALL, _MAX_FALLS = 8, 64

# A fall: weights of two models, and by how much logarithms of distances of the same images differ, in the median and
# with the variance of that, for the scores of images, the maxima and the means of their maps.
_FALL_RECORD = np.dtype([("earlier", float), ("later", float), ("logs", float, 3), ("variances", float, 3)])


def split_for_calibration(steps: StepReader, calibration: float | str) -> tuple[StepReader, StepReader | None]:
    """Return the images to learn, and the last ones, which are held out, if `calibration` is a fraction."""
    if isinstance(calibration, str):  # "prequential"
        return steps, None
    n_held_out = min(max(1, round(calibration * steps.n_samples)), steps.n_samples - 1)
    learnt, held_out = steps.split(steps.n_samples - n_held_out)
    return learnt, held_out if n_held_out else None


def leave_out(
    learn: Callable[[Any, Tensor], Any], fitted: Any, images: Tensor, n_blocks: int
) -> Iterator[tuple[Any, Tensor]]:
    """Yield a model of all images (n, P, m) but a block, and this block, for consecutive blocks that cover the images.

    What is outside of a block is learnt half by half, so that blocks share most of the work: with 8 blocks an image is
    learnt 3 times instead of 7. `learn(fitted, images)` adds images; `fitted` is None if nothing has been learnt.
    """
    return _descend(learn, fitted, images, size=-(-len(images) // n_blocks))


def _descend(
    learn: Callable[[Any, Tensor], Any], fitted: Any, images: Tensor, size: int
) -> Iterator[tuple[Any, Tensor]]:
    """Yield `fitted` with all the images but a block of at most `size`, and this block."""
    if len(images) <= size:
        yield fitted, images
        return
    first, second = images.tensor_split(2)
    yield from _descend(learn, learn(fitted, second), first, size)
    yield from _descend(learn, learn(fitted, first), second, size)


@dataclass(frozen=True)
class LearningCurve:
    """By which factor new images are farther from a model of n images than from one of very many.

    With h directions of k that n images use, ``log factor = -log(1 - h / (n - 1)) / 2 - c log(h / k) + a (h + 1) / n``.
    The first term, for distances that are divided by a variance, is known; what a is tell images that two models have
    scored and, less exactly, different ones of several models (docs/dev_notes.md). A Gaussian of n < f samples borrows
    from all Gaussians, and is as precise as one of more samples; the errors of its mean remain.
    """

    n_directions: int  # h at most: k, or m for a full covariance
    divided: bool  # whether distances are divided by the variance that the directions leave
    largest_share: float  # h is at most this share of n - 1
    slope: float  # what a was on other images, to about 0.2
    per_image: float = 1.0  # independent samples that a Gaussian gets of an image: n of the formula counts those
    fewest: float = 0.0  # samples that a Gaussian has at least, because it borrows from others what is missing
    gain: float = 0.0  # c

    @classmethod
    def of(
        cls, distance: str, covariance: str, n_directions: int, per_image: float = 1.0, fewest: float = 0.0
    ) -> LearningCurve:
        """Return the curve of a kind of distance."""
        if covariance == "full":  # the ridge takes over where n - 1 is not much more than m
            return cls(n_directions, True, 0.95, 0.2, per_image)
        if distance == "residual":
            return cls(n_directions, False, 1, 0.4, per_image)
        if distance == "mahalanobis":  # directions of few images have variance that others do not have there
            return cls(n_directions, False, 1, -0.3, per_image)
        if per_image > 1:  # patches share a Gaussian, and with it far more directions
            return cls(n_directions, True, 0.5, 0.2, per_image, fewest, gain=0.1)
        return cls(n_directions, True, 0.5, 0.7, per_image, fewest)

    @classmethod
    def of_model(cls, distance: str, fitted: Fitted) -> LearningCurve:
        """Return the curve of a kind of distance from what was learnt."""
        covariance = "full" if isinstance(fitted, FittedCovariance) else "low_rank"
        per_image = independent_samples(fitted.group)
        return cls.of(distance, covariance, fitted.n_components, per_image, fitted.fewest_samples)

    def correction(
        self, learnt: np.ndarray, distances: np.ndarray, weight: float, falls: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the factors that turn distances by models of weights `learnt` into those by a model of `weight`."""
        known, x = self._terms(learnt)
        known_now, x_now = self._terms(np.array([weight]))
        falls = np.empty((0, 4)) if falls is None else falls
        return np.exp(known_now - known + self._slope(learnt, distances, falls) * (x_now - x))

    def _terms(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the term that is known, and what the slope is multiplied with."""
        own = np.maximum(weights * self.per_image, 1)
        borrows = own < self.fewest
        samples = np.where(borrows, own * (self.fewest / own) ** _PRECISION_OF_BORROWING, own)
        degrees = np.maximum(samples - 1, 1)
        spanned = np.maximum(np.maximum(own, self.fewest) - 1, 1)
        used = np.minimum(self.n_directions, np.floor(self.largest_share * spanned))
        known = -0.5 * np.log1p(-used / degrees) if self.divided else np.zeros_like(degrees)
        known -= self.gain * np.log(np.maximum(used, 1) / max(self.n_directions, 1))
        fewest = max(self.fewest, 1)
        of_means, of_directions = self.per_image * (1 / own - 1 / fewest), (used + 1) * (1 / samples - 1 / fewest)
        known += np.where(borrows, of_means + _SLOPE_OF_BORROWING * of_directions, 0)
        return known, (used + 1) / samples

    def _slope(self, learnt: np.ndarray, distances: np.ndarray, falls: np.ndarray) -> float:
        """Return the posterior mean of a, from falls and from the medians of the images that each model has scored."""
        earlier, later, logs, variances = falls.T
        (known, x), (known_later, x_later) = self._terms(earlier), self._terms(later)
        change, weights = x - x_later, 1 / (variances + _FORMULA_DEVIATION**2)
        precision = 1 / _SLOPE_DEVIATION**2 + np.sum(weights * change**2)
        total = self.slope / _SLOPE_DEVIATION**2 + np.sum(weights * change * (logs - known + known_later))
        usable = distances > 0
        models, owner, n_images = np.unique(learnt[usable], return_inverse=True, return_counts=True)
        if len(models) > 1:
            known, x = self._terms(models)
            logs = np.log(distances[usable]) - known[owner]
            medians = np.array([np.median(logs[owner == model]) for model in range(len(models))])
            # The variance of a median of n normal values is pi / (2 n) times theirs.
            spread = np.pi / 2 * median_abs_deviation(logs - medians[owner], scale="normal") ** 2
            centred = x - np.average(x, weights=n_images)
            precision = np.sum(n_images * centred**2) + spread * precision
            total = np.sum(n_images * centred * medians) + spread * total
        return float(total / precision) if precision else self.slope


@lru_cache(maxsize=32)
def _order_statistics(n_values: int) -> tuple[list[int], np.ndarray]:
    """Return ranks (0: largest), sparser towards small values, that represent `n_values`, and the share of each."""
    edges = np.unique(np.geomspace(1, n_values, 48).round().astype(int))  # the last rank, plus one, of each group
    starts = np.concatenate([[0], edges[:-1]])
    return list((starts + edges - 1) // 2), (edges - starts) / n_values


def upper_quantiles(maps: Tensor) -> Tensor:
    """Return about 40 order statistics of each map (n, ...), largest first: they give any upper quantile."""
    values = maps.flatten(1)
    return values.sort(dim=1, descending=True).values[:, _order_statistics(values.shape[1])[0]]


def medians(maps: Tensor) -> Tensor:
    """Return about the median of each map (n, ...): the order statistic nearest to it that `upper_quantiles` keeps."""
    values = maps.flatten(1)
    rank = _order_statistics(values.shape[1])[0][_median_column(values.shape[1])]
    return values.kthvalue(values.shape[1] - rank, dim=1).values


def _median_column(n_values: int) -> int:
    return int(np.abs(np.array(_order_statistics(n_values)[0]) - (n_values - 1) / 2).argmin())


@dataclass(frozen=True)
class Summaries:
    """What is kept of the maps of normal images, by models that had not learnt them, in the order of the images."""

    weights: np.ndarray  # (n,), of the images that the model had learnt
    scores: np.ndarray  # (n,), higher is more normal
    quantiles: np.ndarray  # (n, q), `upper_quantiles` of the maps
    n_patches: int  # number of values of a map
    falls: np.ndarray = field(default_factory=lambda: np.empty(0, _FALL_RECORD))  # (r,), from models to later ones

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def empty(cls, n_patches: int) -> Summaries:
        """Return the summaries of no image."""
        return cls.of(np.empty((0, 1 + len(_order_statistics(n_patches)[0]))), 0, n_patches)

    @classmethod
    def of(cls, columns: np.ndarray, weight: Any, n_patches: int) -> Summaries:
        """Return the summaries (n, 1 + q) of `MapScorer.summaries`, by models of one weight or of several (n,)."""
        columns = columns.astype(np.float64)
        weights = np.broadcast_to(np.asarray(weight, dtype=np.float64), len(columns)).copy()
        return cls(weights, columns[:, 0], columns[:, 1:], n_patches)

    def take(self, rows: Any) -> Summaries:
        """Return those of some images."""
        return Summaries(self.weights[rows], self.scores[rows], self.quantiles[rows], self.n_patches, self.falls)

    def extended(self, later: Summaries) -> Summaries:
        """Return these summaries with those of later images added."""
        return Summaries(
            np.concatenate([self.weights, later.weights]),
            np.concatenate([self.scores, later.scores]),
            np.concatenate([self.quantiles, later.quantiles]),
            self.n_patches,
            np.concatenate([self.falls, later.falls])[-_MAX_FALLS:],
        )

    @property
    def distances(self) -> np.ndarray:
        """Scores of images, maxima and means of their maps (3, n), larger is farther."""
        means = self.quantiles @ _order_statistics(self.n_patches)[1]
        return np.stack([-self.scores, self.quantiles[:, 0], means])

    def falls_of(self, number: int) -> np.ndarray:
        """Return the falls of one of the `distances` (r, 4), as `LearningCurve.correction` takes them."""
        falls = self.falls
        return np.stack([falls["earlier"], falls["later"], falls["logs"][:, number], falls["variances"][:, number]], 1)

    def with_fall(self, earlier: Summaries, later: Summaries) -> Summaries:
        """Return these with how much nearer the same images lie to a later model, if they are enough to tell."""
        positive = ((earlier.distances > 0) & (later.distances > 0)).all(0)  # NaN is not
        if positive.sum() < _FEWEST_OF_FALL:
            return self
        logs = np.log(earlier.distances[:, positive] / later.distances[:, positive])
        spread = median_abs_deviation(logs, axis=1, scale="normal")
        fall = (earlier.weights[0], later.weights[0], np.median(logs, 1), np.pi / 2 * spread**2 / logs.shape[1])
        return replace(self, falls=np.append(self.falls, np.array([fall], _FALL_RECORD)))

    def kept(self, count: int, weight: float, *, renewed: bool = True) -> Summaries:
        """Return those that still tell something about a model of `count` samples and this weight.

        Models of less than half the weight are too far off to be corrected, unless there are no others. Without
        `renewed` a model scores until it has half of the weight that was known: a quarter, when the later half of the
        images is scored. With forgetting (`weight` below `count`) only the latest images are like those to come.
        """
        largest = self.weights.max(initial=0)
        if renewed:
            near = self.weights >= min(weight, largest) / 2
        else:
            later = np.arange(len(self)) >= len(self) - count // 2
            near = (self.weights >= weight / 2) | (later & (self.weights >= min(weight / 4, largest / 2)))
        n_latest = MAX_IMAGES if weight >= count else max(2, round(weight) // 2)
        kept = self.take(np.flatnonzero(near)[-n_latest:])
        return replace(kept, falls=self.falls[self.falls["earlier"] >= kept.weights.min(initial=np.inf)])

    def corrected_to(self, weight: float, curve: LearningCurve) -> ReferenceScores:
        """Return the scores as a model that has learnt images of this weight would give them."""
        of_scores, of_maxima, of_quantiles = (
            curve.correction(self.weights, distances, weight, self.falls_of(number))
            for number, distances in enumerate(self.distances)
        )
        return ReferenceScores(
            self.scores * of_scores,
            self.quantiles[:, 0] * of_maxima,
            self.quantiles * of_quantiles[:, None],
            _order_statistics(self.n_patches)[1],
            float(np.median(np.abs(of_scores - 1))) if len(self) else 0.0,
        )


@dataclass(frozen=True)
class ReferenceScores:
    """Scores of normal images that were not learnt, all by one model: the reference of thresholds and p-values."""

    scores: np.ndarray  # (n,), higher is more normal
    maxima: np.ndarray  # (n,), largest values of the maps
    quantiles: np.ndarray  # (n, q), `upper_quantiles` of the maps
    shares: np.ndarray  # (q,), share of the values of a map that each column represents
    correction: float = 0.0  # median relative change of the scores that brought them to the model

    def medians(self, n_patches: int) -> np.ndarray:
        """Return about the medians of the maps, see `medians`."""
        return self.quantiles[:, _median_column(n_patches)]

    def offset(self, false_positive_rate: Any) -> float:
        """Return the score below which an image is called anomalous."""
        return _lower_threshold(self.scores, false_positive_rate)

    def map_threshold(self, false_positive_rate: Any, pixel_false_positive_rate: Any) -> float:
        """Return the value above which a patch of a map is called anomalous."""
        if pixel_false_positive_rate == "image":
            return -_lower_threshold(-self.maxima, false_positive_rate)
        if not len(self.quantiles):
            return np.inf
        descending, above = self._sorted_quantiles
        last = min(np.searchsorted(above, pixel_false_positive_rate, side="right"), len(above) - 1)
        return float(descending[last])

    @cached_property
    def _sorted_quantiles(self) -> tuple[np.ndarray, np.ndarray]:
        """All quantiles, largest first, and the share of all values that is above each of them."""
        order = np.argsort(-self.quantiles, axis=None)
        above = np.cumsum(np.tile(self.shares / len(self.quantiles), len(self.quantiles))[order])
        return self.quantiles.flat[order], above

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_sorted_quantiles"}

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Return (1 + number of reference images that score as low or lower) / (1 + number of them); NaN for NaN."""
        as_low = np.searchsorted(np.sort(self.scores), scores, side="right")
        return np.where(np.isnan(scores), np.nan, (1 + as_low) / (1 + len(self.scores)))


def _lower_threshold(scores: np.ndarray, rate: Any) -> float:
    """Return the score that a share `rate` of new scores falls below, or three robust standard deviations ("auto")."""
    if not len(scores):
        return -np.inf
    if rate != "auto":
        return float(np.quantile(scores, rate, method="weibull"))
    return float(np.median(scores) - 3 * median_abs_deviation(scores, scale="normal"))
