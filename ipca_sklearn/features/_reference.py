"""What a fit learns of parts that do not lie alike: the mean image, and the patches that are inspected around it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np

from ipca_sklearn.exceptions import AlignmentWarning, ImageReadError
from ipca_sklearn.features._alignment import N_REFERENCE_IMAGES, Placement, grey, learn_aligner, seen_in_all
from ipca_sklearn.features._foreground import foreground
from ipca_sklearn.features._lazy import PatchFeatures
from ipca_sklearn.features._loader import read_batches
from ipca_sklearn.features._settings import settings_of


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
