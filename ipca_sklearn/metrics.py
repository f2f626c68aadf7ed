"""Scores of anomaly detectors: how well images, pixels and defect regions are ranked.

There are two directions, as everywhere in this package. *Scores* of images (``score_samples``) are higher for more
normal images, with scikit-learn's outlier labels +1 (normal) and -1 (anomalous). Anomaly *maps* are larger where a
pixel is more anomalous, with masks that are true on the defects.

Both pixel metrics are sums over the anomalous pixels: the term of a pixel depends only on how many normal pixels score
above it, and how many tie with it. So one sort of the normal pixels and two binary searches per anomalous pixel replace
the curve over all thresholds. The counts are integers, and no rounding accumulates along a curve to a value above 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from ipca_sklearn._utils._labels import check_labels
from ipca_sklearn._utils._typing import ArrayLike

__all__ = ["aupro_score", "image_roc_auc_score", "pixel_roc_auc_score", "resize_maps"]

# Pixels of maps that are resized at once: 16 MiB of float32 hide the overhead per call.
_PIXELS_AT_ONCE = 2**22
# Anomalous pixels that are counted at once: the counts take a few int64 and float64 arrays of this length.
_COUNTS_AT_ONCE = 2**18


def image_roc_auc_score(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the ROC curve of image scores.

    Parameters
    ----------
    y_true : array-like of shape (n_images,)
        Outlier labels: +1 for a normal image, -1 for an anomalous one.
    y_score : array-like of shape (n_images,)
        Real scores as returned by ``score_samples`` or ``decision_function``: higher is more normal.

    Returns
    -------
    float
        Probability that a normal image scores above an anomalous one, a tie counting one half; in [0, 1].

    Raises
    ------
    ValueError
        If the shapes differ or are not 1-d, a label is neither +1 nor -1, one class is missing, or a score is NaN
        or infinite. Scores are NaN for images that could not be read: leave these out.
    TypeError
        If an input does not hold real numbers.

    Notes
    -----
    This is :func:`sklearn.metrics.roc_auc_score` after checks of the input. Cost: O(n log n).

    Examples
    --------
    >>> from ipca_sklearn.metrics import image_roc_auc_score
    >>> image_roc_auc_score([1, 1, -1, -1], [-0.1, -0.4, -0.3, -0.9])
    0.75
    """
    labels, scores = _as_real_array(y_true, "y_true"), _as_real_array(y_score, "y_score")
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(
            f"y_true has shape {labels.shape} and y_score {scores.shape}: both must be 1-d, one entry per image."
        )
    labels = check_labels(labels, "y_true")
    found = np.unique(labels)
    if found.size < 2:
        raise ValueError(f"y_true holds only {found}: the ROC curve needs both normal (+1) and anomalous (-1) images.")
    if not np.isfinite(scores).all():
        raise ValueError(f"y_score[{np.isfinite(scores).argmin()}] is NaN or infinite: scores must be finite.")
    return float(roc_auc_score(labels, scores))


