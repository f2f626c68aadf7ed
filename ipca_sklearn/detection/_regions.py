"""Defects as a list: the connected regions of anomaly maps above a threshold, in pixels of the images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ipca_sklearn._utils._arrays import as_real_array
from ipca_sklearn._utils._precision import above
from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn._utils._typing import ArrayLike, Size
from ipca_sklearn.detection._region_ops import merge_near, outlines_of
from ipca_sklearn.exceptions import SkippedImagesWarning

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Defect:
    """An anomalous region of an image, in pixels of the original image.

    Parameters
    ----------
    box : (int, int, int, int)
        Top, left, height and width of the smallest box around it.
    area : int
        Number of its pixels: those of `mask`.
    centroid : (float, float)
        Mean row and mean column of its pixels. The first pixel of an image is at (0, 0).
    max_value, mean_value : float
        Largest and mean value of the map in it: larger = more anomalous, unlike scores of images.
    p_value : float or None, default=None
        How often the map of a normal image has so large a value anywhere; None without a reference.
    """

    box: tuple[int, int, int, int]
    area: int
    centroid: tuple[float, float]
    max_value: float
    mean_value: float
    p_value: float | None = None
    _patches: _Patches | None = field(default=None, repr=False, compare=False)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The pixels of the box (height, width) that belong to the defect: those whose centres lie in its patches."""
        return np.ones(self.box[2:], dtype=bool) if self._patches is None else self._patches.painted()

    @property
    def outlines(self) -> list[NDArray[np.int64]]:
        """The polygons (n, 2) around its parts, as x and y of corners of pixels; a slit leads to each hole.

        A part is what hangs together by edges. The first pixel of an image has the corners (0, 0) and (1, 1).
        """
        patches = self._patches
        if patches is None or patches.overlap:
            rows, columns = (np.arange(side + 1) for side in self.box[2:])
            return outlines_of(self.mask, rows, columns, self.box[:2])
        rows, columns = (np.append(first, last[-1]) for first, last in (patches.rows, patches.columns))
        return outlines_of(patches.inside, rows, columns, self.box[:2])

    def as_dict(self) -> dict[str, Any]:
        """Return numbers by their names, for tables and JSON."""
        return {
            **dict(zip(("top", "left", "height", "width"), self.box, strict=True)),
            "area": self.area,
            "centroid": list(self.centroid),
            "max_value": self.max_value,
            "mean_value": self.mean_value,
            "p_value": self.p_value,
        }


@own_surroundings()
def find_defects(
    maps: ArrayLike,
    threshold: float,
    *,
    min_area: float = 0,
    merge_distance: float = 0,
    image_sizes: Size | Sequence[Size | None] | None = None,
    covered_box: Callable[[Size], Box] | None = None,
    region: ArrayLike | None = None,
    normal_maxima: ArrayLike | None = None,
    connectivity: int = 2,
) -> list[list[Defect] | None]:
    """Find the connected regions of anomaly maps above a threshold.

    Parameters
    ----------
    maps : array-like or tensor of shape (n, h, w)
        Larger = more anomalous: `transform` of a detector.
    threshold : float
        Larger values are anomalous: `map_threshold_` of the detector. Compared without rounding.
    min_area : float, default=0
        Regions with fewer pixels are left out, after merging.
    merge_distance : float, default=0
        Regions with at most so many pixels between them are one defect. Distances are Euclidean.
    image_sizes : (int, int), sequence of (int, int), or None, default=None
        Height and width of the original images, one size for all or one each. None: a pixel is a value of the map.
    covered_box : callable or None, default=None
        Returns where in an image of a size its map lies: `covered_box` of the `PatchFeatureExtractor`, which knows
        about resizing and the crop. None: over the whole image.
    region : array-like of bool, shape (h, w), default=None
        The patches that are inspected: `region_` of the detector; None if all are.
    normal_maxima : array-like of shape (m,), default=None
        Largest values of the maps of unseen normal images, for p-values: `calibration_maxima_` of the detector.
    connectivity : {1, 2}, default=2
        Neighbours of a patch in a region: those that share an edge (1), or also a corner (2).

    Returns
    -------
    list of (list of Defect, or None)
        For each image its defects, that of the largest value first. An image without a defect has an empty list. An
        image that was not inspected has None: its map is NaN, because the image could not be read.

    Raises
    ------
    ValueError
        Another shape, a map that is NaN in part, a parameter out of its range, or not one size for each image.
    TypeError
        Maps that are not real numbers.

    Warns
    -----
    SkippedImagesWarning
        Maps are NaN, or there is no size for a map.

    See Also
    --------
    PatchGaussianDetector.predict_regions : The same from features, with all of these values known.

    Notes
    -----
    A pixel belongs to the patch in which its centre lies, as in masks. Patch i of h covers the pixels from
    `top + i * height / h` on, for the covered box `(top, left, height, width)`. A region has at least one pixel where
    an image is smaller than its map. Cost: one pass over each map, and for `merge_distance` one over the edges of
    regions for each patch within that distance.

    Examples
    --------
    >>> from ipca_sklearn.detection import find_defects
    >>> maps = [[[0, 9, 0, 0], [0, 8, 0, 7]]]
    >>> for defect in find_defects(maps, 5, image_sizes=(20, 40))[0]:
    ...     print(defect.box, defect.area, defect.centroid, defect.max_value)
    (0, 10, 20, 10) 200 (9.5, 14.5) 9.0
    (10, 30, 10, 10) 100 (14.5, 34.5) 7.0
    >>> [defect.box for defect in find_defects(maps, 5, image_sizes=(20, 40), merge_distance=10)[0]]
    [(0, 10, 20, 30)]
    """
    values = _as_maps(maps)
    found = list(
        _find(
            values, threshold, min_area, merge_distance, image_sizes, covered_box, region, normal_maxima, connectivity
        )
    )
    skipped = [index for index, defects in enumerate(found) if defects is None]
    if skipped:
        shown = ", ".join(map(str, skipped[:5])) + (", ..." if len(skipped) > 5 else "")
        warnings.warn(
            f"{len(skipped)} of {len(found)} images have no list of defects but None, because their maps are NaN or "
            f"their sizes are not known: {shown}",
            SkippedImagesWarning,
            stacklevel=2,
        )
    return found


