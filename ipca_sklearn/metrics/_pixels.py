"""Measures of maps, pixel by pixel and region by region.

The term of an anomalous pixel depends only on how many normal, and how many anomalous pixels score above it, and how
many tie with it. So one sort of the normal pixels and two binary searches per anomalous pixel replace the curve over
all thresholds. The counts are integers: no rounding accumulates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipca_sklearn._utils._arrays import as_real_array
from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn._utils._typing import ArrayLike
from ipca_sklearn.detection._regions import label_regions
from ipca_sklearn.metrics._inputs import Bools, Pixels, Reals, as_binary

# Anomalous pixels that are counted at once: the counts take a few int64 and float64 arrays of this length.
_COUNTS_AT_ONCE = 2**18


@own_surroundings()
def pixel_roc_auc_score(masks: ArrayLike, maps: ArrayLike, *, region: ArrayLike | None = None) -> float:
    """Area under the ROC curve over all pixels of all images.

    Parameters
    ----------
    masks : array-like of shape (n_images, height, width)
        True (or 1, or 255 in uint8) on the defects, false (or 0) on normal pixels.
    maps : array-like of shape (n_images, map_height, map_width)
        Anomaly maps, real, larger = more anomalous. If they are smaller than the masks they are resized as by
        :func:`resize_maps`; otherwise they keep their dtype.
    region : array-like of bool, shape (height, width) or (map_height, map_width), default=None
        The pixels, or the patches, that count: `region_` of an extractor or a detector; None for all. Others are
        neither normal nor anomalous. Given as patches, maps are resized from the patches of the region alone.

    Returns
    -------
    float
        Probability that an anomalous pixel scores above a normal one, a tie counting one half; in [0, 1].

    Raises
    ------
    ValueError
        If the numbers of images differ, an input is not 3-d, the maps are larger than the masks or turned
        against them, the masks are not binary or hold one class only, a map holds NaN or infinity, or the region has
        another shape or is empty.
    TypeError
        If an input does not hold real numbers.

    See Also
    --------
    aupro_score : Counts a small defect as much as a large one.

    Notes
    -----
    The area is computed in its Mann-Whitney form [1]_, without the curve: pairs are counted in integers, so the only
    rounding is the last division. With N normal and A anomalous pixels, the time is O(N log N + A log N) and the memory
    one copy of the pixels' scores.

    References
    ----------
    .. [1] J. A. Hanley and B. J. McNeil, "The meaning and use of the area under a receiver operating characteristic
       (ROC) curve", Radiology 143, 29-36, 1982.

    Examples
    --------
    >>> from ipca_sklearn.metrics import pixel_roc_auc_score
    >>> pixel_roc_auc_score([[[0, 0], [1, 1]]], [[[0.1, 0.4], [0.4, 0.9]]])
    0.875
    """
    return roc_auc(*Pixels.of(masks, maps, region).split())


@own_surroundings()
def pixel_average_precision_score(masks: ArrayLike, maps: ArrayLike, *, region: ArrayLike | None = None) -> float:
    """Average precision over all pixels of all images: the area under the precision-recall curve, in steps.

    Unlike :func:`pixel_roc_auc_score` it falls with the share of anomalous pixels, so compare figures of the same
    images only.

    Parameters
    ----------
    masks, maps, region
        As in :func:`pixel_roc_auc_score`.

    Returns
    -------
    float
        Mean over the anomalous pixels of the precision at their own score as the threshold; in (0, 1].

    Raises
    ------
    ValueError, TypeError
        As :func:`pixel_roc_auc_score`.

    Notes
    -----
    The definition is that of :func:`sklearn.metrics.average_precision_score`: precision is not interpolated. Cost as
    :func:`pixel_roc_auc_score`.

    Examples
    --------
    >>> from ipca_sklearn.metrics import pixel_average_precision_score
    >>> pixel_average_precision_score([[[0, 0], [1, 1]]], [[[0.1, 0.6], [0.4, 0.9]]])
    0.8333333333333333
    """
    return average_precision(*Pixels.of(masks, maps, region).split())


@own_surroundings()
def pixel_f1_max_score(masks: ArrayLike, maps: ArrayLike, *, region: ArrayLike | None = None) -> float:
    """Largest F1 score over all thresholds, of all pixels of all images.

    Parameters
    ----------
    masks, maps, region
        As in :func:`pixel_roc_auc_score`.

    Returns
    -------
    float
        The maximum of 2 TP / (2 TP + FP + FN); in (0, 1].

    Raises
    ------
    ValueError, TypeError
        As :func:`pixel_roc_auc_score`.

    See Also
    --------
    pixel_f1_score : At the threshold that a model has learnt, which knows no defect.

    Notes
    -----
    The threshold is chosen with the masks that it is tested with, so this is more than a detector reaches in use.
    Cost as :func:`pixel_roc_auc_score`.

    Examples
    --------
    >>> from ipca_sklearn.metrics import pixel_f1_max_score
    >>> pixel_f1_max_score([[[0, 0], [1, 1]]], [[[0.1, 0.6], [0.4, 0.9]]])
    0.8
    """
    return f1_max(*Pixels.of(masks, maps, region).split())


@own_surroundings()
def pixel_f1_score(masks: ArrayLike, marked: ArrayLike, *, region: ArrayLike | None = None) -> float:
    """F1 score of the pixels that a model marks as anomalous, of all images.

    Parameters
    ----------
    masks : array-like of shape (n_images, height, width)
        As in :func:`pixel_roc_auc_score`; they may be anomalous everywhere.
    marked : array-like of shape (n_images, map_height, map_width)
        What is called anomalous, coded like `masks`: `predict_masks` of a detector. A patch is all pixels whose centres
        lie in it.
    region : array-like of bool, shape (height, width) or (map_height, map_width), default=None
        As in :func:`pixel_roc_auc_score`.

    Returns
    -------
    float
        2 TP / (2 TP + FP + FN); in [0, 1].

    Raises
    ------
    ValueError
        As :func:`pixel_roc_auc_score`, and if `marked` is not binary.
    TypeError
        If an input does not hold real numbers.

    Notes
    -----
    Time and memory: O(pixels), with one byte for each.

    Examples
    --------
    >>> from ipca_sklearn.metrics import pixel_f1_score
    >>> pixel_f1_score([[[0, 0, 1, 1]]], [[[False, True]]])
    1.0
    """
    pixels = check_marked(masks, marked, region)
    if not pixels.defects.any():
        raise ValueError(
            f"masks of shape {pixels.defects.shape} have no anomalous pixel: F1 needs defects to be found."
        )
    return float(f1(*mask_counts(pixels).sum(axis=0)))


@own_surroundings()
def aupro_score(
    masks: ArrayLike,
    maps: ArrayLike,
    *,
    max_fpr: float = 0.3,
    connectivity: int = 2,
    region: ArrayLike | None = None,
) -> float:
    """Area under the per-region-overlap curve, up to a false positive rate.

    The overlap at a threshold is the fraction of a region's pixels that reach it, averaged over the regions of all
    images; a region is a connected component of one mask. The false positive rate is that of all normal pixels.

    Parameters
    ----------
    masks, maps
        As in :func:`pixel_roc_auc_score`.
    max_fpr : float, default=0.3
        False positive rate, in (0, 1], at which the integral stops. The integral is divided by it. 0.05 asks more of a
        detector: 30 % of false pixels is more than anyone uses.
    connectivity : {1, 2}, default=2
        Neighbours of a pixel in a region: those that share an edge (1, four neighbours), or also a corner (2, eight).
    region : array-like of bool, shape (height, width) or (map_height, map_width), default=None
        As in :func:`pixel_roc_auc_score`. Of a defect, the part inside counts.

    Returns
    -------
    float
        The normalised area, in [0, 1]: 1 for a perfect ranking, ``max_fpr / 2`` for a constant map.

    Raises
    ------
    ValueError
        If `max_fpr` or `connectivity` is out of range, or for the same inputs as :func:`pixel_roc_auc_score`.
    TypeError
        If an input does not hold real numbers.

    Notes
    -----
    The curve of [1]_ starts at (0, 0), has one point per distinct score (ties are one threshold), and is linear in
    between, also at `max_fpr`. Each region has its own ROC curve against all normal pixels, whose area is a mean over
    its pixels: no curve is built. With N normal and A anomalous pixels, the time is O(N log N + A log N) and the memory
    one copy of the pixels' scores and three arrays of A.

    References
    ----------
    .. [1] P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger and C. Steger, "The MVTec Anomaly Detection Dataset: A
       Comprehensive Real-World Dataset for Unsupervised Anomaly Detection", International Journal of Computer Vision
       129, 1038-1059, 2021.

    Examples
    --------
    >>> from ipca_sklearn.metrics import aupro_score
    >>> maps = [[[0.0, 0.1, 0.9, 0.8], [0.1, 0.1, 0.1, 0.1]]]
    >>> aupro_score([[[1, 0, 1, 1], [0, 0, 0, 0]]], maps)  # the region of two pixels is found, the other is not
    0.5
    """
    check_max_fpr(max_fpr)
    pixels = Pixels.of(masks, maps, region)
    normal, anomalous = pixels.split()
    return aupro(normal, anomalous, *label_defects(pixels.defects, connectivity), max_fpr)


def roc_auc(normal: Reals, anomalous: Reals) -> float:
    """Return the area under the ROC curve, from sorted scores of normal pixels and any of anomalous ones."""
    anomalous = np.sort(anomalous)
    wrong = sum(int((above + reached).sum()) for _, above, reached in counts_above(normal, anomalous))
    pairs = normal.size * anomalous.size
    return (2 * pairs - wrong) / (2 * pairs)


def average_precision(normal: Reals, anomalous: Reals) -> float:
    """Return the average precision, from scores as in `roc_auc`."""
    total = sum(float((found / (found + false)).sum()) for found, false in _confusions(normal, anomalous))
    return min(1.0, total / anomalous.size)


def f1_max(normal: Reals, anomalous: Reals) -> float:
    """Return the largest F1 score of all thresholds, from scores as in `roc_auc`."""
    return max(
        float((2 * found / (found + false + anomalous.size)).max()) for found, false in _confusions(normal, anomalous)
    )


def f1(found: Any, false: Any, missed: Any) -> Any:
    """Return the F1 score of numbers of pixels: found, falsely marked, and missed."""
    return 2 * found / (2 * found + false + missed)


def aupro(normal: Reals, anomalous: Reals, regions: NDArray[np.integer], n_regions: int, max_fpr: float) -> float:
    """Return the area under the per-region-overlap curve, from scores as in `roc_auc`, and the anomalous' regions."""
    # Sorted queries read the normal scores in order; in the order of the images every search would miss the cache.
    order = np.argsort(anomalous)
    anomalous, regions = anomalous[order], regions[order]
    limit = max_fpr * normal.size
    totals = np.zeros(n_regions)
    for pixels, above, reached in counts_above(normal, anomalous):
        # The curve of one pixel is 0 up to `above` false positives, then rises linearly, and is 1 from `reached` on.
        start, stop = np.minimum(above, limit), np.minimum(reached, limit)
        height = (stop - start) / np.maximum(reached - above, 1)
        area = (limit - stop) + (stop - start) * height / 2
        # Even after rounding each term is at most 1, and so are the mean over a region and the mean over regions.
        totals += np.bincount(regions[pixels], weights=area / limit, minlength=n_regions)
    sizes = np.bincount(regions, minlength=n_regions)
    return float(np.mean(totals / sizes))