def pixel_roc_auc_score(masks: ArrayLike, maps: ArrayLike) -> float:
    """Area under the ROC curve over all pixels of all images.

    Parameters
    ----------
    masks : array-like of shape (n_images, height, width)
        True (or 1, or 255 in uint8) on the defects, false (or 0) on normal pixels.
    maps : array-like of shape (n_images, map_height, map_width)
        Anomaly maps, real, larger = more anomalous. If they are smaller than the masks they are resized as by
        :func:`resize_maps`; otherwise they keep their dtype.

    Returns
    -------
    float
        Probability that an anomalous pixel scores above a normal one, a tie counting one half; in [0, 1].

    Raises
    ------
    ValueError
        If the numbers of images differ, an input is not 3-d, the maps are larger than the masks, the masks are not
        binary or hold one class only, or a map holds NaN or infinity.
    TypeError
        If an input does not hold real numbers.

    See Also
    --------
    aupro_score : Counts a small defect as much as a large one.

    Notes
    -----
    The area is computed in its Mann-Whitney form [1]_. All pairs are counted in integers, so the only rounding is the
    last division. With N normal and A anomalous pixels, the time is O(N log N + A log N) and the memory one copy of the
    pixels' scores. The curve itself is not built, unlike in scikit-learn: it needs several float64 arrays of N + A.

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
    defects, scores = _check_masks_and_maps(masks, maps)
    normal, anomalous = _split_scores(defects, scores)
    anomalous.sort()
    wrong = sum(int((above + reached).sum()) for _, above, reached in _false_positive_counts(normal, anomalous))
    pairs = normal.size * anomalous.size
    return (2 * pairs - wrong) / (2 * pairs)


def aupro_score(masks: ArrayLike, maps: ArrayLike, *, max_fpr: float = 0.3, connectivity: int = 2) -> float:
    """Area under the per-region-overlap curve, up to a false positive rate.

    At each threshold, the overlap is the fraction of a region's pixels that reach it, averaged over the regions of
    all images; a region is a connected component of one mask. The false positive rate is the fraction of the normal
    pixels of all images, those without a defect included.

    Parameters
    ----------
    masks : array-like of shape (n_images, height, width)
        True (or 1, or 255 in uint8) on the defects, false (or 0) on normal pixels.
    maps : array-like of shape (n_images, map_height, map_width)
        Anomaly maps, real, larger = more anomalous. If they are smaller than the masks they are resized as by
        :func:`resize_maps`; otherwise they keep their dtype.
    max_fpr : float, default=0.3
        False positive rate, in (0, 1], at which the integral stops. The integral is divided by it.
    connectivity : {1, 2}, default=2
        Neighbours of a pixel in a region: those that share an edge (1, four neighbours), or also a corner (2, eight
        neighbours).

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
    between, also at `max_fpr`. Each region has its own ROC curve against all normal pixels; the area under it is a
    mean over the region's pixels. The result is the mean of these areas over the regions, so no curve is built.
    With N normal and A anomalous pixels, the time is O(N log N + A log N) and the memory one copy of the pixels'
    scores and three arrays of A. Sorting only the normal pixels that matter, found by a partition, was slower than
    sorting all of them.

    References
    ----------
    .. [1] P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger and C. Steger, "The MVTec Anomaly Detection Dataset: A
       Comprehensive Real-World Dataset for Unsupervised Anomaly Detection", International Journal of Computer Vision
       129, 1038-1059, 2021.

    Examples
    --------
    The region of one pixel is missed, the region of two pixels is found:

    >>> from ipca_sklearn.metrics import aupro_score
    >>> aupro_score([[[1, 0, 1, 1], [0, 0, 0, 0]]], [[[0.0, 0.1, 0.9, 0.8], [0.1, 0.1, 0.1, 0.1]]])
    0.5
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr={max_fpr!r} must lie in (0, 1]: it is the false positive rate to integrate up to.")
    if connectivity not in (1, 2):
        raise ValueError(f"connectivity={connectivity!r} must be 1 (four neighbours) or 2 (eight neighbours).")
    defects, scores = _check_masks_and_maps(masks, maps)
    normal, anomalous = _split_scores(defects, scores)
    regions, n_regions = _label_regions(defects, connectivity)
    # Sorted queries read the normal scores in order; in the order of the images every search would miss the cache.
    order = np.argsort(anomalous)
    anomalous, regions = anomalous[order], regions[order]

    limit = max_fpr * normal.size
    totals = np.zeros(n_regions)
    for pixels, above, reached in _false_positive_counts(normal, anomalous):
        # The curve of one pixel is 0 up to `above` false positives, then rises linearly, and is 1 from `reached` on.
        start, stop = np.minimum(above, limit), np.minimum(reached, limit)
        height = (stop - start) / np.maximum(reached - above, 1)
        area = (limit - stop) + (stop - start) * height / 2
        # Even after rounding each term is at most 1, and so are the mean over a region and the mean over regions.
        totals += np.bincount(regions[pixels], weights=area / limit, minlength=n_regions)
    sizes = np.bincount(regions, minlength=n_regions)
    return float(np.mean(totals / sizes))


