"""Masks: which pixels of a mask, whatever its form, are marked, and its cells on the pixels that the network sees.

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
from ipca_sklearn.images._deep import loses_bits
from ipca_sklearn.images._formats import MAX_PIXELS, check_opened, count_pages, open_image, undecodable, upright

# Compression as of JPEG leaves small values within its blocks of 8 x 8.
_BLOCK, _NOISE = 8, 8
# From here on a lone spot beside a larger value is no noise.
_FAINT = 64
_HALF = 127
_NEIGHBOURS = np.ones((3, 3), dtype=bool)


class Mask(NamedTuple):
    """Which pixels (H, W) of a mask are marked, and whether spots fainter than half have been dropped."""

    marked: NDArray[np.bool_]
    drops_spots: bool


def read_mask(mask: ImageLike, name: str, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Return a mask as a bool tensor (H, W) on the CPU, True where it marks something.

    Marked is what is not zero, in any channel, and not transparent; of a palette the index counts. A mask with smoothed
    edges is cut at half: it has values on both sides of half, and those below lie along larger ones and nowhere fill
    3 x 3 pixels evenly. A MaskWarning says so if a spot is dropped by that. Arrays hold bool, any integers, or floats:
    whole numbers, or from 0 to 1. An ImageReadError says that background and defect cannot be told apart.
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
    if loses_bits(image):
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
    spots, n_spots = ndimage.label(values > 0, _NEIGHBOURS)
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


def shrink_mask(mask: NDArray[np.bool_], size: Size) -> NDArray[np.bool_]:
    """Return a mask resized to `size` (height, width), in which each defect is still there, and in one piece.

    A cell is marked if at least half of its area is. Thin and small defects reach half nowhere: a cell of which any
    part is marked is marked as well if no cell around it is marked by half, and so are all such cells of a defect that
    would have none. Where a defect has fallen apart the cells between its pieces are marked too.
    """
    if mask.shape == tuple(size):
        return mask.copy()
    if not mask.any():
        return np.zeros(size, dtype=bool)
    shares = _mean_of_cells(_mean_of_cells(mask.astype(np.float64), size[0]).T, size[1]).T
    half = shares >= 0.5 - 1e-9
    cells: NDArray[np.bool_] = half | ((shares > 1e-9) & ~ndimage.binary_dilation(half, _NEIGHBOURS))
    defects, n_defects = ndimage.label(mask, _NEIGHBOURS)
    rows, columns = (
        ((np.arange(length) + 0.5) * n / length).astype(np.intp) for length, n in zip(mask.shape, size, strict=True)
    )
    kept = np.zeros(n_defects + 1, dtype=bool)
    kept[np.unique(defects[cells[np.ix_(rows, columns)]])] = True
    for y, x in zip(*np.nonzero(mask & ~kept[defects]), strict=True):
        cells[rows[y], columns[x]] = True
    (pixel_rows, cell_rows), (pixel_columns, cell_columns) = map(_overlaps, mask.shape, size)
    y, x = np.nonzero(mask[np.ix_(pixel_rows, pixel_columns)])
    of_defect = defects[pixel_rows[y], pixel_columns[x]].astype(np.int64)
    cell_y, cell_x = cell_rows[y], cell_columns[x]
    while True:
        pieces, n_pieces = ndimage.label(cells, _NEIGHBOURS)
        of_piece = pieces[cell_y, cell_x]
        pairs = np.unique((of_defect * (n_pieces + 1) + of_piece)[of_piece > 0])
        apart = np.flatnonzero(np.bincount(pairs // (n_pieces + 1)) > 1)
        if not len(apart):
            return cells
        for defect in apart:  # what is marked for one may be a cell of another, apart from its others
            touched = np.zeros_like(cells)
            touched[cell_y[of_defect == defect], cell_x[of_defect == defect]] = True
            _join_pieces(cells, touched)


def _join_pieces(cells: NDArray[np.bool_], touched: NDArray[np.bool_]) -> None:
    """Mark in place what lies between the pieces of a defect, of the connected cells that it touches.

    An unmarked cell of them has a marked one beside it (`shrink_mask`). On a way from one piece to another there are so
    one or two cells next to both, unless the marked ones belong to other defects: then all of them are marked.
    """
    while True:
        pieces, n_pieces = ndimage.label(cells & touched, _NEIGHBOURS)
        if n_pieces < 2:
            return
        between = touched & ~cells
        first = np.where(pieces > 0, pieces, n_pieces + 1)
        for _ in range(2):  # beside a piece, then beside a cell that is beside one
            first = ndimage.minimum_filter(first, 3, mode="nearest")
            pieces = ndimage.maximum_filter(pieces, 3, mode="nearest")
            first, pieces = np.where(between, first, n_pieces + 1), np.where(between, pieces, 0)
        joints = between & (first < pieces)
        cells |= joints if joints.any() else between


def _overlaps(n_pixels: int, n_cells: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return all pairs of a pixel and a cell that overlap, along one axis."""
    starts = np.union1d(np.arange(n_pixels) * n_cells, np.arange(n_cells) * n_pixels)
    return starts // n_cells, starts // n_pixels


def _mean_of_cells(values: NDArray[np.float64], n_cells: int) -> NDArray[np.float64]:
    """Return the means (n_cells, w) of n_cells equal parts of the rows of values (h, w), split rows by their share."""
    edges = np.linspace(0, len(values), n_cells + 1)
    whole = np.minimum(edges.astype(np.intp), len(values) - 1)
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    below = sums[whole] + (edges - whole)[:, None] * values[whole]
    means: NDArray[np.float64] = np.diff(below, axis=0) * (n_cells / len(values))
    return means
