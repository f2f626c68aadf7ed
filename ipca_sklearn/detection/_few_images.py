"""What few images do to scores and thresholds, in words."""

from __future__ import annotations

from math import ceil
from typing import Any

from scipy.stats import beta

from ipca_sklearn.decomposition._fitted import Fitted, independent_samples
from ipca_sklearn.detection._calibration import LARGEST_CORRECTION, ReferenceScores

# Scores from which a median absolute deviation makes a reliable threshold.
_ENOUGH_FOR_AUTO = 20

# Scores below a threshold from which the share of new scores below it is known to about a factor 2.
_ENOUGH_TIMES_RATE = 3


def few_images_warning(detector: Any) -> str:
    """Return what a user should know of a fitted detector with the thresholds as they are now, or nothing."""
    reference = detector._calibrator.reference
    return what_few_images_do(detector.pca_.fitted_, reference, detector.distance, detector.false_positive_rate)


def what_few_images_do(fitted: Fitted, reference: ReferenceScores, distance: str, rate: Any) -> str:
    """Return what a user should know of a model of few images; nothing if there are enough."""
    n_scores = len(reference.scores)
    few, what = f"{fitted.count} images", []
    if fitted.n_scoring_components < fitted.n_components and distance in ("ppca", "factor_analysis"):
        enough = ceil((2 * fitted.n_components + 1) / independent_samples(fitted.group))
        what.append(
            f"distances use {fitted.n_scoring_components} of {fitted.n_components} components, because the noise "
            f"is not known otherwise: {enough} images make all of them useful"
        )
    elif 0 < n_scores < fitted.count // 4:  # of images that were held out or given; of those learnt about half
        few = f"{n_scores} calibration images"
    if n_scores == 0:
        what.append("there is no threshold, so predict calls everything normal")
    elif rate == "auto":
        if n_scores < _ENOUGH_FOR_AUTO:
            what.append(f"the threshold comes from {n_scores} scores, and {_ENOUGH_FOR_AUTO} make it reliable")
    elif n_scores < (needed := ceil(_ENOUGH_TIMES_RATE / float(rate))):
        low, high = _realised_rates(float(rate), n_scores)
        what.append(
            f"false_positive_rate={rate} takes the scores of {needed} images to be met, and there are {n_scores}: "
            f"{low:.1%} to {high:.1%} of normal images will be called anomalous"
        )
    if reference.correction > LARGEST_CORRECTION:
        what.append(
            "the thresholds are from scores of models that had learnt far fewer images; calibrate or choose them "
            "with normal images that were not learnt"
        )
    return f"{few} are few: {'; '.join(what)}" if what else ""


def _realised_rates(rate: float, n_scores: int) -> tuple[float, float]:
    """Return the middle 80 % of the shares of new scores below a threshold: a beta distribution, for any scores."""
    rank = max(1.0, rate * (n_scores + 1))  # fewer scores than 1 / rate: the threshold is the lowest one
    low, high = beta.ppf([0.1, 0.9], rank, n_scores + 1 - rank)
    return float(low), float(high)