def predict_regions(
    detector: Any, X: Any, maps: Any, min_area: float, merge_distance: float, image_sizes: Any
) -> list[list[Defect] | None]:
    """Return the defects of images from their features, by a fitted detector: see its `predict_regions`."""
    if len(detector.patch_shape_) != 2:
        raise ValueError(
            f"predict_regions needs features of shape (n, H, W, m), and the patches learnt have the shape "
            f"{detector.patch_shape_}: neighbours are not known"
        )
    if maps is not None and tuple(maps.shape) != (len(X), *detector.patch_shape_):
        raise ValueError(
            f"maps of shape {tuple(maps.shape)} for {len(X)} images; expected {(len(X), *detector.patch_shape_)}, as "
            "from transform(X)"
        )
    maps = _as_maps(detector.transform(X) if maps is None else maps)  # transform warns of images it could not read
    covered_box = None
    if image_sizes is None and hasattr(X, "image_sizes"):
        image_sizes, covered_box = X.image_sizes(), X.covered_box
        gone = [index for index, size in enumerate(image_sizes) if size is None and not np.isnan(maps[index]).all()]
        if gone:
            warnings.warn(
                f"{len(gone)} of {len(maps)} images were scored, but then their sizes could not be read, the first is "
                f"X[{gone[0]}]: they have None in place of a list of defects",
                SkippedImagesWarning,
                stacklevel=4,
            )
    elif hasattr(X, "covered_box"):
        covered_box = X.covered_box
    maxima = detector.calibration_maxima_
    threshold, region = detector.map_threshold_, detector.map_region_
    return list(_find(maps, threshold, min_area, merge_distance, image_sizes, covered_box, region, maxima, 2))


def label_regions(marked: NDArray[np.bool_], connectivity: int = 2) -> tuple[NDArray[np.int32], int]:
    """Return the number (from 1 on) of the region of each marked pixel (h, w), and the number of regions."""
    if connectivity not in (1, 2):
        raise ValueError(f"connectivity={connectivity!r} must be 1 (four neighbours) or 2 (eight neighbours).")
    return ndimage.label(marked, ndimage.generate_binary_structure(2, connectivity))


@dataclass(frozen=True)
class _Patches:
    """The patches of a defect, and the pixels that they cover."""

    inside: NDArray[np.bool_]  # (r, c), which patches of the box belong to the defect
    rows: NDArray[np.int64]  # (2, r), first pixel and the one after the last, of each row of patches, within the box
    columns: NDArray[np.int64]  # (2, c), the same of columns

    @property
    def overlap(self) -> bool:
        """Whether several patches share a pixel: the image is smaller than its map."""
        return any((first[1:] < last[:-1]).any() for first, last in (self.rows, self.columns))

    def painted(self) -> NDArray[np.bool_]:
        """Return the pixels (height, width) of the box that belong to the defect."""
        (top, bottom), (left, right) = self.rows, self.columns
        if not self.overlap:
            return self.inside.repeat(bottom - top, axis=0).repeat(right - left, axis=1)
        mask = np.zeros((int(bottom.max()), int(right.max())), dtype=bool)
        row, column = np.nonzero(self.inside)
        mask[top[row], left[column]] = True
        return mask


