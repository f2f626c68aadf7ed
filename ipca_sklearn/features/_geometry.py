"""Which size images are resized to, which part of them is inspected, and which patches lie in a region of interest."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from sklearn.utils.validation import check_is_fitted

from ipca_sklearn._utils._messages import first_few, name_of
from ipca_sklearn._utils._proportions import is_stretched, same_proportions
from ipca_sklearn._utils._typing import Image, Images, Size
from ipca_sklearn.exceptions import AspectRatioWarning, ImageReadError
from ipca_sklearn.features.backbones._networks import sides_of, takes_patches
from ipca_sklearn.images._decode import center_crop, check_images, resize_and_crop, size_of
from ipca_sklearn.images._masks import check_proportions, read_mask, read_masks, shrink_mask

# Of `image_size="auto"`: about as many pixels as the paper's square has.
AUTO_PIXELS = 256 * 256
# Of `margin="auto"`: more changes nothing on the sets of docs/accuracy.md, and networks of stride 32 fit.
AUTO_MARGIN = 16


def as_size(value: Any, name: str) -> Size | None:
    """Return a parameter as (height, width): a positive integer is both; None is None."""
    if value is None:
        return None
    sides = (value, value) if isinstance(value, Integral) else tuple(value)
    if len(sides) != 2 or not all(isinstance(side, Integral) and int(side) >= 1 for side in sides):
        raise ValueError(f"{name}={value!r} is neither an integer nor two, (height, width), of at least 1")
    return int(sides[0]), int(sides[1])


def sizes(image_size: Any, crop_size: Any) -> tuple[Size, Size]:
    """Return `image_size` and `crop_size`, which is not larger, as (height, width) each."""
    image, crop = as_size(image_size, "image_size"), as_size(crop_size, "crop_size")
    if image is None:
        raise ValueError("image_size=None is no size; use 'auto' for the shape of the first image")
    if crop is not None and (crop[0] > image[0] or crop[1] > image[1]):
        raise ValueError(f"crop_size={crop_size} is larger than image_size={image_size}")
    return image, crop or image


def auto_size(size: Size, multiple: int = 32) -> Size:
    """Return the size for images of this height and width: their proportions, and about `AUTO_PIXELS`."""
    scale = math.sqrt(AUTO_PIXELS / math.prod(size)) / multiple
    height, width = (max(1, round(side * scale)) * multiple for side in size)
    return height, width


def covered_box(size: Size, image_size: Size, crop_size: Size) -> tuple[float, float, float, float]:
    """Return top, left, height and width of the inspected part of an image of this size, in its own pixels."""
    # torchvision's centre crop starts at the rounded half of the difference.
    (top, height), (left, width) = (
        (round((whole - part) / 2) / whole * side, part / whole * side)
        for whole, part, side in zip(image_size, crop_size, size, strict=True)
    )
    return top, left, height, width


def cut_masks(extractor: Any, masks: Sequence[Image | None], images: Images | None) -> np.ndarray:
    """Return masks as `PatchFeatureExtractor.transform_masks` does."""
    if isinstance(masks, (str, os.PathLike, PIL.Image.Image)):
        raise TypeError(f"masks is a single {type(masks).__name__}; pass a list of masks, one for each image")
    image_size, crop_size = fitted_sizes(extractor)
    checked = None if images is None else check_images(images)
    if checked is not None and len(checked) != len(masks):
        raise ValueError(f"{len(masks)} masks for {len(checked)} images; pass one for each, None if it has none")
    cut, stretched = np.zeros((len(masks), *crop_size), dtype=bool), []
    for index, marked, name in read_masks(masks, max_pixels=extractor.max_pixels):
        size = marked.shape[0], marked.shape[1]
        if checked is not None:
            _check_mask(extractor, size, name, checked[index], f"X[{index}]")
        elif is_stretched(size, getattr(extractor, "_aspect_ratio", None)):
            stretched.append(name)
        cut[index] = center_crop(shrink_mask(marked, image_size), crop_size)
    if stretched:
        warnings.warn(
            f"{len(stretched)} of {len(masks)} masks have other proportions than the images of the fit "
            f"({first_few(stretched)}) and are stretched. Pass images= to compare each with its image",
            AspectRatioWarning,
            stacklevel=3,
        )
    return cut


def _check_mask(extractor: Any, size: Size, name: str, image: Any, image_name: str) -> None:
    try:
        image_size = size_of(image, extractor.max_pixels)
    except ImageReadError:
        if extractor.on_error == "raise":
            raise
        return
    check_proportions(size, name, image_size, name_of(image, image_name))


def fitted_sizes(extractor: Any) -> tuple[Size, Size]:
    """Return the sizes of the resized image and of its inspected part; before a fit, if parameters have them."""
    if not hasattr(extractor, "image_size_") and not isinstance(extractor.image_size, str):
        return sizes(extractor.image_size, extractor.crop_size)
    check_is_fitted(extractor)
    return extractor.image_size_, extractor.crop_size_


@dataclass(frozen=True)
class Geometry:
    """How images are resized and cropped. See the parameters of `PatchFeatureExtractor`."""

    image_size: Size
    crop_size: Size
    margin: int  # mirrored pixels beyond each edge of the part of `crop_size`
    aspect_ratio: float | None  # height / width that images should have; None for any
    first: tuple[str, Size] | None  # name and size of the first image that can be read, where its size counts

    @classmethod
    def of(cls, images: Any, extractor: Any) -> Geometry:
        """Return the geometry of an extractor with parameters for these images."""
        auto = isinstance(extractor.image_size, str)
        first = None
        if auto or extractor.region is not None:
            first = first_readable(images, extractor.on_error, extractor.max_pixels)
        image_size, aspect_ratio = extractor.image_size, None
        if auto and first is not None:
            image_size, aspect_ratio = first[1], first[1][0] / first[1][1]
            if extractor.tile_size is None:
                multiple, only = sides_of(extractor.backbone, extractor.weights)
                image_size = only or auto_size(first[1], multiple)
        image_size, crop_size = sizes(image_size, extractor.crop_size)
        return cls(image_size, crop_size, _margin(extractor, crop_size), aspect_ratio, first)

    def without_margin(self, grid_size: Size) -> Size:
        """Return rows and columns of a grid over the inspected part, of those that cover its margin too."""
        height, width = (
            max(1, round(side * length / (length + 2 * self.margin)))
            for side, length in zip(grid_size, self.crop_size, strict=True)
        )
        return height, width

    def patches_inside(self, region: Image, grid_size: Size, max_pixels: int) -> np.ndarray:
        """Return the patches (H, W) of which at least half of the pixels belong to a region of interest."""
        assert self.first is not None
        name = f"region {name_of(region, '')}".rstrip()
        mask = read_mask(region, name, max_pixels)
        image, (height, width) = self.first
        if not same_proportions((mask.shape[0], mask.shape[1]), (height, width)):
            raise ValueError(
                f"{name} has {mask.shape[0]} x {mask.shape[1]} pixels, {image} has {height} x {width}: a region lies "
                "over the whole image and has its proportions; draw it on one of the images"
            )
        cut = resize_and_crop(mask[None].to(torch.float32), self.image_size, self.crop_size, "bilinear")
        inside = (F.adaptive_avg_pool2d(cut[None], grid_size)[0, 0] >= 0.5).numpy()
        if not inside.any():
            raise ValueError(
                f"{name} leaves nothing to inspect: none of the {grid_size[0]} x {grid_size[1]} patches has half of "
                "its pixels in it. White (True, anything but black) is inspected"
            )
        return inside


def _margin(extractor: Any, crop_size: Size) -> int:
    if isinstance(extractor.margin, str):
        is_whole = extractor.crop_size is None and not takes_patches(extractor.backbone)
        return min(AUTO_MARGIN, min(crop_size) // 2) if is_whole else 0
    most = min(crop_size) - 1
    if extractor.margin > most:
        raise ValueError(
            f"margin={extractor.margin} mirrors more pixels than images of {crop_size[0]} x {crop_size[1]} have; it is "
            f"{most} at most"
        )
    return int(extractor.margin)


def first_readable(images: Any, on_error: str, max_pixels: int) -> tuple[str, Size]:
    """Return name and size of the first image, or of the first that can be read where others are skipped."""
    for index, image in enumerate(images if isinstance(images, Sequence) else images[:1]):
        name = name_of(image, f"X[{index}]")
        try:
            return name, size_of(image, max_pixels)
        except ImageReadError as error:
            reason = error
            if on_error == "raise":
                raise
    raise ImageReadError(f"none of the {len(images)} images could be read, one of them because: {reason}")