def check_max_fpr(max_fpr: float) -> None:
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr={max_fpr!r} must lie in (0, 1]: it is the false positive rate to integrate up to.")


def check_marked(masks: ArrayLike, marked: ArrayLike, region: ArrayLike | None) -> Pixels:
    """Return masks with what a model has marked as the maps, for `Pixels.marked`."""
    return Pixels.of(masks, as_binary(as_real_array(marked, "marked"), "marked"), region, "marked")


def mask_counts(pixels: Pixels) -> NDArray[np.int64]:
    """Return for each image how many pixels are found, falsely marked, and missed, as an array (n, 3)."""
    counts = np.empty((len(pixels), 3), np.int64)
    for index, (defects, marked) in enumerate(pixels.marked()):
        found = np.count_nonzero(marked & defects)
        counts[index] = found, np.count_nonzero(marked) - found, np.count_nonzero(defects) - found
    return counts


def counts_above(scores: Reals, thresholds: Reals) -> Iterator[tuple[slice, NDArray[np.intp], NDArray[np.intp]]]:
    """Yield slices of thresholds, with the numbers of sorted scores above each, and of those that reach it."""
    for start in range(0, thresholds.size, _COUNTS_AT_ONCE):
        part = slice(start, start + _COUNTS_AT_ONCE)
        above = scores.size - np.searchsorted(scores, thresholds[part], side="right")
        reached = scores.size - np.searchsorted(scores, thresholds[part], side="left")
        yield part, above, reached


def _confusions(normal: Reals, anomalous: Reals) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield how many anomalous and how many normal pixels reach the score of each anomalous one, some at a time."""
    anomalous = np.sort(anomalous)
    for part, _, false in counts_above(normal, anomalous):
        yield anomalous.size - np.searchsorted(anomalous, anomalous[part], side="left"), false


def label_defects(defects: Bools, connectivity: int) -> tuple[NDArray[np.integer], int]:
    """Return the region of each anomalous pixel, in the order of the masks, and the number of regions."""
    parts, n_regions = [np.empty(0, np.int32)], 0
    for mask in defects:
        labels, n_found = label_regions(mask, connectivity)
        parts.append(labels[mask] + np.int32(n_regions - 1))
        n_regions += n_found
    return np.concatenate(parts), n_regions