def resize_maps(maps: ArrayLike, size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize anomaly maps bilinearly, for example from the grid of patches to the image.

    Parameters
    ----------
    maps : array-like of shape (n_images, map_height, map_width)
        Real, finite anomaly maps.
    size : tuple of (int, int)
        Height and width of the result, in pixels.

    Returns
    -------
    ndarray of shape (n_images, height, width), dtype float32
        The resized maps, always a new array.

    Raises
    ------
    ValueError
        If `maps` is not 3-d or has an empty grid, `size` is not two positive integers, or a value is NaN, infinite
        or beyond float32.
    TypeError
        If `maps` does not hold real numbers.

    Notes
    -----
    This is :func:`torch.nn.functional.interpolate` with ``mode="bilinear"`` and ``align_corners=False``, on the CPU and
    a few images at a time: besides the result, it takes about 32 MiB. There is no low-pass filter, so use it to enlarge
    only.

    Examples
    --------
    >>> from ipca_sklearn.metrics import resize_maps
    >>> resize_maps([[[0.0, 1.0]]], (1, 4))
    array([[[0.  , 0.25, 0.75, 1.  ]]], dtype=float32)
    """
    values = _as_real_array(maps, "maps")
    if values.ndim != 3 or 0 in values.shape[1:]:
        raise ValueError(
            f"maps has shape {values.shape}, expected (n_images, height, width): use maps[None] for one map."
        )
    if np.shape(size) != (2,) or any(int(length) != length or length < 1 for length in size):
        raise ValueError(f"size={size!r} must be two positive integers, (height, width).")
    height, width = int(size[0]), int(size[1])
    resized = np.empty((len(values), height, width), dtype=np.float32)
    for images, part in _iter_maps(values, (height, width), np.dtype(np.float32)):
        resized[images] = part
    return resized


def _as_real_array(values: ArrayLike, name: str) -> NDArray[Any]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        # NumPy has no bfloat16; float32 represents bfloat16 and float16 exactly.
        values = (values.float() if values.is_floating_point() and values.itemsize < 4 else values).numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}: convert it to a float or bool array.")
    return array


def _check_masks_and_maps(masks: ArrayLike, maps: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    labels, scores = _as_real_array(masks, "masks"), _as_real_array(maps, "maps")
    if labels.ndim != 3 or scores.ndim != 3 or len(labels) != len(scores):
        raise ValueError(
            f"masks has shape {labels.shape} and maps {scores.shape}: both must be (n_images, height, width) with the "
            "same n_images; use masks[None] and maps[None] for one image, masks[:, 0] to drop a channel axis."
        )
    if 0 in labels.shape or 0 in scores.shape:
        raise ValueError(f"masks has shape {labels.shape} and maps {scores.shape}: there is no pixel to score.")
    if scores.shape[1] > labels.shape[1] or scores.shape[2] > labels.shape[2]:
        raise ValueError(
            f"maps of {scores.shape[1:]} are larger than masks of {labels.shape[1:]}: bring both to one size first, "
            "masks by nearest neighbour."
        )
    if labels.dtype == bool:
        return labels, scores
    defects = labels == (255 if labels.dtype == np.uint8 and labels.max() == 255 else 1)
    if np.count_nonzero(defects) + np.count_nonzero(labels == 0) != labels.size:
        raise ValueError(
            f"masks of dtype {labels.dtype} with values from {labels.min()} to {labels.max()} are not binary: use "
            "bool, 0/1, or 0/255 in uint8 (masks > 0 if every other value is a defect)."
        )
    return defects, scores


def _iter_maps(maps: NDArray[Any], size: tuple[int, int], dtype: np.dtype[Any]) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield slices of images with their maps, checked, cast to `dtype`, and resized if their size differs."""
    n_images = max(1, _PIXELS_AT_ONCE // (size[0] * size[1]))
    for start in range(0, len(maps), n_images):
        images = slice(start, start + n_images)
        with np.errstate(over="ignore"):  # an overflow is reported below
            part = maps[images].astype(dtype, copy=False)
        finite = np.isfinite(part).all(axis=(1, 2))
        if not finite.all():
            raise ValueError(
                f"maps[{start + finite.argmin()}] holds NaN, infinity or a value beyond {dtype}: maps must be finite."
            )
        if part.shape[1:] != size:
            tensor = torch.from_numpy(part.copy())[:, None]  # torch takes neither read-only nor reversed arrays
            part = torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=False)[:, 0].numpy()
        yield images, part


def _split_scores(defects: NDArray[np.bool_], maps: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the sorted scores of the normal pixels, and those of the anomalous pixels in the order of the masks."""
    n_anomalous = np.count_nonzero(defects)
    if n_anomalous in (0, defects.size):
        raise ValueError(
            f"masks of shape {defects.shape} have no {'normal' if n_anomalous else 'anomalous'} pixel: the score needs "
            "both; evaluate images with and without defects together."
        )
    size = defects.shape[1:]
    # In the machine's byte order; another one would be converted again in every search.
    dtype = maps.dtype.newbyteorder("=") if maps.shape[1:] == size else np.dtype(np.float32)
    normal, anomalous = np.empty(defects.size - n_anomalous, dtype), np.empty(n_anomalous, dtype)
    n_seen = n_anomalous_seen = 0
    for images, part in _iter_maps(maps, size, dtype):
        mask = defects[images]
        found, rest = part[mask], part[~mask]
        n_normal_seen = n_seen - n_anomalous_seen
        anomalous[n_anomalous_seen : n_anomalous_seen + found.size] = found
        normal[n_normal_seen : n_normal_seen + rest.size] = rest
        n_seen += part.size
        n_anomalous_seen += found.size
    normal.sort()
    return normal, anomalous


def _false_positive_counts(
    normal: NDArray[Any], anomalous: NDArray[Any]
) -> Iterator[tuple[slice, NDArray[np.intp], NDArray[np.intp]]]:
    """Yield slices of anomalous pixels, with the numbers of normal pixels that score above each, and that reach it."""
    for start in range(0, anomalous.size, _COUNTS_AT_ONCE):
        pixels = slice(start, start + _COUNTS_AT_ONCE)
        above = normal.size - np.searchsorted(normal, anomalous[pixels], side="right")
        reached = normal.size - np.searchsorted(normal, anomalous[pixels], side="left")
        yield pixels, above, reached


def _label_regions(defects: NDArray[np.bool_], connectivity: int) -> tuple[NDArray[np.integer], int]:
    """Return the region of each anomalous pixel, in the order of the masks, and the number of regions."""
    structure = ndimage.generate_binary_structure(2, connectivity)
    parts, n_regions = [], 0
    for mask in defects:
        if mask.any():
            labels, n_found = ndimage.label(mask, structure)
            parts.append(labels[mask] + np.int32(n_regions - 1))
            n_regions += n_found
    return np.concatenate(parts), n_regions
