"""Measures of the regions that a model marks at its threshold: which defects are found, and what is marked beside them.

All of them follow from how many pixels each defect shares with each marked region, counted in one pass over an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipca_sklearn._utils._shares import clopper_pearson
from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn._utils._typing import ArrayLike
from ipca_sklearn.detection._regions import label_regions
from ipca_sklearn.metrics._inputs import Bools, Floats, Pixels, Reals
from ipca_sklearn.metrics._pixels import check_marked

MIN_OVERLAP = 0.25
SIDES = (8.0, 16.0, 32.0)


@own_surroundings()
def region_f1_score(
    masks: ArrayLike,
    marked: ArrayLike,
    *,
    min_overlap: float = MIN_OVERLAP,
    connectivity: int = 2,
    region: ArrayLike | None = None,
) -> float:
    """F1 score of defects: each one counts once, whatever its size.

    A defect is found if it and the marked regions that touch it overlap by more than `min_overlap`. A marked region is
    a false alarm unless more than that share of it lies on defects.

    Parameters
    ----------
    masks, marked, region
        As in :func:`pixel_f1_score`. Of a defect, the part inside of the region counts.
    min_overlap : float, default=0.25
        In [0, 1). 0: any common pixel will do.
    connectivity : {1, 2}, default=2
        As in :func:`aupro_score`, for defects and for marked regions.

    Returns
    -------
    float
        2 TP / (2 TP + FP + FN) of all images, in [0, 1].

    Raises
    ------
    ValueError, TypeError
        As :func:`pixel_f1_score`; `min_overlap` or `connectivity` is out of range.

    See Also
    --------
    pro_score : How much of each defect is marked.
    found_by_size : Which defects are found, by their size.

    Notes
    -----
    The definition is that of component-wise F1 in [1]_: the overlap of a defect is its common pixels with the regions
    that touch it, divided by its pixels and those of these regions that lie on no defect. Cost: O(pixels).

    References
    ----------
    .. [1] R. Chan, K. Lis, S. Uhlemeyer, H. Blum, S. Honari, R. Siegwart, P. Fua, M. Salzmann and M. Rottmann,
       "SegmentMeIfYouCan: A Benchmark for Anomaly Segmentation", NeurIPS Datasets and Benchmarks, 2021.

    Examples
    --------
    >>> from ipca_sklearn.metrics import region_f1_score
    >>> region_f1_score([[[1, 1, 0, 1, 0, 0, 0]]], [[[1, 1, 0, 0, 0, 0, 1]]])  # one found, one missed, one false
    0.5
    """
    if not 0 <= min_overlap < 1:
        raise ValueError(f"min_overlap={min_overlap!r} must lie in [0, 1): it is a share of pixels")
    return RegionCounts.of(masks, marked, region, min_overlap, connectivity).f1()


@own_surroundings()
def pro_score(masks: ArrayLike, marked: ArrayLike, *, connectivity: int = 2, region: ArrayLike | None = None) -> float:
    """Per-region overlap at the threshold of a model: the share of a defect that is marked, averaged over the defects.

    A point of the curve of :func:`aupro_score`: that of the learnt threshold, which knows no defect.

    Parameters
    ----------
    masks, marked, connectivity, region
        As in :func:`region_f1_score`.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError, TypeError
        As :func:`region_f1_score`.

    Examples
    --------
    >>> from ipca_sklearn.metrics import pro_score
    >>> pro_score([[[1, 1, 1, 1, 0, 1, 0]]], [[[0, 0, 0, 1, 0, 1, 1]]])
    0.625
    """
    return RegionCounts.of(masks, marked, region, MIN_OVERLAP, connectivity).pro()


@own_surroundings()
def found_by_size(
    masks: ArrayLike,
    marked: ArrayLike,
    *,
    sides: Sequence[float] = SIDES,
    connectivity: int = 2,
    region: ArrayLike | None = None,
    confidence_level: float = 0.95,
) -> list[dict[str, Any]]:
    """Return how many defects of each size are found: those of which at least one pixel is marked.

    Parameters
    ----------
    masks, marked, connectivity, region
        As in :func:`region_f1_score`.
    sides : sequence of float, default=(8, 16, 32)
        Where classes of size end, ascending: the side of a square of the same area, in pixels of the masks.
    confidence_level : float, default=0.95
        Of the intervals.

    Returns
    -------
    list of dict
        One per class, the smallest first: `"from"` and `"to"` (sides in pixels; the last one is None), `"n_defects"`,
        `"n_found"`, `"found"` (their share) and `"interval"` (of Clopper and Pearson); these two are None for a class
        without defects.

    Raises
    ------
    ValueError, TypeError
        As :func:`region_f1_score`; `sides` do not ascend.

    Examples
    --------
    >>> from ipca_sklearn.metrics import found_by_size
    >>> for row in found_by_size([[[1, 1, 1, 1, 0, 1, 0]]], [[[0, 0, 1, 1, 0, 0, 1]]], sides=[2]):
    ...     print(row["from"], row["to"], row["n_found"], row["n_defects"])
    0 2 0 1
    2 None 1 1
    """
    ends = np.asarray(sides, dtype=np.float64)
    if ends.ndim != 1 or not (np.diff(ends, prepend=0) > 0).all():
        raise ValueError(f"sides={sides!r} must be positive and ascend: they are sides of squares in pixels")
    counts = RegionCounts.of(masks, marked, region, MIN_OVERLAP, connectivity)
    return counts.by_size(sides, confidence_level)


@dataclass(frozen=True)
class RegionCounts:
    """Defects and marked regions of images."""

    image: NDArray[np.intp]  # (d,), of each defect
    area: NDArray[np.int64]  # (d,), in pixels
    share: Floats  # (d,), of its pixels that is marked
    is_found: Bools  # (d,), whether it overlaps with marked regions by more than the limit
    n_false: NDArray[np.int64]  # (n,), marked regions of each image that do not lie on defects

    @classmethod
    def of(
        cls, masks: ArrayLike, marked: ArrayLike, region: ArrayLike | None, min_overlap: float, connectivity: int
    ) -> RegionCounts:
        """Compare masks with what a model has marked, and refuse masks without a defect."""
        pixels = check_marked(masks, marked, region)
        if not pixels.defects.any():
            raise ValueError(
                f"masks of shape {pixels.defects.shape} have no anomalous pixel: the measure needs defects to be found."
            )
        return cls.of_pixels(pixels, min_overlap, connectivity)

    @classmethod
    def of_pixels(cls, pixels: Pixels, min_overlap: float = MIN_OVERLAP, connectivity: int = 2) -> RegionCounts:
        """Compare masks with what a model has marked, as `check_marked` returns them."""
        parts, n_false = [], np.zeros(len(pixels), np.int64)
        for index, (defects, marked) in enumerate(pixels.marked()):
            area, common, false, n_false[index] = _compared(defects, marked, min_overlap, connectivity)
            parts.append((np.full(len(area), index), area, common / area, common / (area + false) > min_overlap))
        image, area, share, is_found = (np.concatenate(values) for values in zip(*parts, strict=True))
        return cls(image, area, share, is_found, n_false)

    def only(self, images: Bools) -> RegionCounts:
        """Return those of some of the images, numbered anew."""
        kept = images[self.image]
        image = (np.cumsum(images) - 1)[self.image[kept]]
        return RegionCounts(image, self.area[kept], self.share[kept], self.is_found[kept], self.n_false[images])

    def f1(self, weights: Reals | None = None) -> Any:
        """Return the F1 score of regions; of weights (r, n) of the images, that of each row."""
        found, missed = self._per_image(self.is_found), self._per_image(~self.is_found)
        found, missed, false = (_weighted(counts, weights) for counts in (found, missed, self.n_false))
        return _divided(2 * found, 2 * found + missed + false)

    def pro(self, weights: Reals | None = None) -> Any:
        """Return the mean share of the defects that is marked, as `f1`."""
        shares, numbers = self._per_image(self.share), self._per_image(np.ones(len(self.share)))
        return _divided(_weighted(shares, weights), _weighted(numbers, weights))

    def by_size(self, sides: Sequence[float], confidence_level: float) -> list[dict[str, Any]]:
        """Return the rows of `found_by_size`."""
        classes = np.searchsorted(np.asarray(sides, dtype=np.float64) ** 2, self.area, side="right")
        rows = []
        for number, (start, end) in enumerate(zip((0, *sides), (*sides, None), strict=True)):
            touched = self.share[classes == number] > 0
            row: dict[str, Any] = {"from": start, "to": end, "n_defects": len(touched), "n_found": int(touched.sum())}
            row |= {"found": None, "interval": None}
            if len(touched):
                row |= {"found": float(touched.mean()), "interval": clopper_pearson(touched, confidence_level)}
            rows.append(row)
        return rows

    def _per_image(self, values: Reals) -> Reals:
        return np.bincount(self.image, weights=values, minlength=len(self.n_false))


def _compared(defects: Bools, marked: Bools, min_overlap: float, connectivity: int) -> tuple[Reals, Reals, Reals, int]:
    """Return pixels of each defect, how many are marked, the pixels beside it, and the number of false regions.

    Pixels beside a defect belong to the marked regions that touch it and lie on no defect.
    """
    (true, n_true), (called, n_called) = label_regions(defects, connectivity), label_regions(marked, connectivity)
    area = np.bincount(true.ravel(), minlength=n_true + 1)[1:]
    size = np.bincount(called.ravel(), minlength=n_called + 1)[1:]
    both = defects & marked
    # Pairs that have pixels in common: far fewer than all pairs.
    pairs, common = np.unique(true[both].astype(np.int64) * (n_called + 1) + called[both], return_counts=True)
    of_defect, of_region = pairs // (n_called + 1) - 1, pairs % (n_called + 1) - 1
    on_defects = np.bincount(of_region, weights=common, minlength=n_called)
    beside = size - on_defects
    return (
        area,
        np.bincount(of_defect, weights=common, minlength=n_true),
        np.bincount(of_defect, weights=beside[of_region], minlength=n_true),
        int((on_defects <= min_overlap * size).sum()),
    )


def _weighted(counts: Reals, weights: Reals | None) -> Any:
    return float(counts.sum()) if weights is None else weights @ counts


def _divided(part: Any, whole: Any) -> Any:
    return part / np.maximum(whole, 1e-300) if isinstance(whole, np.ndarray) else float(part / whole)