def _find(
    values: NDArray[Any],
    threshold: float,
    min_area: float,
    merge_distance: float,
    image_sizes: Any,
    covered_box: Callable[[Size], Box] | None,
    region: ArrayLike | None,
    normal_maxima: ArrayLike | None,
    connectivity: int,
) -> Iterator[list[Defect] | None]:
    if np.isnan(threshold):
        raise ValueError(f"threshold={threshold} is no number: pass map_threshold_ of the detector")
    for name, value in (("min_area", min_area), ("merge_distance", merge_distance)):
        if not 0 <= value < np.inf:
            raise ValueError(f"{name}={value} must be a number of pixels, 0 or more")
    if connectivity not in (1, 2):
        raise ValueError(f"connectivity={connectivity!r} must be 1 (four neighbours) or 2 (eight neighbours).")
    sizes = _sizes(image_sizes, len(values), (values.shape[1], values.shape[2]))
    if region is not None:
        region = np.asarray(region, dtype=bool)
        if region.shape != values.shape[1:]:
            raise ValueError(f"region has shape {region.shape}, and maps have {values.shape[1:]}: pass region_")
    maxima = None if normal_maxima is None else np.sort(np.asarray(normal_maxima, dtype=np.float64), axis=None)
    for index, (anomaly_map, size) in enumerate(zip(values, sizes, strict=True)):
        unknown = np.isnan(anomaly_map)
        if unknown.all() or size is None:
            yield None
            continue
        if unknown.any():
            raise ValueError(f"maps[{index}] is NaN in {unknown.sum()} of {unknown.size} places: a map is whole or NaN")
        marked = above(anomaly_map, threshold)
        marked = marked if region is None else marked & region
        box = (0.0, 0.0, float(size[0]), float(size[1])) if covered_box is None else covered_box(size)
        labels, n_regions = label_regions(marked, connectivity)
        if merge_distance > 0 and n_regions > 1:
            pitch = box[2] / marked.shape[0], box[3] / marked.shape[1]
            labels, n_regions = merge_near(labels, n_regions, pitch, merge_distance)
        defects = list(_measured(anomaly_map, labels, n_regions, box, size, maxima))
        defects = [defect for defect in defects if defect.area >= min_area]
        yield sorted(defects, key=lambda defect: -defect.max_value)


def _measured(
    anomaly_map: NDArray[Any], labels: NDArray[Any], n_regions: int, box: Box, size: Size, maxima: NDArray[Any] | None
) -> Iterator[Defect]:
    if not n_regions:
        return
    rows, columns = (
        _pixels_of(start, length, n_patches, side)
        for start, length, n_patches, side in zip(box[:2], box[2:], labels.shape, size, strict=True)
    )
    numbers = np.arange(1, n_regions + 1)
    largest = ndimage.maximum(anomaly_map, labels, numbers)
    means = ndimage.mean(anomaly_map.astype(np.float64), labels, numbers)
    for number, place in enumerate(ndimage.find_objects(labels)):
        (top, bottom), (left, right) = part_rows, part_columns = rows[:, place[0]], columns[:, place[1]]
        corner = np.array([[top[0]], [left[0]]])
        patches = _Patches(labels[place] == number + 1, part_rows - corner[0], part_columns - corner[1])
        mask = patches.painted()
        value = float(largest[number])
        p_value = None
        if maxima is not None:
            n_as_large = len(maxima) - np.searchsorted(maxima, value, side="left")
            p_value = float((1 + n_as_large) / (1 + len(maxima)))
        in_rows, in_columns = mask.sum(axis=1), mask.sum(axis=0)
        area = int(in_rows.sum())
        yield Defect(
            (int(top[0]), int(left[0]), int(bottom[-1] - top[0]), int(right[-1] - left[0])),
            area,
            (
                float(top[0] + in_rows @ np.arange(len(in_rows)) / area),
                float(left[0] + in_columns @ np.arange(len(in_columns)) / area),
            ),
            value,
            float(means[number]),
            p_value,
            patches,
        )


def _pixels_of(start: float, length: float, n_patches: int, side: int) -> NDArray[np.int64]:
    """Return the first pixel of each patch along one side of an image and the one after its last: (2, n_patches)."""
    # The centre of pixel i is i + 0.5. Rounding errors must not move an edge that lies on a centre.
    edges = np.ceil(np.round(start + np.arange(n_patches + 1) * (length / n_patches) - 0.5, 6)).astype(np.int64)
    first = edges[:-1].clip(0, side - 1)
    return np.stack([first, np.maximum(edges[1:].clip(0, side), first + 1)])


def _as_maps(maps: Any) -> NDArray[Any]:
    """Return maps (n, h, w) of a floating dtype that numpy has, with the same values."""
    values = as_real_array(maps, "maps")
    if values.ndim != 3 or 0 in values.shape[1:]:
        raise ValueError(f"maps has shape {values.shape}, expected (n, h, w): use maps[None] for one map")
    return values if values.dtype.kind == "f" else values.astype(np.float64)


def _sizes(image_sizes: Any, n_images: int, grid: Size) -> list[Size | None]:
    if image_sizes is None:
        return [grid] * n_images
    given = list(image_sizes)
    if len(given) == 2 and all(np.ndim(side) == 0 and side is not None for side in given):
        given = [tuple(given)] * n_images
    if len(given) != n_images:
        raise ValueError(
            f"image_sizes has {len(given)} sizes for {n_images} maps: give one for each, or one (height, width)"
        )
    sizes: list[Size | None] = []
    for index, size in enumerate(given):
        if size is None:
            sizes.append(None)
            continue
        if np.shape(size) != (2,) or any(int(side) != side or side < 1 for side in size):
            raise ValueError(
                f"image_sizes[{index}]={size!r} is no size: give (height, width), two integers of at least 1"
            )
        sizes.append((int(size[0]), int(size[1])))
    return sizes
