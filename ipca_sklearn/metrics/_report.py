"""All measures of a detector, for each type of defect, with their confidence intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_consistent_length

from ipca_sklearn._utils._labels import check_labels
from ipca_sklearn._utils._precision import below
from ipca_sklearn._utils._shares import clopper_pearson
from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn._utils._typing import ArrayLike
from ipca_sklearn.exceptions import FewImagesWarning, MaskWarning
from ipca_sklearn.metrics import _pixels, _resampling
from ipca_sklearn.metrics._aupimo import FPR_BOUNDS, image_areas, lack_of_normal_pixels, normal_scores
from ipca_sklearn.metrics._images import image_average_precision_score, image_f1_max_score, image_roc_auc_score
from ipca_sklearn.metrics._inputs import Pixels, as_real_array
from ipca_sklearn.metrics._intervals import check_resampling, confidence_interval
from ipca_sklearn.metrics._regions import SIDES, RegionCounts
from ipca_sklearn.metrics._resampling import PixelCounts, percentile_interval, resampled_weights, strata_of

_MIN_IMAGES = 30
_OF_IMAGES: dict[str, Callable[..., float]] = {
    "image_roc_auc": image_roc_auc_score,
    "image_average_precision": image_average_precision_score,
    "image_f1_max": image_f1_max_score,
}
_OF_MAPS = ("pixel_roc_auc", "pixel_average_precision", "pixel_f1_max", "aupro", "aupro_0.05", "aupimo")
_OF_MARKED = ("pixel_f1", "pro", "region_f1")
_SIZES = "found_by_size"
_FOUND = "found"


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
        Which images have a mask. The pixels of others are left out; None is all.
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
        high). `"n_normal"`, `"false_alarms"`, `"false_alarms_interval"`, `"n_resamples"` and `"confidence_level"` are
        of all.

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
    labels = check_labels(as_real_array(y_true, "y_true"), "y_true")
    scores = as_real_array(y_score, "y_score")
    check_consistent_length(labels, scores, masks, maps, marked, defect_types, has_mask)
    is_normal = labels == 1
    names = np.full(len(labels), "all") if defect_types is None else np.asarray(defect_types)
    _warn_of_few(is_normal, names, confidence_level)
    interval = partial(
        confidence_interval, n_resamples=n_resamples, confidence_level=confidence_level, random_state=random_state
    )
    known = np.ones(len(labels), dtype=bool) if has_mask is None else np.asarray(has_mask, dtype=bool)
    sample = None
    if (masks is None) != (maps is None):
        raise ValueError("give both masks and maps, or neither")
    if masks is not None and maps is not None:
        sample = _PixelSample.of(masks, maps, marked, known, is_normal, region)
    rows = []
    for name, chosen in kinds(is_normal, names):
        row: dict[str, Any] = {"defects": name, "n_images": int(np.sum(chosen & ~is_normal))}
        row["n_masks"] = 0 if sample is None else int(np.sum(chosen & known & ~is_normal))
        row |= dict.fromkeys((*_OF_IMAGES, _FOUND, *_OF_MAPS, *_OF_MARKED, _SIZES))
        ends: dict[str, tuple[float, float]] = {}
        if len(np.unique(is_normal[chosen])) == 2:
            for key, metric in _OF_IMAGES.items():
                row[key] = metric(labels[chosen], scores[chosen])
                ends[key] = interval(metric, labels[chosen], scores[chosen])
        if offset is not None and row["n_images"]:
            row[_FOUND], ends[_FOUND] = _share(below(scores[chosen & ~is_normal], offset), confidence_level)
        if sample is not None:
            figures, resampled = sample.measures(chosen[known], n_resamples, random_state)
            row |= figures
            ends |= {key: percentile_interval(values, confidence_level) for key, values in resampled.items()}
            row[_SIZES] = sample.found_by_size(chosen[known], confidence_level)
        rows.append(row | {"intervals": ends})
    alarms, alarm_ends = None, None
    if offset is not None and is_normal.any():
        alarms, alarm_ends = _share(below(scores[is_normal], offset), confidence_level)
    return {
        "defects": rows,
        "n_normal": int(is_normal.sum()),
        "false_alarms": alarms,
        "false_alarms_interval": alarm_ends,
        "n_resamples": n_resamples,
        "confidence_level": confidence_level,
    }


def kinds(is_normal: NDArray[np.bool_], names: NDArray[Any]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield "all" and each type of defect, with the images that belong to it: the normal ones, and its own."""
    yield "all", np.ones_like(is_normal)
    types = sorted(map(str, set(names[~is_normal].tolist())))
    if types != ["all"]:
        for name in types:
            yield name, is_normal | (names == name)


def _share(below: NDArray[np.bool_], confidence_level: float) -> tuple[float, tuple[float, float]]:
    return float(below.mean()), clopper_pearson(below, confidence_level)


def _warn_of_few(is_normal: NDArray[np.bool_], names: NDArray[Any], confidence_level: float) -> None:
    numbers = {"normal": int(is_normal.sum())}
    numbers |= {name: int(np.sum(~is_normal & (names == name))) for name in sorted(set(names[~is_normal].tolist()))}
    few = [f"{name} ({number})" for name, number in numbers.items() if number < _MIN_IMAGES]
    if few:
        warnings.warn(
            f"fewer than {_MIN_IMAGES} images of these kinds: {', '.join(few)}. Their figures may be far from those of "
            f"other images: the {confidence_level:.0%} intervals are wide, and yet too narrow as a rule",
            FewImagesWarning,
            stacklevel=4,
        )


