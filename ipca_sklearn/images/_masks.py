"""One reader of masks: which pixels of a mask, whatever its form, are marked.

A pixel is marked where it is not zero. The one exception are masks with smoothed edges, whose edges would grow: they
are cut at half. What does not tell background from defect is refused; nothing that is marked is dropped in silence.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from ipca_sklearn._utils._messages import first_few, name_of
from ipca_sklearn._utils._proportions import same_proportions
from ipca_sklearn._utils._typing import Image as ImageLike
from ipca_sklearn._utils._typing import Size
from ipca_sklearn.exceptions import ImageReadError, MaskWarning
from ipca_sklearn.images._formats import (
    MAX_PIXELS,
    check_opened,
    count_pages,
    open_image,
    undecodable,
    upright,
)

# Compression as of JPEG leaves small values within its blocks of 8 x 8.
_BLOCK, _NOISE = 8, 8
# From here on a lone spot beside a larger value is no noise.
_FAINT = 64
_HALF = 127


class Mask(NamedTuple):
    """Which pixels (H, W) of a mask are marked, and whether spots fainter than half have been dropped."""

    marked: NDArray[np.bool_]
    drops_spots: bool


def read_mask(mask: ImageLike, name: str, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Return a mask as a bool tensor (H, W) on the CPU, True where it marks something.

    Marked is what is not zero, in any channel: True, 1, 2, 255, any colour but black. A mask with smoothed edges is cut
    at half (marked is more than 127 of 255): it has values on both sides of half, and those below lie along larger ones
    and nowhere fill 3 x 3 pixels evenly. A MaskWarning says so if a spot is dropped by that. Transparent pixels are not
    marked. Of a palette the index counts, 0 is not marked. Arrays hold bool, any integers, or floats: whole numbers, or
    from 0 to 1.

    An ImageReadError says that it is no mask, or that background and defect cannot be told apart: no pixel is 0; a
    palette whose colours contradict its indices; what is marked is transparent; classes in a JPEG; several pages;
    16-bit colours.
    """
    ((_, read, _),) = read_masks([mask], name, max_pixels)
    return torch.from_numpy(read)


def read_masks(
    masks: Sequence[ImageLike | None], names: str = "masks[{}]", max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[int, NDArray[np.bool_], str]]:
    """Yield for each mask that is there its position, what `read_mask` returns, and its name; one warning for all."""
    given = [(index, mask) for index, mask in enumerate(masks) if mask is not None]
    faint = []
    for index, mask in given:
        name = name_of(mask, names.format(index))
        read = _read(mask, name, max_pixels)
        if read.drops_spots:
            faint.append(name)
        yield index, read.marked, name
    if faint:
        warnings.warn(
            f"{len(faint)} of {len(given)} masks have smoothed edges, and spots that are nowhere above half "
            f"({first_few(faint)}): these spots are not marked. Pass mask > 0 if they are defects",
            MaskWarning,
            stacklevel=4,
        )


def check_proportions(size: Size, name: str, image_size: Size, image_name: str = "") -> None:
    """Raise a ValueError if a mask of this height and width cannot be that of an image."""
    if same_proportions(size, image_size):
        return
    turned = " It fits if it is turned by 90 degrees." if same_proportions(size[::-1], image_size) else ""
    raise ValueError(
        f"{name} has shape {tuple(size)}, its image {tuple(image_size)}{image_name and f' ({image_name})'}: a mask "
        f"lies over the whole upright image and has its proportions.{turned} Draw or export it from the upright image; "
        "the EXIF orientation of both is applied"
    )


def _read(mask: Any, name: str, max_pixels: int) -> Mask:
    if isinstance(mask, Image.Image):
        check_opened(mask, name, max_pixels)
        return _from_pil(mask, name)
    if isinstance(mask, (str, os.PathLike)):
        with open_image(mask, max_pixels) as image:
            return _from_pil(image, name)
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu()
        values = (mask.float() if mask.is_floating_point() else mask).numpy()
        values = np.moveaxis(values, 0, -1) if values.ndim == 3 else values
    elif isinstance(mask, np.ndarray):
        values = mask
    else:
        raise ImageReadError(f"{name} is a {type(mask).__name__}; a mask is a path, a PIL image, an array or a tensor")
    return _from_values(values, name, tuple(mask.shape))


