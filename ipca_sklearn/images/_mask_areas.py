"""Masks on the pixels that the network sees: a cell is marked by the area of the mask that lies in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ipca_sklearn._utils._typing import Size

_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def shrink_mask(mask: NDArray[np.bool_], size: Size) -> NDArray[np.bool_]:
    """Return a mask resized to `size` (height, width), in which each defect is still there, and in one piece.

    A cell is marked if at least half of its area is marked: the area of large defects stays what it was, which is what
    measures of pixels need. Thin and small defects reach half nowhere: a cell of which any part is marked is marked as
    well if no cell around it is marked by half, and so are all such cells of a defect that would have none. Measures of
    regions count connected cells, so where a defect has fallen apart the cells between its pieces are marked too.
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