@dataclass(frozen=True)
class _PixelSample:
    """The pixels of all images with a mask: what all rows of a report share.

    Parameters
    ----------
    pixels : Pixels
        Their masks and maps.
    counts : PixelCounts or None
        None if there are only normal or only anomalous pixels.
    of_marks : ndarray of shape (n, 3) or None
        See `mask_counts`.
    of_regions : RegionCounts or None
        Of the same images.
    normal : ndarray or None
        Sorted scores of the normal images' pixels; None if they are too few for AUPIMO.
    """

    pixels: Pixels
    counts: PixelCounts | None
    of_marks: NDArray[np.int64] | None
    of_regions: RegionCounts | None
    normal: NDArray[Any] | None

    @classmethod
    def of(
        cls,
        masks: ArrayLike,
        maps: ArrayLike,
        marked: ArrayLike | None,
        known: NDArray[np.bool_],
        is_normal: NDArray[np.bool_],
        region: ArrayLike | None,
    ) -> _PixelSample:
        whole = Pixels.of(masks, maps, region)
        wrong = is_normal & known & ~whole.is_normal
        if wrong.any():
            raise ValueError(f"masks[{wrong.argmax()}] has anomalous pixels, and y_true says that the image is normal")
        empty = ~is_normal & known & whole.is_normal
        if empty.any():
            warnings.warn(
                f"{empty.sum()} anomalous images have a mask without an anomalous pixel, the first is "
                f"masks[{empty.argmax()}]: their pixels count as normal. Leave them out with has_mask if they have no "
                "mask",
                MaskWarning,
                stacklevel=3,
            )
        pixels = replace(whole.only(known), is_normal=is_normal[known])
        of_marks = of_regions = None
        if marked is not None:
            checked = _pixels.check_marked(masks, marked, region)
            of_marks = _pixels.mask_counts(*checked)[known]
            of_regions = RegionCounts.of_pixels(*checked).only(known)
        if not _has_both(pixels):
            return cls(pixels, None, of_marks, of_regions, None)
        normal, anomalous = pixels.split()
        anomalous.sort()
        kinds, of_normal = [normal, anomalous], None
        lack = lack_of_normal_pixels(pixels, FPR_BOUNDS) if pixels.is_normal.any() else "there is no normal image"
        if lack is None:
            of_normal = normal_scores(pixels, FPR_BOUNDS)
            kinds.append(of_normal)
        else:
            warnings.warn(f"there is no AUPIMO: {lack}", FewImagesWarning, stacklevel=5)
        counts = PixelCounts.of(pixels, _resampling.shared_thresholds(*kinds))
        return cls(pixels, counts, of_marks, of_regions, of_normal)

    def found_by_size(self, chosen: NDArray[np.bool_], confidence_level: float) -> list[dict[str, Any]] | None:
        """Return how many defects of each size are found among some of the images."""
        if self.of_regions is None or not self.pixels.defects[chosen].any():
            return None
        return self.of_regions.only(chosen).by_size(SIDES, confidence_level)

    def measures(
        self, chosen: NDArray[np.bool_], n_resamples: int, seed: int | None
    ) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
        """Return the measures of some of the images, and those of their resamples."""
        pixels = self.pixels.only(chosen)
        if not pixels.defects.any():
            return {}, {}
        weights = resampled_weights(strata_of(pixels), n_resamples, seed)
        figures, resampled = {}, {}
        if self.of_marks is not None and self.of_regions is not None:
            of_marks, of_regions = self.of_marks[chosen], self.of_regions.only(chosen)
            figures["pixel_f1"] = float(_pixels.f1(*of_marks.sum(axis=0)))
            resampled["pixel_f1"] = _pixels.f1(*(weights @ of_marks).T)
            figures["pro"], resampled["pro"] = of_regions.pro(), of_regions.pro(weights)
            figures["region_f1"], resampled["region_f1"] = of_regions.f1(), of_regions.f1(weights)
        if self.counts is None or not _has_both(pixels):
            return figures, resampled
        normal, anomalous = pixels.split()
        regions = _pixels.label_defects(pixels.defects, 2)
        sums = self.counts.only(chosen).sums(weights)
        both = sums.normal, sums.anomalous
        figures["pixel_roc_auc"] = _pixels.roc_auc(normal, anomalous)
        resampled["pixel_roc_auc"] = _resampling.roc_auc(*both)
        figures["pixel_average_precision"] = _pixels.average_precision(normal, anomalous)
        resampled["pixel_average_precision"] = _resampling.average_precision(*both)
        figures["pixel_f1_max"] = _pixels.f1_max(normal, anomalous)
        resampled["pixel_f1_max"] = _resampling.f1_max(*both)
        for key, max_fpr in (("aupro", 0.3), ("aupro_0.05", 0.05)):
            figures[key] = _pixels.aupro(normal, anomalous, *regions, max_fpr)
            resampled[key] = _resampling.aupro(sums.normal, sums.overlap, max_fpr)
        if self.normal is not None:
            figures["aupimo"] = float(np.nanmean(image_areas(self.normal, anomalous, pixels.defects, FPR_BOUNDS)))
            resampled["aupimo"] = _resampling.aupimo(sums.normal_images, sums.tpr, FPR_BOUNDS)
        return figures, resampled


def _has_both(pixels: Pixels) -> bool:
    n_anomalous = int(np.count_nonzero(pixels.defects))
    return 0 < n_anomalous < len(pixels) * pixels.n_per_image
