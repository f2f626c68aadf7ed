"""All measures of a detector, for each type of defect, with their confidence intervals."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.utils.validation import check_consistent_length

from ipca_sklearn._utils._shares import clopper_pearson
from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn._utils._typing import ArrayLike
from ipca_sklearn.exceptions import FewImagesWarning
from ipca_sklearn.metrics._inputs import Bools
from ipca_sklearn.metrics._intervals import check_resampling
from ipca_sklearn.metrics._resampling import percentile_interval
from ipca_sklearn.metrics._sample import FALSE_POSITIVES, FOUND, OF_IMAGES, OF_MAPS, OF_MARKED, TestedImages

_MIN_IMAGES = 30
_SIZES = "found_by_size"


@own_surroundings()
def evaluation_report(
    y_true: ArrayLike,
    y_score: ArrayLike,
    masks: ArrayLike | None = None,
    maps: ArrayLike | None = None,
    *,
    marked: ArrayLike | None = None,
    offset: float | None = None,
    defect_types: ArrayLike | None = None,
    has_mask: ArrayLike | None = None,
    region: ArrayLike | None = None,
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    random_state: int | None = 0,
) -> dict[str, Any]:
    """All measures of a detector with their confidence intervals, of all defects and of each type.

    Each type is compared with all normal images.

    Parameters
    ----------
    y_true : array-like of shape (n_images,)
        Outlier labels: +1 for a normal image, -1 for an anomalous one.
    y_score : array-like of shape (n_images,)
        `score_samples` of a detector.
    masks, maps : array-like, default=None
        As in :func:`pixel_roc_auc_score`; without them there are no figures of pixels.
    marked : array-like of shape (n_images, map_height, map_width), default=None
        `predict_masks` of the detector: for the figures at the learnt threshold.
    offset : float, default=None
        `offset_` of the detector, for the shares of images that score below it.
    defect_types : array-like of str, shape (n_images,), default=None
        Of the anomalous images; those of normal images are ignored. None is one type only.
    has_mask : array-like of bool, shape (n_images,), default=None
        Which images have a mask. The pixels of others are left out; None for all.
    region : array-like of bool, default=None
        As in :func:`pixel_roc_auc_score`.
    n_resamples, confidence_level, random_state
        As in :func:`confidence_interval`.

    Returns
    -------
    dict
        `"defects"` is a list of rows, for `"all"` and for each type: `"defects"` (its name), `"n_images"` and
        `"n_masks"`; `"image_roc_auc"`, `"image_average_precision"`, `"image_f1_max"`, `"found"` (the share below the
        offset), `"pixel_roc_auc"`, `"pixel_average_precision"`, `"pixel_f1_max"`, `"pixel_f1"` (of `marked`), `"pro"`
        and `"region_f1"` (of its regions), `"aupro"`, `"aupro_0.05"` and `"aupimo"`, or None for what the images do not
        give; `"found_by_size"`, the rows of :func:`found_by_size`; and `"intervals"`, a dict from these names to (low,
        high). `"n_normal"`, `"false_positive_rate"` (the share of normal images below the offset),
        `"false_positive_rate_interval"`, `"n_resamples"` and `"confidence_level"` are of all.

    Raises
    ------
    ValueError
        Lengths differ, a normal image has anomalous pixels, only one of `masks` and `maps` is given, or for the inputs
        that the measures refuse.
    TypeError
        If an input does not hold real numbers.

    Warns
    -----
    FewImagesWarning
        There are fewer than 30 images of a kind, or too few normal ones for AUPIMO.
    MaskWarning
        Anomalous images have a mask that marks nothing.
    AspectRatioWarning
        Masks and maps have other proportions.

    Notes
    -----
    Intervals of shares of images are those of Clopper and Pearson, the others as in :func:`confidence_interval`. An
    anomalous image whose defect lies outside of what is inspected adds its pixels to the normal ones, except for
    AUPIMO. Cost: a sort of the pixels for each row, and that of the intervals; pixels are counted once for all rows.

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn.metrics import evaluation_report
    >>> labels, scores = np.repeat([1, -1], 40), np.r_[np.arange(30, 70), np.arange(0, 40)]
    >>> report = evaluation_report(labels, scores, offset=30)
    >>> row = report["defects"][0]
    >>> row["image_roc_auc"], row["found"], [round(end, 2) for end in row["intervals"]["found"]]
    (0.96875, 0.75, [0.59, 0.87])
    """
    check_resampling(n_resamples, confidence_level)
    check_consistent_length(y_true, defect_types)
    images = TestedImages.of(y_true, y_score, masks, maps, marked, offset, has_mask, region)
    is_normal, known, called = images.is_normal, images.has_mask, images.is_called
    rows = []
    for name, chosen in kinds(is_normal, defect_types, confidence_level):
        anomalous = chosen & ~is_normal
        row: dict[str, Any] = {"defects": name, "n_images": int(np.sum(anomalous))}
        row["n_masks"] = 0 if images.pixels is None else int(np.sum(anomalous & known))
        row |= dict.fromkeys((*OF_IMAGES, FOUND, *OF_MAPS, *OF_MARKED, _SIZES))
        figures, resampled = images.measures(chosen, n_resamples, random_state)
        row |= {key: value for key, value in figures.items() if key != FALSE_POSITIVES}
        ends = {key: percentile_interval(resampled[key], confidence_level) for key in row if key in resampled}
        if called is not None and anomalous.any():
            ends[FOUND] = clopper_pearson(called[anomalous], confidence_level)
        if images.pixels is not None:
            row[_SIZES] = images.pixels.found_by_size(chosen[known], confidence_level)
        rows.append(row | {"intervals": ends})
    rate, rate_ends = None, None
    if called is not None and is_normal.any():
        rate = float(called[is_normal].mean())
        rate_ends = clopper_pearson(called[is_normal], confidence_level)
    return {
        "defects": rows,
        "n_normal": int(is_normal.sum()),
        "false_positive_rate": rate,
        "false_positive_rate_interval": rate_ends,
        "n_resamples": n_resamples,
        "confidence_level": confidence_level,
    }


def kinds(is_normal: Bools, defect_types: ArrayLike | None, confidence_level: float) -> Iterator[tuple[str, Bools]]:
    """Yield "all" and each type of defect, with the images that belong to it: the normal ones, and its own.

    A warning comes first, of kinds of images that are too few for a figure that holds for others.
    """
    names = np.full(len(is_normal), "all") if defect_types is None else np.asarray(defect_types)
    types = sorted(set(names[~is_normal].tolist()))
    numbers = [("normal", is_normal.sum()), *((name, np.sum(~is_normal & (names == name))) for name in types)]
    few = [f"{name} ({number})" for name, number in numbers if number < _MIN_IMAGES]
    if few:
        warnings.warn(
            f"fewer than {_MIN_IMAGES} images of these kinds: {', '.join(few)}. Their figures may be far from those of "
            f"other images: the {confidence_level:.0%} intervals are wide, and yet too narrow as a rule",
            FewImagesWarning,
            stacklevel=4,
        )
    yield "all", np.ones_like(is_normal)
    for name in sorted(map(str, types)) if types != ["all"] else ():
        yield name, is_normal | (names == name)
