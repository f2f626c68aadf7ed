"""Masks on the pixels that the network sees: a cell is marked by the area of the mask that lies in it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ipca_sklearn._utils._typing import Size

_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def shrink_mask(mask: NDArray[np.bool_], size: Size) -> NDArray[np.bool_]:
    """Return a mask resized to `size` (height, width), in which each defect is still there.

    A cell is marked if at least half of its area is marked: the area of large defects stays what it was, which is what
    measures of pixels need. Thin and small defects reach half nowhere: a cell of which any part is marked is marked as
    well if no cell around it is marked by half, and so are all such cells of a defect that would have none.
    """
    if mask.shape == tuple(size):
        return mask.copy()
    if not mask.any():
        return np.zeros(size, dtype=bool)
    shares = _mean_of_cells(_mean_of_cells(mask.astype(np.float64), size[0]).T, size[1]).T
    half = shares >= 0.5 - 1e-9
    cells: NDArray[np.bool_] = half | ((shares > 1e-9) & ~ndimage.binary_dilation(half, _NEIGHBOURS))
    defects, n_defects = ndimage.label(mask, _NEIGHBOURS)
    if n_defects:
        rows, columns = (
            ((np.arange(length) + 0.5) * n / length).astype(np.intp) for length, n in zip(mask.shape, size, strict=True)
        )
        kept = np.zeros(n_defects + 1, dtype=bool)
        kept[np.unique(defects[cells[np.ix_(rows, columns)]])] = True
        for y, x in zip(*np.nonzero(mask & ~kept[defects]), strict=True):
            cells[rows[y], columns[x]] = True
    return cells


def centre_of(mask: NDArray[Any], size: Size) -> NDArray[Any]:
    """Return the part of the centre that torchvision's centre crop takes."""
    top, left = (round((whole - part) / 2) for whole, part in zip(mask.shape, size, strict=True))
    return mask[top : top + size[0], left : left + size[1]]


def _mean_of_cells(values: NDArray[np.float64], n_cells: int) -> NDArray[np.float64]:
    """Return the means (n_cells, w) of n_cells equal parts of the rows of values (h, w), split rows by their share."""
    edges = np.linspace(0, len(values), n_cells + 1)
    whole = np.minimum(edges.astype(np.intp), len(values) - 1)
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    below = sums[whole] + (edges - whole)[:, None] * values[whole]
    means: NDArray[np.float64] = np.diff(below, axis=0) * (n_cells / len(values))
    return means