def _from_pil(image: Image.Image, name: str) -> Mask:
    pages = count_pages(image)
    if pages > 1:
        raise ImageReadError(f"{name} has {pages} pages or frames; a mask has one. Store the right one as a PNG")
    if _loses_bits(image):
        raise ImageReadError(
            f"{name} has colours of 16 bits, of which Pillow reads the upper half only; store the mask in 8 bits"
        )
    lossy = image.format == "JPEG"
    try:
        image.load()
        image = upright(image)
        has_palette = image.mode in ("P", "PA") and bool(image.getpalette())
        if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;") or (image.mode == "P" and not has_palette):
            values = np.asarray(image.convert("RGBA") if image.has_transparency_data else image)
        else:
            values = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
        indices = np.asarray(image) if has_palette else None
    except Exception as error:  # decoders raise SyntaxError, struct.error, MemoryError, ... on corrupt files
        raise undecodable(name, error) from error
    if indices is not None:
        marked = (indices if indices.ndim == 2 else indices[..., 0]) > 0
        _check_palette(marked, values, name)
        if (values[..., :3].max(2) != values[..., :3].min(2)).any():
            return Mask(marked, False)
    if image.mode == "I" and 255 < values.max(initial=0) <= 65535 and values.min() >= 0:
        values = values.astype(np.uint16)
    return _from_values(values, name, values.shape, lossy)


def _loses_bits(image: Image.Image) -> bool:
    """Whether Pillow reads 8 of the 16 bits of an image's colours."""
    if image.mode not in ("RGB", "RGBA", "RGBX", "LA", "CMYK"):
        return False
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if ";16" in str(arguments[0]) or (tile[0] == "ppm" and int(arguments[-1]) > 255):
            return True
    return False


def _check_palette(marked: NDArray[np.bool_], colours: NDArray[np.uint8], name: str) -> None:
    """Raise an ImageReadError where index and colour do not say the same: index 0 is black or transparent."""
    black = colours[..., :3].max(2) == 0
    if colours.shape[2] == 4:
        black |= colours[..., 3] == 0
    if (marked == black).any():
        what = "index 0 has a colour" if (~marked & ~black).any() else "an index above 0 is black or transparent"
        raise ImageReadError(
            f"{name} has a palette in which {what}: by index and by colour, other pixels are marked. Store it as a "
            "grey image with 0 where there is no defect"
        )


def _from_values(values: NDArray[Any], name: str, shape: tuple[int, ...], lossy: bool = False) -> Mask:
    """Return a mask from an array (H, W) or (H, W, C); `shape` is what messages call its shape."""
    if values.ndim not in (2, 3) or 0 in values.shape or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)):
        raise ImageReadError(
            f"{name} has shape {shape}; a mask has height and width, and 1, 3 or 4 channels if any (the last axis of "
            "arrays, the first of tensors)"
        )
    if values.dtype == bool:
        return Mask(_one_channel(values.astype(np.float32) * 255, name) > 0, False)
    scaled = _one_channel(_to_255(values, name), name)
    return _marked(scaled, name, lossy)


