"""How a large picture is divided into tiles: equal in size, overlapping, on the strides of the network."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ipca_sklearn._utils._typing import Size
from ipca_sklearn.features._geometry import as_size
from ipca_sklearn.features.backbones._networks import sides_of

# Of `tile_overlap="auto"`: with half of that, features differ three times as much from the whole picture's (`seams` of
# benchmarks.tiles measures that).
_STRIDES_OF_OVERLAP = 4


@dataclass(frozen=True)
class Tiling:
    """Tiles of `inner` pixels; the network sees `context` more at each side, mirrored at the picture's edges."""

    inner: Size  # height and width of the part of a tile that is kept, multiples of the strides of the network
    context: int  # half of the overlap
    picture: Size  # height and width of the inspected part
    # first inner rows and columns of the tiles; the last ones are moved back to where the picture ends, on the
    # strides
    starts: tuple[tuple[int, ...], tuple[int, ...]]

    @classmethod
    def of(cls, extractor: Any, picture: Size) -> Tiling | None:
        """Return the tiling of an extractor with parameters; None without `tile_size`."""
        if extractor.tile_size is None:
            return None
        multiple, only = sides_of(extractor.backbone, extractor.weights)
        size = as_size(extractor.tile_size, "tile_size")
        assert size is not None
        if only is not None:
            multiple = int(extractor.backbone.rpartition("_")[2])
            if size != only:
                raise ValueError(
                    f"backbone {extractor.backbone!r} takes {only[0]} x {only[1]} pixels only: set tile_size={only[0]}"
                )
        auto = isinstance(extractor.tile_overlap, str)
        overlap = _STRIDES_OF_OVERLAP * multiple if auto else int(extractor.tile_overlap)
        _check(extractor, size, overlap, multiple)
        axes = [
            _along(length, side - overlap, multiple, fixed=only is not None)
            for length, side in zip(picture, size, strict=True)
        ]
        if all(len(starts) == 1 for _, starts in axes):
            warnings.warn(
                f"tile_size={extractor.tile_size} holds the whole picture of {picture[0]} x {picture[1]} pixels: it is "
                "taken as one tile",
                UserWarning,
                stacklevel=5,
            )
        (height, rows), (width, columns) = axes
        return cls((height, width), overlap // 2, picture, (rows, columns))

    @property
    def size(self) -> Size:
        """Height and width of what the network takes."""
        return self.inner[0] + 2 * self.context, self.inner[1] + 2 * self.context

    def on_patches(self, finest: Size, grid_size: Size | None, *, fixed: bool) -> tuple[Tiling, Size]:
        """Return the tiling of a picture, cut (unless `fixed`) to whole patches, and the rows and columns of these."""
        wanted = grid_size or (None, None)
        patch = [
            whole / n if n else side / count
            for whole, n, side, count in zip(self.picture, wanted, self.size, finest, strict=True)
        ]
        if any(inner % side for inner, side in zip(self.inner, patch, strict=True)):
            what = "the largest map of the network" if grid_size is None else f"grid_size={grid_size}"
            raise ValueError(
                f"{what} gives patches of {patch[0]:g} x {patch[1]:g} pixels, which do not divide the {self.inner[0]} "
                f"x {self.inner[1]} pixels of a tile evenly; set grid_size so that patches have 4, 8 or 16 pixels"
            )
        height, width = (int(whole // side * side) for whole, side in zip(self.picture, patch, strict=True))
        if fixed and (height, width) != self.picture:
            raise ValueError(
                f"crop_size={self.picture} holds no whole number of patches of {patch[0]:g} x {patch[1]:g} pixels; "
                f"take {(height, width)}"
            )
        rows, columns = (  # without a last tile that has nothing left to keep
            tuple(start for number, start in enumerate(starts) if number * inner < length)
            for starts, inner, length in zip(self.starts, self.inner, (height, width), strict=True)
        )
        filled = replace(self, picture=(height, width), starts=(rows, columns))
        return filled, (int(height / patch[0]), int(width / patch[1]))

    def kept(self, axis: int, number: int) -> slice:
        """Return which pixels along an axis are kept of a tile: those that no tile before it has."""
        first = number * self.inner[axis]
        return slice(first, min(first + self.inner[axis], self.picture[axis]))

    def patches(self, axis: int, number: int, side: int) -> slice:
        """Return which patches of the picture, of so many pixels along an axis, are kept of a tile."""
        kept = self.kept(axis, number)
        return slice(kept.start // side, kept.stop // side)

    def within(self, axis: int, number: int, side: int) -> slice:
        """Return which of its own patches are kept of a tile."""
        kept, start = self.kept(axis, number), self.starts[axis][number]
        return slice((kept.start - start) // side, (kept.stop - start) // side)

    def pixels(self, axis: int, number: int, device: torch.device) -> Tensor:
        """Return which pixels along an axis a tile shows the network, mirrored at the edges of the picture."""
        first, last = self.starts[axis][number] - self.context, self.picture[axis] - 1
        seen = torch.arange(first, first + self.size[axis], device=device).abs() % max(2 * last, 1)
        return torch.where(seen > last, 2 * last - seen, seen)


def _check(extractor: Any, size: Size, overlap: int, multiple: int) -> None:
    if overlap >= min(size):
        is_auto = extractor.tile_overlap == "auto"
        lower = max(1, min(size) // 2 // multiple) * multiple
        remedy = f"take tile_overlap={lower} or larger tiles" if lower < min(size) else "take larger tiles"
        raise ValueError(
            f"tile_overlap={extractor.tile_overlap}{f', here {overlap} pixels,' if is_auto else ''} leaves nothing of "
            f"tiles of {size[0]} x {size[1]} pixels: {remedy} (tile_size)"
        )
    if overlap % 2 or any(side % multiple for side in (*size, overlap)):
        sides = sorted({max(2, round(side / multiple)) * multiple for side in size})
        nearest = ", ".join(map(str, sides))
        raise ValueError(
            f"tile_size={extractor.tile_size} with tile_overlap={overlap}: tiles lie on the strides of the network, so "
            f"both are multiples of {max(multiple, 2)}; take {nearest} and {round(overlap / multiple) * multiple}"
        )
    if extractor.margin != "auto":
        raise ValueError(
            f"margin={extractor.margin}: with tile_size the margin is half of tile_overlap; leave it at 'auto'"
        )
    if extractor.n_augmented:
        raise ValueError(
            f"n_augmented={extractor.n_augmented}: copies are of whole pictures, which tile_size is to avoid; set it "
            "to 0, or augment the training images themselves"
        )


def _along(length: int, inner: int, multiple: int, *, fixed: bool) -> tuple[int, tuple[int, ...]]:
    """Return the inner side of tiles along an axis, evened out unless it is fixed, and where they start."""
    if not fixed:
        inner = math.ceil(length / math.ceil(length / inner) / multiple) * multiple
    last = max(0, math.ceil((length - inner) / multiple) * multiple)
    return inner, tuple(min(number * inner, last) for number in range(math.ceil(length / inner)))
