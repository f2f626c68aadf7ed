"""Confidence intervals of measures, by the bootstrap over images.

`scipy.stats.bootstrap` draws neither from strata nor masks with maps, and would sort all pixels in every resample.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from ipca_sklearn._utils._arrays import as_real_array
from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn._utils._typing import ArrayLike
from ipca_sklearn.metrics import _resampling
from ipca_sklearn.metrics._aupimo import FPR_BOUNDS, aupimo_score, normal_scores
from ipca_sklearn.metrics._inputs import Floats, Pixels, check_image_scores
from ipca_sklearn.metrics._pixels import (
    aupro_score,
    check_marked,
    check_max_fpr,
    f1,
    mask_counts,
    pixel_average_precision_score,
    pixel_f1_max_score,
    pixel_f1_score,
    pixel_roc_auc_score,
)
from ipca_sklearn.metrics._regions import RegionCounts, pro_score, region_f1_score
from ipca_sklearn.metrics._resampling import PixelCounts, percentile_interval, resampled_weights, strata_of
from ipca_sklearn.metrics._sample import OF_IMAGES

# From the sums of resamples to their measures, (R,).
_OF_IMAGES: dict[Any, Callable[[Floats, Floats], Floats]] = dict(OF_IMAGES.values())
_OF_PIXELS: dict[Any, Callable[..., Floats]] = {
    pixel_roc_auc_score: lambda sums: _resampling.roc_auc(sums.normal, sums.anomalous),
    pixel_average_precision_score: lambda sums: _resampling.average_precision(sums.normal, sums.anomalous),
    pixel_f1_max_score: lambda sums: _resampling.f1_max(sums.normal, sums.anomalous),
    aupro_score: lambda sums, max_fpr=0.3: _resampling.aupro(sums.normal, sums.overlap, max_fpr),
    aupimo_score: lambda sums, fpr_bounds=FPR_BOUNDS: _resampling.aupimo(sums.normal_images, sums.tpr, fpr_bounds),
}


@own_surroundings()
def confidence_interval(
    metric: Callable[..., float],
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    random_state: int | None = 0,
    **options: Any,
) -> tuple[float, float]:
    """Confidence interval of a measure: what it would be for other images of the same kinds.

    Images are drawn with replacement, as many normal and as many anomalous ones as there are, and the interval holds
    the middle share of the measures of the resamples (the percentile bootstrap).

    Parameters
    ----------
    metric : callable
        A measure of this module, or any ``metric(y_true, y_score, **options)`` that returns a number.
    y_true : array-like of shape (n_images,) or (n_images, height, width)
        Labels, +1 for a normal and -1 for an anomalous image; for measures of pixels the masks.
    y_score : array-like of shape (n_images,) or (n_images, map_height, map_width)
        Scores of images, or maps (for :func:`pixel_f1_score`, what is marked).
    n_resamples : int, default=1000
        Resamples.
    confidence_level : float, default=0.95
        Share of the resamples whose measures lie in the interval, in (0, 1).
    random_state : int or None, default=0
        Seed; None draws others each time.
    **options
        Passed on to the metric: `region`, `max_fpr`, ...

    Returns
    -------
    (float, float)
        Lower and upper end.

    Raises
    ------
    ValueError
        `n_resamples` is below 1, `confidence_level` is not within 0 and 1, or the metric refuses the input.
    TypeError
        If an input does not hold real numbers, or the metric does not know an option.

    Warns
    -----
    FewImagesWarning
        As :func:`aupimo_score`.

    Notes
    -----
    Images are drawn, not pixels: pixels of one image are alike, and an interval of independent pixels would be many
    times too narrow [1]_. With fewer than 30 images of a kind even this interval is too narrow as a rule. Where all
    images lie on the right side, the interval is (1, 1): the images then say too little, not everything.

    The measures of this module are computed for all resamples at once: for images in ``O(n_resamples * n_images)``.
    For maps, the pixels of each image are counted in K (at most 2400) bins that all images share:
    ``O(n_pixels log K + n_resamples * n_images * K)`` time, and ``12 n_images K`` bytes beside ``40 n_resamples K``.
    Within a bin curves are linear, which changes the ends by less than the chance of the resampling does, and by
    nothing with at most 800 pixels of each kind. Another metric is called `n_resamples` times.

    References
    ----------
    .. [1] B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap", Chapman and Hall, 1993, ch. 8 and 13.

    Examples
    --------
    >>> from ipca_sklearn.metrics import confidence_interval, image_roc_auc_score
    >>> labels, scores = [1, 1, 1, 1, -1, -1, -1, -1], [8, 7, 6, 3, 5, 4, 2, 1]
    >>> image_roc_auc_score(labels, scores)
    0.875
    >>> confidence_interval(image_roc_auc_score, labels, scores)
    (0.5, 1.0)
    """
    check_resampling(n_resamples, confidence_level)

    def weights(strata: Any) -> Floats:
        return resampled_weights(strata, n_resamples, random_state)

    if metric in _OF_IMAGES or metric in _OF_PIXELS:
        inspect.signature(metric).bind(y_true, y_score, **options)  # a TypeError that names what the metric has not
    if metric in _OF_IMAGES:
        is_normal, scores = check_image_scores(y_true, y_score)
        curves = _resampling.image_curves(is_normal, scores, weights(is_normal))
        values = _OF_IMAGES[metric](*curves, **options)
    elif metric in _OF_PIXELS:
        pixels = Pixels.of(y_true, y_score, options.pop("region", None))
        connectivity = options.pop("connectivity", 2) if metric is aupro_score else 2
        check_max_fpr(options.get("max_fpr", 0.3))
        kinds = list(pixels.split())
        kinds[1].sort()
        if metric is aupimo_score:
            kinds.append(normal_scores(pixels, options.get("fpr_bounds", FPR_BOUNDS)))
        counts = PixelCounts.of(pixels, _resampling.shared_thresholds(*kinds), connectivity)
        values = _OF_PIXELS[metric](counts.sums(weights(strata_of(pixels))), **options)
    elif metric in (pixel_f1_score, pro_score, region_f1_score):
        metric(y_true, y_score, **options)  # it checks the input
        pixels = check_marked(y_true, y_score, options.pop("region", None))
        if metric is pixel_f1_score:
            values = f1(*(weights(strata_of(pixels)) @ mask_counts(pixels)).T)
        else:
            regions = RegionCounts.of_pixels(pixels, **options)
            values = (regions.pro if metric is pro_score else regions.f1)(weights(strata_of(pixels)))
    else:
        true, scores = as_real_array(y_true, "y_true"), as_real_array(y_score, "y_score")
        n_images = len(true)
        if n_images != len(scores):
            raise ValueError(
                f"y_true has {n_images} images and y_score {len(scores)}: both must have one entry per image"
            )
        drawn = weights(true if true.ndim == 1 else ~np.any(true, axis=(1, 2))).astype(np.intp)
        resamples = (np.repeat(np.arange(n_images), numbers) for numbers in drawn)
        values = np.array([metric(true[images], scores[images], **options) for images in resamples], dtype=np.float64)
    return percentile_interval(values, confidence_level)


def check_resampling(n_resamples: int, confidence_level: float) -> None:
    if n_resamples < 1:
        raise ValueError(f"n_resamples={n_resamples!r} must be at least 1")
    if not 0 < confidence_level < 1:
        raise ValueError(f"confidence_level={confidence_level!r} must lie between 0 and 1: 0.95 is the usual one")
