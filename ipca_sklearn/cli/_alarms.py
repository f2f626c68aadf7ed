"""Too many alarms: when the normal images of today are not those that a model has learnt, it says so."""

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest, ks_2samp

from ipca_sklearn import PatchGaussianDetector
from ipca_sklearn._utils._precision import below
from ipca_sklearn.detection._expected import expected_rate

# One sign for all outputs: that of `score_samples`.
WORSE = "the lower a score, the worse"
# A test that normal images pass warns of one set in 1000 by chance.
_SIGNIFICANCE = 1e-3
# The largest difference between two distributions (0 to 1) that is worth a word, however many images show it.
_FAR = 0.35
_MIN_IMAGES = 10

_ADVICE = (
    "If these images are normal, something has changed since the model learnt: look at the light, the camera and the "
    "position of the parts, and make them as they were; or learn the new look with `ipca-sklearn update` and new good "
    "images; or fit again with another --false-positive-rate"
)


def in_words(detector: PatchGaussianDetector) -> str:
    """Return what the threshold of a detector is, which side of it is worse, and how many false alarms it expects."""
    scores, offset = detector.calibration_scores_, detector.offset_
    text = f"images that score below {offset:.4g} are anomalous: {WORSE}"
    if not len(scores):
        return f"{text}; of normal images nothing is known yet"
    n_below = int(np.sum(below(scores, offset)))
    return (
        f"{text}; of new normal images about {expected_rate(detector):.1%} are expected to, as {n_below} of "
        f"{len(scores)} did before they were learnt"
    )


def doubt_of_normal(scores: np.ndarray, calibration_scores: np.ndarray, n_alarms: int, rate: float) -> str | None:
    """Return what is wrong with the scores of images that are known to be normal, or None.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        Of all the normal images; higher is more normal.
    calibration_scores : ndarray of shape (n_calibration,)
        Of the normal images that the threshold comes from.
    n_alarms : int
        How many of the normal images are called anomalous.
    rate : float
        Share of them that may be.
    """
    n = len(scores)
    if n == 0:
        return None
    if binomtest(n_alarms, n, min(1.0, rate), alternative="greater").pvalue < _SIGNIFICANCE:
        return (
            f"{n_alarms} of {n} normal images ({n_alarms / n:.0%}) are called anomalous where about {rate:.1%} were "
            f"expected: the threshold does not hold for these images. {_ADVICE}"
        )
    if n < _MIN_IMAGES or len(calibration_scores) < _MIN_IMAGES:
        return None
    test = ks_2samp(scores, calibration_scores)  # that is: how far the p-values are from uniform
    if test.pvalue >= _SIGNIFICANCE or test.statistic <= _FAR:
        return None
    median = float(np.mean(calibration_scores <= np.median(scores)))
    if median < 0.5:
        return (
            f"the {n} normal images are less normal than the unseen ones of the fit: half of their p-values are below "
            f"{median:.2g}, where 0.5 is expected. {_ADVICE}"
        )
    return (
        f"the {n} normal images are more normal than the unseen ones of the fit: half of their p-values are above "
        f"{median:.2g}, where 0.5 is expected. Were they learnt? Then test with others. Else they show less than those "
        "of the fit: look at the light and the focus"
    )


def doubt_of_unknown(n_alarms: int, n_images: int) -> str | None:
    """Return a warning if most of the images of a run are called anomalous, or None."""
    if n_images < _MIN_IMAGES or 2 * n_alarms <= n_images:
        return None
    return f"{n_alarms} of {n_images} images ({n_alarms / n_images:.0%}) are called anomalous. {_ADVICE}"