def _to_255(values: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Return values on a scale to 255, none of them rounded to zero."""
    if values.dtype.kind not in "iuf":
        raise ImageReadError(f"{name} has dtype {values.dtype}; a mask holds bool, integers or floats")
    low, high = values.min(), values.max()
    if not (low >= 0 and np.isfinite(high)):
        raise ImageReadError(
            f"{name} has values from {low:g} to {high:g}; a mask has no negative ones and no NaN. 0 is not marked"
        )
    if values.dtype.kind == "f" and not (values == np.floor(values)).all():
        if high > 1:
            raise ImageReadError(
                f"{name} has values from {low:g} to {high:g} that are no whole numbers; floats of a mask are from 0 "
                "to 1, or whole"
            )
        # The smallest floats must not become 0 in float32.
        smallest = (values > 0).astype(np.float32) * np.float32(1e-30)
        return np.maximum(values.astype(np.float32) * np.float32(255), smallest).astype(np.float32)
    if values.dtype == np.uint16 and high > 255:
        return values.astype(np.float32) / np.float32(257)
    return np.minimum(values, 255).astype(np.float32)


def _one_channel(values: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Return the largest channel, less where it is transparent."""
    if values.ndim == 2:
        return values
    if values.shape[2] < 4:
        return values.max(2)
    colour, alpha = values[..., :3].max(2), values[..., 3]
    coloured, visible = colour > 0, alpha > 0
    if not visible.all() and not (coloured & visible).any() and (coloured.any() or visible.any()):
        what = "all that is not black is transparent" if coloured.any() else "it is black on transparent"
        raise ImageReadError(
            f"{name} has an alpha channel, and {what}: nothing would be marked. Store it without alpha, 0 where there "
            "is no defect"
        )
    shown = np.maximum(colour * (alpha / 255), 1e-30)
    return np.where(coloured & visible, shown, 0).astype(np.float32)


def _marked(values: NDArray[np.float32], name: str, lossy: bool) -> Mask:
    """Return what is marked of values from 0 to 255; see `read_mask`."""
    low, high = float(values.min()), float(values.max())
    strong = values > _HALF
    soft = (values > 0) & ~strong
    if not soft.any():
        _check_background(low, high, name)
        return Mask(strong, False)
    if strong.any():
        distance = ndimage.distance_transform_cdt(~strong, "chessboard")
        if not _has_classes(values, soft, distance, lossy):
            return Mask(strong, _has_spots(values, strong, distance))
    if lossy:
        raise ImageReadError(
            f"{name} is a JPEG with areas of values below half of 255, which may be classes or noise of the "
            "compression; store masks as PNG, with 0 where there is no defect"
        )
    _check_background(low, high, name)
    return Mask(values > 0, False)


def _has_classes(
    values: NDArray[np.float32], soft: NDArray[np.bool_], distance: NDArray[np.int32], lossy: bool
) -> bool:
    """Whether values below half are classes, and not the smoothed edges of larger ones or noise of compression."""
    levels = np.unique(values[values > 0])
    certain = soft & ((values >= _NOISE * (1 + lossy)) | (distance > _BLOCK))
    if not lossy and (levels > _HALF).sum() == 1:  # smoothing and noise change the larger values too
        certain = soft
    flat = ndimage.maximum_filter(values, 3) == ndimage.minimum_filter(values, 3)
    if (flat & certain).any():
        return True
    return not lossy and levels.size <= 3 and bool((certain & (distance > 1)).any())


def _has_spots(values: NDArray[np.float32], strong: NDArray[np.bool_], distance: NDArray[np.int32]) -> bool:
    """Whether a mask with smoothed edges has spots without a value above half that are not noise of compression."""
    spots, n_spots = ndimage.label(values > 0, np.ones((3, 3)))
    lost, near, bright = (np.zeros(n_spots + 1, dtype=bool) for _ in range(3))
    lost[1:] = True
    lost[spots[strong]] = False
    near[spots[distance <= _BLOCK]] = True
    bright[spots[values >= _FAINT]] = True
    return bool((lost & (bright | ~near)).any())


def _check_background(low: float, high: float, name: str) -> None:
    """Raise an ImageReadError if different values, none of them 0, do not tell what is not marked."""
    if 0 < low < high and low < 256 - 2 * 16:  # all white, with some noise, is marked everywhere
        raise ImageReadError(
            f"{name} has no pixel of value 0, but different values (from {low:.3g} to {high:.3g} of 255): everything "
            "would be marked. Set to 0 what is no defect"
        )
