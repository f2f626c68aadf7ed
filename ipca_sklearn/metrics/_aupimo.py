"""AUPIMO: how much of each defect is found where hardly a pixel of a normal image is called anomalous."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn._utils._typing import ArrayLike
from ipca_sklearn.exceptions import FewImagesWarning
from ipca_sklearn.metrics._inputs import Bools, Floats, Pixels, Reals
from ipca_sklearn.metrics._pixels import counts_above

FPR_BOUNDS = (1e-5, 1e-4)
# With fewer different scores of normal pixels between the bounds, each of them moves the figure.
_FEW_SCORES = 10


@dataclass(frozen=True)
class PimoCurves:
    """Per-image overlap curves, and the areas under them.

    Parameters
    ----------
    thresholds : ndarray of shape (n_thresholds,)
        Decreasing.
    shared_fpr : ndarray of float64, shape (n_thresholds,)
        Share of the pixels of a normal image that reach a threshold, the mean over these images. Increasing, to 1.
    tpr : ndarray of float64, shape (n_images, n_thresholds)
        Share of the anomalous pixels of an image that reach a threshold; NaN for images that have none.
    aupimo : ndarray of float64, shape (n_images,)
        Areas of the exact curves, in [0, 1]; NaN likewise.
    fpr_bounds : (float, float)
        Where the integral begins and ends.

    See Also
    --------
    ipca_sklearn.inspection.PimoDisplay : Draws them.
    """

    thresholds: Reals
    shared_fpr: Floats
    tpr: Floats
    aupimo: Floats
    fpr_bounds: tuple[float, float]


@own_surroundings()
def aupimo_score(
    masks: ArrayLike,
    maps: ArrayLike,
    *,
    fpr_bounds: tuple[float, float] = FPR_BOUNDS,
    region: ArrayLike | None = None,
) -> float:
    """Area under the per-image overlap curve (AUPIMO), the mean over the images with a defect.

    A threshold is judged by the normal images alone: the shared false positive rate is the mean share of their pixels
    that reach it. For each image with a defect, the share of its anomalous pixels that reach the threshold is averaged
    over the logarithm of that rate, between bounds at which a user sees next to no false pixel.

    Parameters
    ----------
    masks : array-like of shape (n_images, height, width)
        As in :func:`pixel_roc_auc_score`. Images without a defect are the normal ones.
    maps : array-like of shape (n_images, map_height, map_width)
        As in :func:`pixel_roc_auc_score`.
    fpr_bounds : (float, float), default=(1e-5, 1e-4)
        Bounds of the shared false positive rate, 0 < lower < upper <= 1. The default is the paper's: 0.5 to 5 pixels of
        an image of 224 x 224.
    region : array-like of bool, shape (height, width) or (map_height, map_width), default=None
        As in :func:`pixel_roc_auc_score`. An image whose defect lies outside is neither normal nor anomalous.

    Returns
    -------
    float
        In [0, 1]: 1 if every defect is found as a whole before the lower bound, 0 if no pixel of one is at the upper.

    Raises
    ------
    ValueError
        For the inputs of :func:`pixel_roc_auc_score`, for other bounds, if there is no normal image or no anomalous
        pixel, and if the normal images have fewer pixels than 1 / lower bound, so that no threshold reaches it.
    TypeError
        If an input does not hold real numbers.

    Warns
    -----
    FewImagesWarning
        Fewer than 10 different scores of normal pixels lie between the bounds.

    See Also
    --------
    pimo_curves : The curves and the areas of each image.

    Notes
    -----
    The definition is equation 6 of [1]_. Images have one size here, so the shared rate at a threshold is the number of
    the M pixels of all normal images that reach it, divided by M. A pixel that a of them exceed and b reach adds a term
    that is 0 up to a / M, rises linearly to 1 at b / M, and stays 1: the area under log(rate) of that is known in
    closed form, without a grid of thresholds. With A anomalous pixels, the time is O(M log M + A log M) and the memory
    one copy of all these scores.

    Maps are resized from a grid of patches: of 56 x 56, the 5 pixels of the upper bound are a third of a patch.

    References
    ----------
    .. [1] J. P. C. Bertoldo, D. Ameln, A. Vaidya and S. Akcay, "AUPIMO: Redefining Visual Anomaly Detection Benchmarks
       with High Speed and Low Tolerance", British Machine Vision Conference, 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn.metrics import aupimo_score
    >>> masks = np.zeros((3, 100, 100), dtype=bool)
    >>> masks[1:, :10, :10] = True
    >>> maps = np.random.default_rng(0).normal(size=masks.shape)
    >>> maps[masks] = np.repeat([9, -9], 100)                    # the first defect is found, the second is not
    >>> aupimo_score(masks, maps, fpr_bounds=(1e-4, 1e-2))
    0.5
    """
    pixels = Pixels.of(masks, maps, region)
    return float(np.nanmean(_areas(pixels, normal_scores(pixels, fpr_bounds), fpr_bounds)))


@own_surroundings()
def pimo_curves(
    masks: ArrayLike,
    maps: ArrayLike,
    *,
    fpr_bounds: tuple[float, float] = FPR_BOUNDS,
    region: ArrayLike | None = None,
    n_thresholds: int = 500,
) -> PimoCurves:
    """Per-image overlap curves, and the AUPIMO of each image.

    Parameters
    ----------
    masks, maps, fpr_bounds, region
        As in :func:`aupimo_score`.
    n_thresholds : int, default=500
        Points of the curves, at most: rates evenly spaced in the logarithm, from one pixel to all. The areas do not
        depend on it.

    Returns
    -------
    PimoCurves

    Raises
    ------
    ValueError, TypeError
        As :func:`aupimo_score`, and if `n_thresholds` is below 2.

    Warns
    -----
    FewImagesWarning
        As :func:`aupimo_score`.

    Notes
    -----
    Cost as :func:`aupimo_score`, and `n_images * n_thresholds` numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn.metrics import pimo_curves
    >>> rng = np.random.default_rng(0)
    >>> masks = np.zeros((4, 100, 100), dtype=bool)
    >>> masks[2:, :10, :10] = True
    >>> curves = pimo_curves(masks, rng.normal(size=masks.shape) + 3 * masks, fpr_bounds=(1e-3, 1e-2))
    >>> curves.tpr.shape == (4, len(curves.shared_fpr)), curves.aupimo.round(2)
    (True, array([ nan,  nan, 0.64, 0.58]))
    """
    if n_thresholds < 2:
        raise ValueError(f"n_thresholds={n_thresholds!r} must be at least 2: a curve has two ends")
    pixels = Pixels.of(masks, maps, region)
    normal = normal_scores(pixels, fpr_bounds)
    counts = np.unique(np.geomspace(1, normal.size, n_thresholds).round().astype(np.intp))
    thresholds = np.unique(normal[normal.size - counts])[::-1]
    shared = (normal.size - np.searchsorted(normal, thresholds, side="left")) / normal.size
    tpr = np.full((len(pixels), len(thresholds)), np.nan)
    index = 0
    for defects, scores in pixels.parts():
        for mask, values in zip(defects, scores, strict=True):
            if mask.any():
                anomalous = np.sort(values[mask])
                tpr[index] = 1 - np.searchsorted(anomalous, thresholds, side="left") / anomalous.size
            index += 1
    low, high = fpr_bounds
    return PimoCurves(thresholds, shared, tpr, _areas(pixels, normal, fpr_bounds), (float(low), float(high)))


def lack_of_normal_pixels(pixels: Pixels, fpr_bounds: tuple[float, float]) -> str | None:
    """Return what is missing for a shared false positive rate of the lower bound, or None."""
    per_image, n_normal = pixels.n_per_image, int(pixels.is_normal.sum())
    if n_normal * per_image * fpr_bounds[0] >= 1 - 1e-9:
        return None
    return (
        f"{n_normal} normal images (without an anomalous pixel in their mask) of {per_image} pixels each have no "
        f"false positive rate of fpr_bounds[0]={fpr_bounds[0]:g}: that takes {math.ceil(1 / fpr_bounds[0])} pixels, so "
        f"{math.ceil(1 / fpr_bounds[0] / per_image)} normal images; or raise fpr_bounds"
    )


def normal_scores(pixels: Pixels, fpr_bounds: tuple[float, float]) -> Reals:
    """Check the bounds, and return the sorted scores of the pixels of normal images; warn if few lie between them."""
    if np.shape(fpr_bounds) != (2,) or not 0 < fpr_bounds[0] < fpr_bounds[1] <= 1:
        raise ValueError(f"fpr_bounds={fpr_bounds!r} must be two rates with 0 < lower < upper <= 1")
    lack = lack_of_normal_pixels(pixels, fpr_bounds)
    if lack is not None:
        raise ValueError(lack)
    if not pixels.defects.any():
        raise ValueError(f"masks of shape {pixels.defects.shape} have no anomalous pixel: there is nothing to find")
    normal = np.concatenate([scores.ravel() for _, scores in pixels.only(pixels.is_normal).parts()])
    normal.sort()
    first, last = (normal.size - round(bound * normal.size) for bound in reversed(fpr_bounds))
    n_scores = np.unique(normal[first : last + 1]).size
    if n_scores < _FEW_SCORES:
        warnings.warn(
            f"only {n_scores} different scores of normal pixels lie between the false positive rates {fpr_bounds[0]:g} "
            f"and {fpr_bounds[1]:g}, so AUPIMO is coarse: use more normal images, larger fpr_bounds, or maps with "
            "fewer ties",
            FewImagesWarning,
            stacklevel=4,
        )
    return normal


def _areas(pixels: Pixels, normal: Reals, fpr_bounds: tuple[float, float]) -> Floats:
    """Return the area under the curve of each image, NaN for those without an anomalous pixel."""
    anomalous = np.concatenate([scores[defects] for defects, scores in pixels.parts()])
    return image_areas(normal, anomalous, pixels.defects, fpr_bounds)


def image_areas(normal: Reals, anomalous: Reals, defects: Bools, fpr_bounds: tuple[float, float]) -> Floats:
    """Return the AUPIMO of each image; `normal` is sorted, `anomalous` in the order of the masks (n, height, width)."""
    sizes = defects.sum(axis=(1, 2))
    images = np.repeat(np.arange(len(defects)), sizes)
    low, high = (bound * normal.size for bound in fpr_bounds)
    order = np.argsort(anomalous)
    anomalous, images = anomalous[order], images[order]
    totals = np.zeros(len(sizes))
    for part, above, reached in counts_above(normal, anomalous):
        area = rising_area(above, reached, low, high) + np.log(high / np.clip(reached, low, high))
        totals += np.bincount(images[part], weights=area / math.log(high / low), minlength=len(sizes))
    return np.where(sizes > 0, np.minimum(totals / np.maximum(sizes, 1), 1), np.nan)


def rising_area(start: Any, stop: Any, low: Any, high: Any) -> Any:
    """Return the area under log(x), between bounds, of a line from 0 at `start` to 1 at `stop`; 0 if they are equal."""
    left, right = np.clip(start, low, high), np.clip(stop, low, high)
    return np.maximum(right - left - start * np.log(right / left), 0) / np.maximum(stop - start, 1e-300)
