"""The bootstrap over images: measures of many resamples at once.

A resample is a weight for each image, how often it was drawn. Scores are counted in bins that all images share, so the
curves of all resamples are one product of matrices, in place of sorting the pixels of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipca_sklearn.metrics._aupimo import rising_area
from ipca_sklearn.metrics._inputs import Bools, Floats, Pixels, Reals
from ipca_sklearn.metrics._pixels import label_defects

# Bins of each spacing and kind of pixels; at most six times as many in all. A set with fewer pixels is counted exactly.
_N_BINS = 400
# Images whose counts are multiplied at once: their conversion to float64 takes at most 5 MB.
_IMAGES_AT_ONCE = 256


def resampled_weights(strata: Reals, n_resamples: int, seed: int | None) -> Floats:
    """Return how often each of n images was drawn, (n_resamples, n): as many as there are from each stratum."""
    random = np.random.default_rng(seed)
    weights = np.zeros((n_resamples, len(strata)))
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        weights[:, rows] = random.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=n_resamples)
    return weights


def strata_of(pixels: Pixels) -> NDArray[np.integer]:
    """Return the stratum of each image: normal, anomalous where it is inspected, or anomalous elsewhere."""
    return 2 * pixels.is_normal + pixels.defects.any(axis=(1, 2))


def percentile_interval(values: Floats, confidence_level: float) -> tuple[float, float]:
    """Return the quantiles between which a share `confidence_level` of the values lies."""
    low, high = np.quantile(values, [(1 - confidence_level) / 2, (1 + confidence_level) / 2])
    return float(low), float(high)


def image_curves(is_normal: Bools, scores: Reals, weights: Floats) -> tuple[Floats, Floats]:
    """Return the weights of normal and of anomalous images at each score, (R, K) each, the most anomalous first."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])
    drawn = weights[:, order]
    normal, anomalous = (np.add.reduceat(drawn * kind[order], starts, axis=1) for kind in (is_normal, ~is_normal))
    return normal, anomalous


@dataclass(frozen=True)
class PixelCounts:
    """How many pixels of each of n images score in each of K bins, the most anomalous first."""

    normal: NDArray[np.float32]  # (n, K), integers below 2 ** 24
    anomalous: NDArray[np.float32]  # (n, K), likewise
    overlap: NDArray[np.float32]  # (n, K), shares of regions, summed over the regions of an image
    is_normal: Bools  # (n,), images without a defect

    @classmethod
    def of(cls, pixels: Pixels, thresholds: Reals, connectivity: int = 2) -> PixelCounts:
        """Count pixels between thresholds, see `shared_thresholds`."""
        n, n_bins = len(pixels), len(thresholds)
        normal, anomalous, overlap = (np.zeros((n, n_bins), np.float32) for _ in range(3))
        regions, n_regions = label_defects(pixels.defects, connectivity)
        shares = 1 / np.bincount(regions, minlength=n_regions)[regions]
        index = n_seen = 0
        for defects, scores in pixels.parts():
            for mask, values in zip(defects, scores, strict=True):
                bins = n_bins - np.searchsorted(thresholds, values, side="right")
                normal[index] = np.bincount(bins[~mask], minlength=n_bins)
                found = bins[mask]
                if found.size:
                    anomalous[index] = np.bincount(found, minlength=n_bins)
                    part = slice(n_seen, n_seen + found.size)
                    overlap[index] = np.bincount(found, weights=shares[part], minlength=n_bins)
                    n_seen += found.size
                index += 1
        return cls(normal, anomalous, overlap, pixels.is_normal)

    def only(self, images: Bools) -> PixelCounts:
        """Return the counts of some of the images, in their order."""
        return PixelCounts(**{name: values[images] for name, values in vars(self).items()})

    def sums(self, weights: Floats) -> PixelSums:
        """Return the counts of resamples, given by their weights (R, n)."""
        sizes = self.anomalous.sum(axis=1, dtype=np.float64)
        shares = np.divide(1, sizes, out=np.zeros_like(sizes), where=sizes > 0)
        return PixelSums(
            normal=_weighted(weights, self.normal),
            anomalous=_weighted(weights, self.anomalous),
            overlap=_weighted(weights, self.overlap),
            normal_images=_weighted(weights * self.is_normal, self.normal),
            tpr=_weighted(weights * shares, self.anomalous),
        )


