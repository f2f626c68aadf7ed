"""A threshold that a user has chosen from images that the model has not learnt, and how good it is."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import numpy as np

from ipca_sklearn._utils._shares import clopper_pearson
from ipca_sklearn.detection._calibration import LARGEST_CORRECTION, LearningCurve
from ipca_sklearn.exceptions import FewImagesWarning

# An error rate is known to about a factor of 2 from this many errors.
_ENOUGH_ERRORS = 3

# A share times a number of images is a whole number to about this.
_ROUNDING = 1e-9

# Largest distance of a threshold from the score that it must leave on one side, relative to it: exported models and
# other devices have the scores to about this.
_MARGIN = 1e-4


@dataclass(frozen=True)
class ErrorRate:
    """Share of images that a threshold gets wrong, of those that were counted.

    Parameters
    ----------
    n_errors, n_images : int
        Counts.
    low, high : float
        Clopper-Pearson interval of the rate among images like these.
    """

    n_errors: int
    n_images: int
    low: float
    high: float

    @classmethod
    def of(cls, errors: np.ndarray, confidence: float) -> ErrorRate:
        """Return the rate of some images; without images nothing is known of it."""
        if not len(errors):
            return cls(0, 0, 0.0, 1.0)
        return cls(int(errors.sum()), len(errors), *clopper_pearson(errors, confidence))

    def __str__(self) -> str:
        if not self.n_images:
            return "not known: no images"
        return f"{self.n_errors} of {self.n_images} images ({self.low:.1%} to {self.high:.1%})"


@dataclass(frozen=True)
class ChosenThreshold:
    """What `PatchGaussianDetector.set_threshold` has chosen, and from what.

    Parameters
    ----------
    offset : float
        Images with a lower score are anomalous.
    map_threshold : float or None
        Patches with a larger value of the map are anomalous; None is the learnt one.
    rule : str
        What was asked for, such as `"false_alarms=0.01"`.
    false_alarms, missed : ErrorRate
        Errors among the normal and the anomalous images it was chosen from.
    confidence : float
        Of their intervals.
    source : str
        Where the images came from, in the words of the user.
    weight : float
        Weight of the images that the model had learnt.
    rates : tuple
        `false_positive_rate` and `pixel_false_positive_rate` at the time. Setting another one afterwards counts more.
    """

    offset: float
    map_threshold: float | None
    rule: str
    false_alarms: ErrorRate
    missed: ErrorRate
    confidence: float
    source: str
    weight: float
    rates: tuple[Any, ...] = field(repr=False)

    def carried_to(self, weight: float, curve: LearningCurve) -> ChosenThreshold:
        """Return the threshold for a model that has learnt images of another weight.

        Distances shrink while a model learns, as its learning curve says, and the threshold with them.
        """
        old = np.array([self.weight])
        factor = float(curve.correction(old, np.array([-self.offset]), weight)[0])
        if abs(factor - 1) > LARGEST_CORRECTION:
            warnings.warn(
                f"the threshold that set_threshold chose ({self.rule}) was multiplied by {factor:.2f}, because the "
                "model has learnt far more images since: choose it again with images that were not learnt",
                FewImagesWarning,
                stacklevel=6,
            )
        map_threshold = None if self.map_threshold is None else self.map_threshold * factor
        return replace(self, offset=self.offset * factor, map_threshold=map_threshold, weight=weight)

    def __str__(self) -> str:
        source = f", from {self.source}" if self.source else ""
        return f"{self.rule}{source}: false alarms {self.false_alarms}, missed {self.missed}, at {self.confidence:.0%}"


def check_wishes(
    X: Any, false_alarms: float | None, recall: float | None, score: float | None, confidence: float
) -> None:
    """Raise a ValueError unless exactly one wish is given, in its range, with the images that it takes."""
    if sum(value is not None for value in (false_alarms, recall, score)) != 1:
        raise ValueError("set_threshold takes one of false_alarms=, recall= and score=")
    if X is None and score is None:
        wish = f"false_alarms={false_alarms}" if recall is None else f"recall={recall}"
        raise ValueError(f"{wish} takes images that were not learnt; without any only score can be given")
    for name, value in (("false_alarms", false_alarms), ("confidence", confidence)):
        if value is not None and not 0 < value < 1:
            raise ValueError(f"{name}={value} is not between 0 and 1")
    if recall is not None and not 0 < recall <= 1:
        raise ValueError(f"recall={recall} is not above 0 and at most 1")
    if score is not None and not np.isfinite(score):
        raise ValueError(f"score={score} is not a finite number")


def offset_for(normal: np.ndarray, anomalous: np.ndarray, false_alarms: float | None, recall: float | None) -> float:
    """Return the score below which an image is anomalous, for one of two wishes.

    The k-th smallest of n normal scores has an expected share k / (n + 1) of new normal scores below it, so the
    threshold for `false_alarms` lies just below the largest such score with no more than that. The threshold for
    `recall` lies just above the score of the anomalous image that completes that share.

    "Just" is half of the way to the next score, at most 1e-4 and at least a few units in the last place: the last
    digits of a score depend on what its image is computed with, and must not decide. The threshold has the precision of
    the scores.

    Raises
    ------
    ValueError
        There are no images of the kind that the wish is about.
    """
    both = np.concatenate([normal, anomalous])
    if recall is not None:
        if not len(anomalous):
            raise ValueError(f"recall={recall} takes anomalous images: label them -1 in y")
        rank = max(ceil(recall * len(anomalous) - _ROUNDING), 1)
        return _beside(np.sort(anomalous)[rank - 1], both, np.inf)
    assert false_alarms is not None
    if not len(normal):
        raise ValueError(f"false_alarms={false_alarms} takes normal images: label them +1 in y, or leave y out")
    return _beside(np.sort(normal)[max(_rank(false_alarms, len(normal)), 1) - 1], both, -np.inf)


def _beside(score: Any, scores: np.ndarray, towards: float) -> float:
    """Return a threshold just above a score (`towards=inf`), or just below it (`-inf`), apart from the other scores."""
    noise = 16 * max(np.abs(np.spacing(score)), np.finfo(scores.dtype).tiny)
    gaps = np.sign(towards) * (scores - score)
    gap = gaps[gaps > 2 * noise].min(initial=np.inf)
    margin = max(noise, min(gap / 2, _MARGIN * abs(score)))
    return float(score + np.sign(towards).astype(scores.dtype) * scores.dtype.type(margin))


def warn_of_few_normal_images(false_alarms: float, n_images: int) -> None:
    """Say how many normal images a share of false alarms takes, if there are fewer, and what is given instead."""
    rank = _rank(false_alarms, n_images)
    if rank < 1:
        warnings.warn(
            f"false_alarms={false_alarms} takes the scores of {ceil(1 / false_alarms) - 1} normal images, and there "
            f"are {n_images}: the threshold is the lowest of them, and about {1 / (n_images + 1):.2%} of new "
            "normal images will be called anomalous",
            FewImagesWarning,
            stacklevel=4,
        )
    elif rank < _ENOUGH_ERRORS:
        warnings.warn(
            f"{n_images} normal images are few for false_alarms={false_alarms}: from "
            f"{ceil(_ENOUGH_ERRORS / false_alarms)} on it is met to about a factor of 2",
            FewImagesWarning,
            stacklevel=4,
        )


def _rank(false_alarms: float, n_images: int) -> int:
    """Return which of the sorted scores is the threshold, counted from 1; 0 if none is low enough."""
    return int(false_alarms * (n_images + 1) + _ROUNDING)
