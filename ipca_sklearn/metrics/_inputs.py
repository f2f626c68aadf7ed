"""Scores, masks and maps, checked; pixels of maps, resized and cut to a region of interest a few images at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ipca_sklearn._utils._arrays import as_real_array
from ipca_sklearn._utils._labels import check_labels
from ipca_sklearn._utils._proportions import same_proportions
from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn._utils._typing import ArrayLike, Size
from ipca_sklearn.exceptions import AspectRatioWarning

Bools: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]
Reals: TypeAlias = NDArray[Any]

# Pixels of maps that are resized at once: 16 MiB of float32 hide the overhead per call.
_PIXELS_AT_ONCE = 2**22


@own_surroundings()
def resize_maps(maps: ArrayLike, size: Size) -> NDArray[np.float32]:
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
    values = as_real_array(maps, "maps")
    if values.ndim != 3 or 0 in values.shape[1:]:
        raise ValueError(
            f"maps has shape {values.shape}, expected (n_images, height, width): use maps[None] for one map."
        )
    if np.shape(size) != (2,) or any(int(length) != length or length < 1 for length in size):
        raise ValueError(f"size={size!r} must be two positive integers, (height, width).")
    height, width = int(size[0]), int(size[1])
    resized = np.empty((len(values), height, width), dtype=np.float32)
    for images, part in _iter_maps(values, (height, width), np.dtype(np.float32), None):
        resized[images] = part
    return resized


def check_image_scores(y_true: ArrayLike, y_score: ArrayLike) -> tuple[Bools, Reals]:
    """Return which images are normal, and finite scores; both kinds of images are there."""
    labels, scores = as_real_array(y_true, "y_true"), as_real_array(y_score, "y_score")
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(
            f"y_true has shape {labels.shape} and y_score {scores.shape}: both must be 1-d, one entry per image."
        )
    labels = check_labels(labels, "y_true")
    found = np.unique(labels)
    if found.size < 2:
        raise ValueError(f"y_true holds only {found}: the measure needs both normal (+1) and anomalous (-1) images.")
    if not np.isfinite(scores).all():
        raise ValueError(f"y_score[{np.isfinite(scores).argmin()}] is NaN or infinite: scores must be finite.")
    return labels == 1, scores


@dataclass(frozen=True)
class Pixels:
    """Masks and maps, and which of their pixels count."""

    defects: Bools  # (n, H, W), the anomalous pixels that count
    maps: Reals  # (n, h, w), larger = more anomalous; not resized and not checked for NaN yet
    is_normal: Bools  # (n,), images without a defect, inside of the region or outside
    region: Bools | None  # (H, W), the pixels that count; None if all do
    patches: Bools | None  # (h, w), the region where it is given as patches

    @classmethod
    def of(cls, masks: ArrayLike, maps: ArrayLike, region: ArrayLike | None, name: str = "maps") -> Pixels:
        """Return the pixels of masks and maps as the measures take them; `name` is what messages call the maps."""
        defects, scores = _check_masks_and_maps(masks, maps, name)
        is_normal: Bools = ~np.any(defects, axis=(1, 2))
        if region is None:
            return cls(defects, scores, is_normal, None, None)
        inside = as_binary(as_real_array(region, "region"), "region")
        size, grid = defects.shape[1:], scores.shape[1:]
        if inside.shape not in (size, grid):
            raise ValueError(
                f"region has shape {inside.shape}: it must have that of a mask, {size}, or that of a map, {grid}."
            )
        if not inside.any():
            raise ValueError(f"region of shape {inside.shape} is false everywhere: there is no pixel to score.")
        patches = inside if inside.shape != size else None
        inside = inside if patches is None else enlarge(inside[None], size)[0]
        return cls(defects & inside, scores, is_normal, inside, patches)

    def __len__(self) -> int:
        return len(self.defects)

    @property
    def n_per_image(self) -> int:
        """How many pixels of an image count."""
        return int(self.defects[0].size if self.region is None else self.region.sum())

    def only(self, images: Bools) -> Pixels:
        """Return the pixels of some of the images, in their order."""
        return replace(self, defects=self.defects[images], maps=self.maps[images], is_normal=self.is_normal[images])

    def parts(self) -> Iterator[tuple[Bools, Reals]]:
        """Yield defects and scores (b, p) of the p pixels that count, of a few images at a time.

        Smaller maps are resized: from the patches of the region alone, with weights that sum to 1.
        """
        size = self.defects.shape[1:]
        # In the machine's byte order; another one would be converted again in every search.
        dtype = self.maps.dtype.newbyteorder("=") if self.maps.shape[1:] == size else np.dtype(np.float32)
        for images, part in _iter_maps(self.maps, size, dtype, self.patches):
            defects = self.defects[images]
            if self.region is None:
                yield defects.reshape(len(part), -1), part.reshape(len(part), -1)
            else:
                yield defects[:, self.region], part[:, self.region]

    def marked(self) -> Iterator[tuple[Bools, Bools]]:
        """Yield the defects of each image, and what its map, which is binary, marks of the pixels that count."""
        for defects, patches in zip(self.defects, self.maps, strict=True):
            marked = enlarge(patches[None], defects.shape)[0]
            yield defects, marked if self.region is None else marked & self.region

    def split(self) -> tuple[Reals, Reals]:
        """Return the sorted scores of normal pixels, and the scores of anomalous pixels in the order of the masks."""
        n_pixels = len(self) * self.n_per_image
        n_anomalous = np.count_nonzero(self.defects)
        if n_anomalous in (0, n_pixels):
            raise ValueError(
                f"masks of shape {self.defects.shape} have no {'normal' if n_anomalous else 'anomalous'} pixel"
                f"{'' if self.region is None else ' inside of the region'}: the score needs both; evaluate images with "
                "and without defects together."
            )
        normal = anomalous = np.empty(0)
        n_seen = n_found = 0
        for defects, scores in self.parts():
            if n_seen == 0:
                normal = np.empty(n_pixels - n_anomalous, scores.dtype)
                anomalous = np.empty(n_anomalous, scores.dtype)
            found, rest = scores[defects], scores[~defects]
            n_rest = n_seen - n_found
            anomalous[n_found : n_found + found.size] = found
            normal[n_rest : n_rest + rest.size] = rest
            n_seen += scores.size
            n_found += found.size
        normal.sort()  # sorting those alone that matter, found by a partition, was slower
        return normal, anomalous


def enlarge(values: Reals, size: Size) -> Reals:
    """Return values (n, h, w) of patches as pixels (n, H, W): a pixel takes the patch in which its centre lies."""
    rows, columns = (
        ((np.arange(side) + 0.5) * n_patches / side).astype(np.intp)
        for side, n_patches in zip(size, values.shape[1:], strict=True)
    )
    return values[:, rows][:, :, columns]


def as_binary(values: Reals, name: str) -> Bools:
    """Return masks as bool: from bool, 0/1, or 0/255 in uint8."""
    if values.dtype == bool:
        return values
    marked = values == (255 if values.dtype == np.uint8 and values.max(initial=0) == 255 else 1)
    if np.count_nonzero(marked) + np.count_nonzero(values == 0) != values.size:
        raise ValueError(
            f"{name} of dtype {values.dtype} with values from {values.min()} to {values.max()} are not binary: use "
            f"bool, 0/1, or 0/255 in uint8 ({name} > 0 if every other value is marked)."
        )
    return marked


def _check_masks_and_maps(masks: ArrayLike, maps: ArrayLike, name: str) -> tuple[Bools, Reals]:
    labels, scores = as_real_array(masks, "masks"), as_real_array(maps, name)
    if labels.ndim != 3 or scores.ndim != 3 or len(labels) != len(scores):
        raise ValueError(
            f"masks has shape {labels.shape} and {name} {scores.shape}: both must be (n_images, height, width) "
            f"with the same n_images; use masks[None] and {name}[None] for one image, masks[:, 0] to drop a channel."
        )
    if 0 in labels.shape or 0 in scores.shape:
        raise ValueError(f"masks has shape {labels.shape} and {name} {scores.shape}: there is no pixel to score.")
    if scores.shape[1] > labels.shape[1] or scores.shape[2] > labels.shape[2]:
        raise ValueError(
            f"{name} of {scores.shape[1:]} are larger than masks of {labels.shape[1:]}: bring both to one size first, "
            "masks with `transform_masks` of the extractor, maps with `resize_maps`."
        )
    size, grid = (labels.shape[1], labels.shape[2]), (scores.shape[1], scores.shape[2])
    if not same_proportions(grid, size):
        if same_proportions(grid[::-1], size):
            raise ValueError(
                f"masks of shape {size} are turned by 90 degrees against {name} of {grid}: turn them as the images are."
            )
        warnings.warn(
            f"masks of shape {size} have other proportions than {name} of {grid}, which are stretched to them: that "
            "is right only if both cover the same part of the images",
            AspectRatioWarning,
            stacklevel=4,
        )
    return as_binary(labels, "masks"), scores


def _iter_maps(maps: Reals, size: Size, dtype: np.dtype[Any], patches: Bools | None) -> Iterator[tuple[slice, Reals]]:
    """Yield slices of images with their maps, checked, cast, and resized, from `patches` (h, w) alone if given."""
    n_images = max(1, _PIXELS_AT_ONCE // (size[0] * size[1]))
    weights = None if patches is None else np.maximum(_resized(patches[None].astype(dtype), size), 1e-6)
    for start in range(0, len(maps), n_images):
        images = slice(start, start + n_images)
        with np.errstate(over="ignore"):  # an overflow is reported below
            part = maps[images].astype(dtype, copy=False)
        if patches is not None:
            part = np.where(patches, part, 0)
        finite = np.isfinite(part).all(axis=(1, 2))
        if not finite.all():
            raise ValueError(
                f"maps[{start + finite.argmin()}] holds NaN, infinity or a value beyond {dtype}: maps must be finite."
            )
        if part.shape[1:] != size:
            part = _resized(part, size)
        yield images, part if weights is None else part / weights


def _resized(maps: Reals, size: Size) -> Reals:
    tensor = torch.from_numpy(maps.copy())[:, None]  # torch takes neither read-only nor reversed arrays
    return torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=False)[:, 0].numpy()
