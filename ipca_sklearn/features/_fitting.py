"""What a `PatchFeatureExtractor` decides when it is fitted: sizes, tiles, network, grid, region, mean image."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.utils import check_random_state

from ipca_sklearn._utils._devices import resolve_device
from ipca_sklearn.exceptions import AlignmentWarning, ImageReadError
from ipca_sklearn.features import engines
from ipca_sklearn.features._alignment import N_REFERENCE_IMAGES, Placement, grey, learn_aligner, seen_in_all
from ipca_sklearn.features._augment import check_augment
from ipca_sklearn.features._geometry import Geometry, as_size
from ipca_sklearn.features._lazy import PatchFeatures
from ipca_sklearn.features._loader import read_batches
from ipca_sklearn.features._remarks import SkippedImages
from ipca_sklearn.features._settings import settings_of
from ipca_sklearn.features._tiling import Tiling
from ipca_sklearn.features.backbones._backbone import Backbone

# Patches at the edge of what is seen, which are background; and how many more than the part are inspected.
_RIM, _MARGIN = 3, 1


def make_network(extractor: Any, images: Any) -> None:
    """Set the fitted attributes of an extractor for checked images; after an error some of them may be set."""
    resolve_device(extractor.device, torch.device("cpu"))
    if extractor.pooling_size % 2 == 0:
        raise ValueError(f"pooling_size={extractor.pooling_size} is even: a neighbourhood has its patch in the middle")
    check_align(extractor)
    geometry = Geometry.of(images, extractor)
    tiling = Tiling.of(extractor, geometry.crop_size)
    check_augment(extractor.augment, extractor.n_augmented, geometry.image_size, geometry.crop_size)
    seed = int(check_random_state(extractor.random_state).randint(2**31 - 1))
    sizes = (geometry.crop_size, geometry.margin) if tiling is None else (tiling.size, 0)
    backbone = Backbone(extractor.backbone, extractor.layers, extractor.weights, seed, *sizes, extractor.layer_pooling)
    shapes = backbone.shapes_of_maps()
    finest = max((shape[1:] for shape in shapes), key=math.prod)
    grid_size = as_size(extractor.grid_size, "grid_size")
    if tiling is not None:
        tiling, grid_size = tiling.on_patches(finest, grid_size, fixed=extractor.crop_size is not None)
        geometry = replace(geometry, crop_size=tiling.picture, margin=tiling.context)
    elif grid_size is None:
        grid_size = geometry.without_margin(finest)
    region = None
    if extractor.region is not None and not wants_foreground(extractor):
        region = geometry.patches_inside(extractor.region, grid_size, extractor.max_pixels)
    extractor._mean, extractor._std = backbone.normalization(extractor.normalization)
    extractor._backbone, extractor._seed = backbone, seed
    extractor._channels, extractor._tiling = tuple(shape[0] for shape in shapes), tiling
    extractor._training_record = SkippedImages()
    extractor.layers_, extractor.tile_size_ = backbone.layers, None if tiling is None else tiling.size
    extractor.image_size_, extractor.crop_size_ = geometry.image_size, geometry.crop_size
    extractor._aspect_ratio, extractor.margin_ = geometry.aspect_ratio, geometry.margin
    extractor.grid_size_, extractor.region_ = (int(grid_size[0]), int(grid_size[1])), region
    extractor.n_features_out_ = sum(extractor._channels)
    extractor.reference_ = None
    engines.require(settings_of(extractor).of_network)
    learn_reference(extractor, images)


def wants_foreground(extractor: Any) -> bool:
    """Whether the region of interest is that of the part: `region="auto"`."""
    return isinstance(extractor.region, str) and extractor.region == "auto"


def check_align(extractor: Any) -> None:
    """Raise a ValueError for parameters that do not go with `align`, or that need it."""
    if extractor.align is None:
        if wants_foreground(extractor):
            raise ValueError(
                "region='auto' needs align='translation' or 'rigid': it is that of the part in the mean image, and "
                "moves with the part. For parts that lie alike, draw a mask and pass it as region"
            )
        return
    if extractor.tile_size is not None:
        raise ValueError(
            f"align={extractor.align!r} with tile_size={extractor.tile_size}: large pictures are not aligned; set "
            "tile_size=None or align=None"
        )


def learn_reference(extractor: Any, images: Any) -> None:
    """Set what a fitted extractor, otherwise complete, learns of the first images for `align`, and `region_`."""
    if extractor.align is None:
        return
    settings = settings_of(extractor).images
    whole = replace(settings, crop_size=settings.image_size, n_jobs=1, processes=False)
    first = np.arange(min(N_REFERENCE_IMAGES, len(images)))
    pictures, readable = [], []
    for index, batch in zip(first, read_batches(images, [first[[row]] for row in first], whole), strict=True):
        if not batch.skipped:
            pictures.append(grey(batch.images[0]))
            readable.append(index)
    if not pictures:
        raise ImageReadError(
            f"align={extractor.align!r}: none of the first {len(first)} images could be read, which the mean image is "
            "made of"
        )
    extractor._turns = extractor.align == "rigid"
    aligner = learn_aligner(pictures, extractor._turns)
    extractor.reference_, extractor._least_quality = aligner.reference, aligner.limit
    features = extractor.transform([images[index] for index in readable])
    found = features.alignment()
    n_found = int(found["aligned"].sum())
    is_lost = n_found <= len(found) // 2
    if is_lost:
        turned = "" if extractor.align == "rigid" else "; parts that are turned need align='rigid'"
        _warn(
            f"align={extractor.align!r}: the part was found in {n_found} of the first {len(found)} images only "
            f"(median correlation with the mean image {np.median(found['quality']):.2f}). Images that are alike "
            f"everywhere, such as textures, cannot be aligned, and images "
            f"that show no part should be taken out{turned}"
        )
    if extractor.region is None or wants_foreground(extractor):
        _choose_region(extractor, features, is_lost)


def _choose_region(extractor: Any, features: PatchFeatures, is_lost: bool) -> None:
    placements: list[Placement] = features._placed()
    seen = seen_in_all(placements, extractor.grid_size_, extractor.crop_size_, extractor.image_size_)
    if not seen.any():
        _warn(
            f"align={extractor.align!r}: no patch is seen in all of the first images, so all are inspected; are the "
            "images of one part?"
        )
        seen = np.ones_like(seen)
    region = seen
    if extractor.region is not None:
        reason = "the part is not known" if is_lost else "nothing differs from the background"
        found = None if is_lost else foreground(np.asarray(features), seen)
        if found is None or not found.any():
            _warn(f"region='auto': {reason}, so what all of the first images show is inspected")
        else:
            region = found
    extractor.region_ = None if region.all() else region


def _warn(text: str) -> None:
    warnings.warn(text, AlignmentWarning, stacklevel=6)


def foreground(features: NDArray[Any], seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the patches (H, W) of the part that lies alike in some images, with its holes and one patch around it.

    The first principal component of the patches that all images show (`seen`) tells the part from the background (Damm
    et al., "AnomalyDINO", WACV 2025): Otsu cuts its values in two, and most of the edge is background. The part is the
    largest connected region of what is foreground in at least half of the images, or nothing.
    """
    samples = features[:, seen].astype(np.float64)
    centred = samples - samples.mean((0, 1))
    flat = centred.reshape(-1, centred.shape[-1])
    values = centred @ np.linalg.eigh(flat.T @ flat)[1][:, -1]
    marked = np.zeros(features.shape[:3], dtype=bool)
    marked[:, seen] = values > _otsu(values.ravel())
    rim = seen & ~ndimage.binary_erosion(seen, iterations=_RIM)
    if marked[:, rim].mean() > 0.5:
        marked[:, seen] = ~marked[:, seen]
    common = marked.mean(0) >= 0.5
    labels, n_regions = ndimage.label(common)
    if not n_regions:
        return np.zeros_like(seen)
    largest = labels == 1 + int(np.bincount(labels.ravel())[1:].argmax())
    filled = ndimage.binary_fill_holes(largest)
    return ndimage.binary_dilation(filled, iterations=_MARGIN) & seen


def _otsu(values: NDArray[np.float64]) -> float:
    """Return the value that cuts values into the two classes whose means are farthest apart, for their sizes."""
    counts, edges = np.histogram(values, 256)
    middles = (edges[1:] + edges[:-1]) / 2
    share = np.cumsum(counts) / len(values)
    sums = np.cumsum(counts * middles) / len(values)
    between = (sums[-1] * share - sums) ** 2 / np.maximum(share * (1 - share), 1e-12)
    return float(middles[between.argmax()])
