"""Parts that do not lie alike: images are turned and moved to where the mean training image lies, and maps back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipca_sklearn._utils._digests import content, hex_digest
from ipca_sklearn._utils._typing import Size
from ipca_sklearn.features._registration import FINE, Floats, Pose, Search, correlation, moved, shrunk
from ipca_sklearn.images._resize import sampled, to_unit_floats

ALIGNMENTS = ("translation", "rigid")
# Images of the fit that the mean image, and what of it is seen in all of them, come from.
N_REFERENCE_IMAGES = 16
_ROUNDS = 2
# Images that are tried as the first reference, as one of them may show no part.
_STARTS = 4
# An alignment has failed if the image is less like the mean image than this, or than this share of the median of those
# images; a part that was found has a correlation of 0.78 to 1 (docs/dev_notes.md).
_LEAST_QUALITY, _LEAST_SHARE = 0.5, 0.6


class Placement(NamedTuple):
    """Where the part lies in a resized image."""

    pose: Pose  # in pixels of the resized image; that of an image whose alignment failed moves nothing
    quality: float  # correlation of the image, where it was brought to, and the mean image
    aligned: bool  # False: the alignment failed, and the image was left as it was


UNREADABLE = Placement(Pose(), float("nan"), False)


def alignment_table(placements: Sequence[Placement]) -> NDArray[Any]:
    """Return placements as an array with the fields angle (degrees), down, right, quality and aligned."""
    fields = [*((name, "f8") for name in ("angle", "down", "right", "quality")), ("aligned", "?")]
    rows = [(np.degrees(pose.angle), pose.down, pose.right, quality, found) for pose, quality, found in placements]
    return np.array(rows, dtype=fields)


@dataclass(frozen=True, eq=False)
class Aligner:
    """Finds parts in images, and brings them to where the mean training image has them."""

    reference: Floats  # (h, w), the mean training image, grey, of at most 128 pixels on the longer side
    rigid: bool  # whether images are turned, too
    limit: float  # smaller qualities are failures

    def place(self, image: Tensor) -> Placement:
        """Find the part in a resized image (3, H, W)."""
        picture = grey(image)
        rows, columns = (side / small for side, small in zip(image.shape[-2:], picture.shape, strict=True))
        pose, quality, before = self._found(picture)
        if quality < self.limit or quality < before - 0.02:
            return Placement(Pose(), before, False)
        return Placement(pose.scaled(rows, columns), quality, True)

    def _found(self, picture: Floats) -> tuple[Pose, float, float]:
        """Return the pose of a picture, and its correlation with the reference after and before it is moved."""
        pose = _search(self.reference.tobytes(), self.reference.shape, self.rigid).pose(picture)
        return pose, correlation(moved(picture, pose), self.reference), correlation(picture, self.reference)

    def digest(self) -> str:
        """Return a digest of all that the placement of an image depends on."""
        return hex_digest(content(self.reference), f"{self.rigid} {self.limit}".encode())


@lru_cache(4)
def _search(reference: bytes, shape: Size, rigid: bool) -> Search:
    return Search(np.frombuffer(reference, np.float32).reshape(shape), rigid)


def learn_aligner(pictures: Sequence[Floats], rigid: bool) -> Aligner:
    """Return what aligns images to the mean of pictures (`grey`) brought to where the first, or a better one, lies."""
    best, most = None, -1
    for start in pictures[:_STARTS]:
        aligner, n_found = _learn_from(start, pictures, rigid)
        if best is None or n_found > most:
            best, most = aligner, n_found
        if most > len(pictures) // 2:
            break
    assert best is not None
    return best


def _learn_from(start: Floats, pictures: Sequence[Floats], rigid: bool) -> tuple[Aligner, int]:
    """Return what aligns images to the mean of pictures brought to where `start` lies, and how many it finds."""
    # The plain mean of parts at any angle shows none: it is the mean of those that were found from the second round on.
    reference = start
    for _ in range(_ROUNDS):
        finder = Aligner(reference, rigid, 0.0)
        found = [(picture, *finder._found(picture)[:2]) for picture in pictures]
        least = _limit(quality for _, _, quality in found)
        like = [moved(picture, pose) for picture, pose, quality in found if quality >= least]
        reference = np.mean(like or [reference], axis=0, dtype=np.float32)
    final = Aligner(reference, rigid, 0.0)
    qualities = [final._found(picture)[1] for picture in pictures]
    limit = _limit(qualities)
    return Aligner(reference, rigid, limit), sum(quality >= limit for quality in qualities)


def _limit(qualities: Iterable[float]) -> float:
    return max(_LEAST_QUALITY, _LEAST_SHARE * float(np.median(list(qualities))))


def grey(image: Tensor) -> Floats:
    """Return a resized image (3, H, W) as a small grey picture, on the host."""
    return shrunk(to_unit_floats(image).mean(0, dtype=torch.float32).cpu().numpy(), FINE)


def moved_back(image: Tensor, pose: Pose) -> Tensor:
    """Return an image (3, H, W), float32 in [0, 1], with what lies in a pose where its reference has it."""
    pixels = to_unit_floats(image)
    if pose == Pose():
        return pixels
    y, x = (np.arange(side) - (side - 1) / 2 for side in image.shape[1:])
    return sampled(pixels, *pose.applied(y[:, None], x))


def seen_in_all(placements: Sequence[Placement], grid_size: Size, crop_size: Size, image_size: Size) -> NDArray[Any]:
    """Return the patches (H, W) whose middle lies within all of some images."""
    seen = np.ones(grid_size, dtype=bool)
    for placement in placements:
        rows, columns = _middles(placement.pose, grid_size, crop_size)
        seen &= (np.abs(rows) < image_size[0] / 2) & (np.abs(columns) < image_size[1] / 2)
    return seen


def _middles(pose: Pose, grid_size: Size, crop_size: Size) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where in an image, in pixels from its middle, the patches of its aligned form have their middles."""
    y, x = ((np.arange(n) - (n - 1) / 2) * (side / n) for n, side in zip(grid_size, crop_size, strict=True))
    return pose.applied(y[:, None], x)


def map_to_image(values: NDArray[Any], pose: Pose, crop_size: Size) -> NDArray[Any]:
    """Return a map (H, W) of an aligned image as a map of the image: 0 where that shows what was not inspected.

    Each place has the value of the nearest patch. A patch that is nearest to none is put where its middle lies, so that
    no value above a threshold is lost.
    """
    if pose == Pose():
        return values
    grid_size = values.shape[0], values.shape[1]

    def nearest(of: Pose) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        places = zip(_middles(of, grid_size, crop_size), grid_size, crop_size, strict=True)
        row, column = (np.rint(pixels * (n / side) + (n - 1) / 2).astype(np.int64) for pixels, n, side in places)
        return row, column, (row >= 0) & (row < grid_size[0]) & (column >= 0) & (column < grid_size[1])

    row, column, within = nearest(pose.inverted())
    placed = np.zeros_like(values)
    placed[within] = values[row[within], column[within]]
    row, column, within = nearest(pose)
    np.maximum.at(placed, (row[within], column[within]), values[within])
    return placed
