"""Cells: the neighbouring patches that share a Gaussian, also of pictures that come band by band."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ipca_sklearn import linalg
from ipca_sklearn.decomposition._banded import BandedStep
from ipca_sklearn.decomposition._base import BasePCA
from ipca_sklearn.decomposition._batched_ipca import BatchedIncrementalPCA, will_keep_scatter
from ipca_sklearn.decomposition._batches import StepReader
from ipca_sklearn.decomposition._fitted import Fitted
from ipca_sklearn.decomposition._fitted_scatter import FittedCovariance, FittedExactPCA
from ipca_sklearn.linalg import GroupedSamples

# Rectangles that fill the grid are taken if they are at least this share of the cells asked for, ...
_LEAST_CELLS = 0.75
# ... and their sides differ by no more than this factor.
_LONGEST = 2


def partition(patch_shape: tuple[int, ...], region: np.ndarray | None, n_cells: int) -> np.ndarray:
    """Divide the inspected patches into at most `n_cells` cells of neighbours; others have the cell -1.

    Equal rectangles, where they fill the grid. Otherwise a part of the grid is halved across its longer side, and its
    halves again, until each is a cell: the cells then have the same number of patches, or one more.
    """
    rectangle = _rectangle(patch_shape, n_cells) if region is None and len(patch_shape) == 2 else None
    if rectangle is not None:
        (height, width), (n_rows, n_columns) = rectangle, patch_shape
        of_row, of_column = np.arange(n_rows) // height, np.arange(n_columns) // width
        return (of_row[:, None] * (n_columns // width) + of_column).astype(np.int32)
    inside = np.ones(patch_shape, bool) if region is None else region
    parts, cells = [(np.argwhere(inside), n_cells)], []
    while parts:
        part, count = parts.pop()
        if count == 1:
            cells.append(part)
        else:
            parts.extend(_halves(part, count))
    cells.sort(key=lambda part: tuple(part[0]))
    labels = np.full(patch_shape, -1, np.int32)
    for cell, part in enumerate(cells):
        labels[tuple(part.T)] = cell
    return labels


def _rectangle(grid: tuple[int, ...], n_cells: int) -> tuple[int, int] | None:
    """Return the sides of the smallest rectangle that fills a grid with at most `n_cells`, not far fewer; or None."""
    n_rows, n_columns = grid
    found = []
    for height in range(1, n_rows + 1):
        for width in range(1, n_columns + 1) if n_rows % height == 0 else ():
            count = n_rows * n_columns / (height * width)
            if n_columns % width == 0 and _LEAST_CELLS * n_cells <= count <= n_cells:
                found.append((height * width, max(height / width, width / height), height, width))
    _, longest, height, width = min(found, default=(0, np.inf, 0, 0))
    return (height, width) if longest <= _LONGEST or n_cells == 1 else None


def _halves(part: np.ndarray, n_cells: int) -> list[tuple[np.ndarray, int]]:
    """Cut patches (p, d), sorted row by row, across their longer side; return each half with its number of cells."""
    axis = int(np.argmax(np.ptp(part, axis=0)))  # of equal sides the first: rows
    along = part[np.argsort(part[:, axis], kind="stable")]
    least, n_larger = divmod(len(part), n_cells)
    first = n_cells // 2
    edge = least * first + n_larger * first // n_cells
    halves = (along[:edge], first), (along[edge:], n_cells - first)
    return [(half[np.lexsort(half.T[::-1])], count) for half, count in halves]


@dataclass(frozen=True, eq=False)
class Cells:
    """The patches of each cell; one with a patch fewer than others learns from its nearest neighbour, too."""

    slots: Tensor  # (C, s), patches that each cell learns from, numbers among those inspected
    place: Tensor  # (P,), where each patch is among the C * s slots: the Gaussian that scores it

    @property
    def size(self) -> int:
        """Patches of a cell, s."""
        return self.slots.shape[1]

    @classmethod
    def of(cls, labels: np.ndarray | None) -> Cells | None:
        """Return the cells of `partition`; None, a Gaussian for each patch, stays None."""
        return None if labels is None else _cells_of(labels.tobytes(), labels.shape)

    def to(self, device: torch.device) -> Cells:
        """Return the cells on a device."""
        return self if self.slots.device == device else Cells(self.slots.to(device), self.place.to(device))

    def samples(self, step: Tensor) -> GroupedSamples:
        """Return what each cell sees of a step (b, P, m): b * s samples, image by image."""
        return GroupedSamples(step, self.to(step.device).slots)

    def reader(self, steps: StepReader) -> StepReader:
        """Return the description of X as the Gaussians see it: one position for each cell."""
        return replace(steps, patch_shape=(len(self.slots),), region=None)

    def on_patches(self, values: Tensor) -> Tensor:
        """Return values (b * s, C) of the samples of cells as values (b, P) of the patches."""
        n_cells = values.shape[1]
        by_cell = values.mT.reshape(n_cells, -1, self.size).transpose(0, 1)
        return by_cell.reshape(len(values) // self.size, -1)[:, self.place.to(values.device)]


@lru_cache(maxsize=16)
def _cells_of(content: bytes, shape: tuple[int, ...]) -> Cells:
    labels = np.frombuffer(content, np.int32).reshape(shape)
    positions = np.argwhere(labels >= 0)
    of_patch = labels[labels >= 0]
    order = np.argsort(of_patch, kind="stable")
    counts = np.bincount(of_patch)
    size = counts.max()
    slots = np.empty((len(counts), size), np.int64)
    place = np.empty(len(of_patch), np.int64)
    for cell, patches in enumerate(np.split(order, np.cumsum(counts)[:-1])):
        place[patches] = cell * size + np.arange(len(patches))
        if len(patches) < size:  # by one
            distances = ((positions - positions[patches].mean(0)) ** 2).sum(1)
            distances[patches] = np.inf
            patches = np.append(patches, distances.argmin())
        slots[cell] = patches
    return Cells(torch.from_numpy(slots), torch.from_numpy(place))


def in_bands(steps: StepReader, pca: BasePCA, start: Fitted | None, group: int) -> StepReader:
    """Return a reader by bands, if there are some and they can be learnt: by scatter matrices of cells."""
    if start is not None:
        return steps.in_bands(group > 1 and isinstance(start, (FittedExactPCA, FittedCovariance)))
    if not isinstance(pca, BatchedIncrementalPCA):
        return steps.in_bands(group > 1)
    return steps.in_bands(group > 1 and will_keep_scatter(pca, steps.n_samples, steps.n_features, group))


class BandedCellSamples:
    """A step of large pictures as samples (b * s, C, m) of cells, which come in parts: some cells of one picture."""

    def __init__(self, step: BandedStep, cells: Cells) -> None:
        self._step = step
        self._cells = cells.to(step.device)
        self.dtype, self.device = step.dtype, step.device
        n_cells, size = cells.slots.shape
        self.shape = (len(step) * size, n_cells, step.shape[2])

    def to(self, device: torch.device) -> BandedCellSamples:
        """Return the samples; they are learnt where they are computed."""
        return self

    def parts(self) -> Iterator[Iterator[tuple[slice, linalg.GroupedSamples]]]:
        """Yield for each picture its parts: consecutive cells, and their samples (s, c, m)."""
        return (_parts(bands, self._cells) for bands in self._step.bands())


def _parts(bands: Iterable[Tensor], cells: Cells) -> Iterator[tuple[slice, linalg.GroupedSamples]]:
    slots = cells.slots.cpu().numpy()
    complete = np.maximum.accumulate(slots.max(1))  # the patch with which a cell and those before it are complete
    needed = np.minimum.accumulate(slots.min(1)[::-1])[::-1]  # the first patch of a cell and those after it
    start, n_read, done = 0, 0, 0
    kept: Tensor | None = None  # patches from `start` on
    for band in bands:
        n_read += len(band)
        kept = band if kept is None else torch.cat([kept, band])
        ready = int(np.searchsorted(complete, n_read))
        if ready == done:
            continue
        some = Cells(cells.slots[done:ready] - start, cells.place)
        yield slice(done, ready), some.samples(kept[None])
        done = ready
        first = int(needed[done]) if done < len(slots) else n_read
        kept = kept[first - start :].clone() if first < n_read else None
        start = first


def banded_distances(operator: linalg.DistanceOperator, step: BandedStep, cells: Cells) -> Tensor:
    """Return the distances (b, P) of the patches of large pictures from the Gaussians of their cells."""
    maps = []
    for parts in BandedCellSamples(step, cells).parts():
        of_cells = [linalg.patch_distances(operator[some], samples) for some, samples in parts]
        maps.append(cells.on_patches(torch.cat(of_cells, 1)))
    return torch.cat(maps)
