"""Images that were tested: what all measures, and all resamples of them, are computed from."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_consistent_length

from ipca_sklearn._utils._arrays import as_real_array
from ipca_sklearn._utils._labels import check_labels
from ipca_sklearn._utils._precision import below
from ipca_sklearn._utils._typing import ArrayLike
from ipca_sklearn.exceptions import FewImagesWarning, MaskWarning
from ipca_sklearn.metrics import _pixels, _resampling
from ipca_sklearn.metrics._aupimo import FPR_BOUNDS, image_areas, lack_of_normal_pixels, normal_scores
from ipca_sklearn.metrics._images import image_average_precision_score, image_f1_max_score, image_roc_auc_score
from ipca_sklearn.metrics._inputs import Bools, Floats, Pixels, Reals
from ipca_sklearn.metrics._regions import SIDES, RegionCounts
from ipca_sklearn.metrics._resampling import PixelCounts, resampled_weights, strata_of

# Each measure of images, and the same of the curves of resamples.
OF_IMAGES: dict[str, tuple[Callable[..., float], Callable[[Floats, Floats], Floats]]] = {
    "image_roc_auc": (image_roc_auc_score, _resampling.roc_auc),
    "image_average_precision": (image_average_precision_score, _resampling.average_precision),
    "image_f1_max": (image_f1_max_score, _resampling.f1_max),
}
# The same of pixels: from the scores of normal and of anomalous ones.
_OF_SCORES = {
    "pixel_roc_auc": (_pixels.roc_auc, _resampling.roc_auc),
    "pixel_average_precision": (_pixels.average_precision, _resampling.average_precision),
    "pixel_f1_max": (_pixels.f1_max, _resampling.f1_max),
}
_MAX_FPR = {"aupro": 0.3, "aupro_0.05": 0.05}
OF_MAPS = (*_OF_SCORES, *_MAX_FPR, "aupimo")
OF_MARKED = ("pixel_f1", "pro", "region_f1")
FOUND, FALSE_POSITIVES = "found", "false_positive_rate"


@dataclass(frozen=True)
class TestedImages:
    """Images with labels, and the results of one model."""

    labels: Reals  # (n,), +1 normal, -1 anomalous
    scores: Reals  # (n,), higher is more normal
    is_called: Bools | None  # (n,), which score below the threshold; None without one
    has_mask: Bools  # (n,), images whose pixels are measured
    pixels: PixelSample | None  # of these images

    @classmethod
    def of(
        cls,
        y_true: ArrayLike,
        y_score: ArrayLike,
        masks: ArrayLike | None,
        maps: ArrayLike | None,
        marked: ArrayLike | None,
        offset: float | None,
        has_mask: ArrayLike | None,
        region: ArrayLike | None,
    ) -> TestedImages:
        """Check what `evaluation_report` takes."""
        labels = check_labels(as_real_array(y_true, "y_true"), "y_true")
        scores = as_real_array(y_score, "y_score")
        check_consistent_length(labels, scores, masks, maps, marked, has_mask)
        known = np.ones(len(labels), dtype=bool) if has_mask is None else np.asarray(has_mask, dtype=bool)
        if (masks is None) != (maps is None):
            raise ValueError("give both masks and maps, or neither")
        pixels = None
        if masks is not None and maps is not None:
            pixels = PixelSample.of(masks, maps, marked, known, labels == 1, region)
        return cls(labels, scores, None if offset is None else below(scores, offset), known, pixels)

    @property
    def is_normal(self) -> Bools:
        """Which images are normal."""
        return self.labels == 1

    def measures(self, chosen: Bools, n_resamples: int, seed: int | None) -> tuple[dict[str, float], dict[str, Floats]]:
        """Return the measures of some of the images and of their resamples, which are the same for all models."""
        is_normal = self.is_normal[chosen]
        weights = resampled_weights(is_normal, n_resamples, seed)
        figures: dict[str, float] = {}
        resampled: dict[str, Floats] = {}
        if len(np.unique(is_normal)) == 2:
            labels, scores = self.labels[chosen], self.scores[chosen]
            figures |= {key: metric(labels, scores) for key, (metric, _) in OF_IMAGES.items()}
            curves = _resampling.image_curves(is_normal, scores, weights)
            resampled |= {key: of_curves(*curves) for key, (_, of_curves) in OF_IMAGES.items()}
        for key, kind in ((FOUND, ~is_normal), (FALSE_POSITIVES, is_normal)):
            if self.is_called is not None and kind.any():
                called = self.is_called[chosen][kind]
                figures[key], resampled[key] = float(called.mean()), weights[:, kind] @ called / len(called)
        if self.pixels is None:
            return figures, resampled
        of_pixels = self.pixels.measures(chosen[self.has_mask], n_resamples, seed)
        return figures | of_pixels[0], resampled | of_pixels[1]


@dataclass(frozen=True)
class PixelSample:
    """The pixels of all images with a mask, shared by all rows of a report."""

    pixels: Pixels
    counts: PixelCounts | None  # None if there are only normal or only anomalous pixels
    of_marks: NDArray[np.int64] | None  # (n, 3), see `mask_counts`
    of_regions: RegionCounts | None
    normal: Reals | None  # sorted scores of the normal images' pixels; None if too few for AUPIMO

    @classmethod
    def of(
        cls,
        masks: ArrayLike,
        maps: ArrayLike,
        marked: ArrayLike | None,
        known: Bools,
        is_normal: Bools,
        region: ArrayLike | None,
    ) -> PixelSample:
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
                stacklevel=4,
            )
        pixels = replace(whole.only(known), is_normal=is_normal[known])
        of_marks = of_regions = None
        if marked is not None:
            checked = _pixels.check_marked(masks, marked, region)
            of_marks = _pixels.mask_counts(checked)[known]
            of_regions = RegionCounts.of_pixels(checked).only(known)
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
            warnings.warn(f"there is no AUPIMO: {lack}", FewImagesWarning, stacklevel=6)
        counts = PixelCounts.of(pixels, _resampling.shared_thresholds(*kinds))
        return cls(pixels, counts, of_marks, of_regions, of_normal)

    def found_by_size(self, chosen: Bools, confidence_level: float) -> list[dict[str, Any]] | None:
        """Return how many defects of each size are found among some of the images."""
        if self.of_regions is None or not self.pixels.defects[chosen].any():
            return None
        return self.of_regions.only(chosen).by_size(SIDES, confidence_level)

    def measures(self, chosen: Bools, n_resamples: int, seed: int | None) -> tuple[dict[str, float], dict[str, Floats]]:
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
        for key, (metric, of_curves) in _OF_SCORES.items():
            figures[key], resampled[key] = metric(normal, anomalous), of_curves(sums.normal, sums.anomalous)
        for key, max_fpr in _MAX_FPR.items():
            figures[key] = _pixels.aupro(normal, anomalous, *regions, max_fpr)
            resampled[key] = _resampling.aupro(sums.normal, sums.overlap, max_fpr)
        if self.normal is not None:
            figures["aupimo"] = float(np.nanmean(image_areas(self.normal, anomalous, pixels.defects, FPR_BOUNDS)))
            resampled["aupimo"] = _resampling.aupimo(sums.normal_images, sums.tpr, FPR_BOUNDS)
        return figures, resampled


def _has_both(pixels: Pixels) -> bool:
    n_anomalous = int(np.count_nonzero(pixels.defects))
    return 0 < n_anomalous < len(pixels) * pixels.n_per_image
