"""A threshold that a user has chosen from images that the model has not learnt, and how good it is."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import numpy as np

from ipca_sklearn._utils._precision import below
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
    """Share of images that a threshold gets wrong, of those that were counted, with its Clopper-Pearson interval."""

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
class ThresholdRule:
    """What a threshold is chosen by: exactly one of three."""

    false_positive_rate: float | None
    recall: float | None
    score: float | None

    def __str__(self) -> str:
        return "".join(f"{name}={value}" for name, value in vars(self).items() if value is not None)

    def check(self, X: Any, confidence: float) -> None:
        """Raise a ValueError unless one is given, in its range, with the images that it takes."""
        if sum(value is not None for value in vars(self).values()) != 1:
            raise ValueError("the threshold takes one of false_positive_rate=, recall= and score=")
        if X is None and self.score is None:
            raise ValueError(f"{self} takes images that were not learnt; without any only score can be given")
        for name, value in (("false_positive_rate", self.false_positive_rate), ("confidence", confidence)):
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name}={value} is not between 0 and 1")
        if self.recall is not None and not 0 < self.recall <= 1:
            raise ValueError(f"recall={self.recall} is not above 0 and at most 1")
        if self.score is not None and not np.isfinite(self.score):
            raise ValueError(f"score={self.score} is not a finite number")

    def offset(self, normal: np.ndarray, anomalous: np.ndarray) -> float:
        """Return the score below which an image is anomalous, from scores of labelled images.

        The k-th smallest of n normal scores has an expected share k / (n + 1) of new normal scores below it: the
        threshold for `false_positive_rate` lies just below the largest such score with no more than that. That for
        `recall` lies just above the score of the anomalous image that completes that share. "Just" is half of the way
        to the next score, at most 1e-4: the last digits of a score depend on what its image is computed with.
        """
        if self.score is not None:
            return float(self.score)
        both = np.concatenate([normal, anomalous])
        if self.recall is not None:
            if not len(anomalous):
                raise ValueError(f"{self} takes anomalous images: label them -1 in y")
            rank = max(ceil(self.recall * len(anomalous) - _ROUNDING), 1)
            return _beside(np.sort(anomalous)[rank - 1], both, np.inf)
        assert self.false_positive_rate is not None
        if not len(normal):
            raise ValueError(f"{self} takes normal images: label them +1 in y, or leave y out")
        rank = max(_rank(self.false_positive_rate, len(normal)), 1)
        return _beside(np.sort(normal)[rank - 1], both, -np.inf)

    def warn_of_few(self, n_images: int) -> None:
        """Say how many normal images a false positive rate takes, if there are fewer, and what is given instead."""
        if self.false_positive_rate is None:
            return
        rank = _rank(self.false_positive_rate, n_images)
        if rank < 1:
            message = (
                f"{self} takes the scores of {ceil(1 / self.false_positive_rate) - 1} normal images, and there are "
                f"{n_images}: the threshold is the lowest of them, and about {1 / (n_images + 1):.2%} of new normal "
                "images will be called anomalous"
            )
        elif rank < _ENOUGH_ERRORS:
            message = (
                f"{n_images} normal images are few for {self}: from {ceil(_ENOUGH_ERRORS / self.false_positive_rate)} "
                "on it is met to about a factor of 2"
            )
        else:
            return
        warnings.warn(message, FewImagesWarning, stacklevel=5)


@dataclass(frozen=True)
class LabelledScores:
    """Scores of normal and of anomalous images, and the negative maxima of their maps: lower is more anomalous."""

    normal: np.ndarray
    anomalous: np.ndarray
    normal_maps: np.ndarray
    anomalous_maps: np.ndarray

    @classmethod
    def of(cls, columns: np.ndarray, labels: np.ndarray) -> LabelledScores:
        """Return those of images from columns of `Summaries`; images that could not be read (NaN) do not count."""
        read = ~np.isnan(columns).any(axis=1)
        kinds = (read & (labels == 1), read & (labels == -1))
        return cls(*(columns[kind, 0] for kind in kinds), *(-columns[kind, 1] for kind in kinds))


@dataclass(frozen=True)
class ChosenThreshold:
    """What `PatchGaussianDetector.set_threshold` has chosen, and from what."""

    offset: float  # images with a lower score are anomalous
    map_threshold: float | None  # patches with a larger value of the map are anomalous; None is the learnt one
    rule: str  # what was asked for, such as "false_positive_rate=0.01"
    false_positives: ErrorRate  # errors among the normal images it was chosen from
    missed: ErrorRate  # errors among the anomalous ones
    confidence: float  # of their intervals
    source: str  # where the images came from, in the words of the user
    weight: float  # of the images that the model had learnt
    # `false_positive_rate` and `pixel_false_positive_rate` at the time: setting another one afterwards counts more
    rates: tuple[Any, ...] = field(repr=False)

    @classmethod
    def by(
        cls,
        rule: ThresholdRule,
        images: LabelledScores,
        *,
        score_is_maximum: bool,
        confidence: float,
        source: str,
        weight: float,
        rates: tuple[Any, ...],
    ) -> ChosenThreshold:
        """Return the threshold that a rule gives; `score_is_maximum` says that scores are negative maxima of maps."""
        offset = rule.offset(images.normal, images.anomalous)
        map_threshold: float | None
        if rule.score is None:
            map_threshold = -rule.offset(images.normal_maps, images.anomalous_maps)
            rule.warn_of_few(len(images.normal))
        else:
            map_threshold = -offset if score_is_maximum else None
        false_positives = ErrorRate.of(below(images.normal, offset), confidence)
        missed = ErrorRate.of(~below(images.anomalous, offset), confidence)
        return cls(offset, map_threshold, str(rule), false_positives, missed, confidence, source, weight, rates)

    def carried_to(self, weight: float, curve: LearningCurve, falls: np.ndarray) -> ChosenThreshold:
        """Return the threshold for a model of images of another weight: distances shrink while a model learns."""
        old = np.array([self.weight])
        factor = float(curve.correction(old, np.array([-self.offset]), weight, falls)[0])
        if abs(factor - 1) > LARGEST_CORRECTION:
            warnings.warn(
                f"the chosen threshold ({self.rule}) was multiplied by {factor:.2f}, because the "
                "model has learnt far more images since: choose it again with images that were not learnt",
                FewImagesWarning,
                stacklevel=6,
            )
        map_threshold = None if self.map_threshold is None else self.map_threshold * factor
        return replace(self, offset=self.offset * factor, map_threshold=map_threshold, weight=weight)

    def __str__(self) -> str:
        source = f", from {self.source}" if self.source else ""
        return (
            f"{self.rule}{source}: false alarms {self.false_positives}, missed {self.missed}, at {self.confidence:.0%}"
        )


def _beside(score: Any, scores: np.ndarray, towards: float) -> float:
    """Return a threshold just above a score (`towards=inf`), or just below it (`-inf`), apart from the other scores."""
    noise = 16 * max(np.abs(np.spacing(score)), np.finfo(scores.dtype).tiny)
    gaps = np.sign(towards) * (scores - score)
    gap = gaps[gaps > 2 * noise].min(initial=np.inf)
    margin = max(noise, min(gap / 2, _MARGIN * abs(score)))
    return float(score + np.sign(towards).astype(scores.dtype) * scores.dtype.type(margin))


def _rank(rate: float, n_images: int) -> int:
    """Return which of the sorted scores is the threshold, counted from 1; 0 if none is low enough."""
    return int(rate * (n_images + 1) + _ROUNDING)


def asked_rate(false_positive_rate: float | str, calibration_scores: np.ndarray, offset: float) -> float:
    """Return the share of new normal images that a model expects to call anomalous."""
    # Of "auto", one more than the calibration scores below the threshold: few cannot tell a small share from none.
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