@dataclass(frozen=True)
class PixelSums:
    """Weighted sums over images of their counts, (R, K) each."""

    normal: Floats
    anomalous: Floats
    overlap: Floats
    normal_images: Floats  # of the pixels of normal images alone
    tpr: Floats  # of the shares of the anomalous pixels of an image


def shared_thresholds(*scores: Reals) -> Reals:
    """Return increasing thresholds among sorted scores: evenly spaced, and in the logarithm from the upper end."""
    chosen = []
    for values in scores:
        if values.size <= 2 * _N_BINS:
            chosen.append(values)
            continue
        even = np.linspace(0, values.size - 1, _N_BINS)
        upper = values.size - np.geomspace(1, values.size, _N_BINS)
        chosen.append(values[np.concatenate([even, upper]).round().astype(np.intp)])
    return np.unique(np.concatenate(chosen))


def roc_auc(normal: Floats, anomalous: Floats) -> Floats:
    """Return areas under ROC curves: of resamples (R, K), the most anomalous first."""
    above = np.cumsum(normal, axis=1) - normal
    pairs = normal.sum(axis=1) * anomalous.sum(axis=1)
    return 1 - (anomalous * (above + normal / 2)).sum(axis=1) / pairs


def average_precision(normal: Floats, anomalous: Floats) -> Floats:
    """Return average precisions, from counts as in `roc_auc`."""
    found, false = np.cumsum(anomalous, axis=1), np.cumsum(normal, axis=1)
    precision = found / np.maximum(found + false, 1)
    return (anomalous * precision).sum(axis=1) / found[:, -1]


def f1_max(normal: Floats, anomalous: Floats) -> Floats:
    """Return the largest F1 scores, from counts as in `roc_auc`."""
    found, false = np.cumsum(anomalous, axis=1), np.cumsum(normal, axis=1)
    return (2 * found / (found + false + found[:, -1:])).max(axis=1)


def aupro(normal: Floats, overlap: Floats, max_fpr: float) -> Floats:
    """Return areas under per-region-overlap curves up to a false positive rate."""
    reached = np.cumsum(normal, axis=1)
    above, limit = reached - normal, max_fpr * reached[:, -1:]
    start, stop = np.minimum(above, limit), np.minimum(reached, limit)
    # The curve of a bin's pixels rises linearly from `above` to `reached`, and then stays.
    height = (stop - start) / np.maximum(normal, 1)
    area = (limit - stop) + (stop - start) * height / 2
    return (overlap * area / limit).sum(axis=1) / overlap.sum(axis=1)


def aupimo(normal_images: Floats, tpr: Floats, fpr_bounds: tuple[float, float]) -> Floats:
    """Return mean areas under per-image overlap curves between false positive rates."""
    reached = np.cumsum(normal_images, axis=1)
    low, high = (bound * reached[:, -1:] for bound in fpr_bounds)
    area = rising_area(reached - normal_images, reached, low, high) + np.log(high / np.clip(reached, low, high))
    return (tpr * area).sum(axis=1) / np.log(fpr_bounds[1] / fpr_bounds[0]) / tpr.sum(axis=1)


def _weighted(weights: Floats, counts: NDArray[np.float32]) -> Floats:
    total = np.zeros((len(weights), counts.shape[1]))
    for start in range(0, len(counts), _IMAGES_AT_ONCE):
        images = slice(start, start + _IMAGES_AT_ONCE)
        total += weights[:, images] @ counts[images].astype(np.float64)
    return total
