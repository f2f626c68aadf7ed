"""Regions of a grid that lie near each other, as one."""

from __future__ import annotations

from math import hypot

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# After so many offsets it is checked whether only one region is left.
_OFFSETS_AT_ONCE = 64


def merge_near(
    labels: NDArray[np.int32], n_regions: int, pitch: tuple[float, float], distance: float
) -> tuple[NDArray[np.int32], int]:
    """Give one number to regions with at most this distance between them, directly or by way of others.

    `labels` (h, w) are from 1 on; `pitch` is the height and the width of a patch. The distance is the largest gap
    between the nearest edges of two regions: 0 is a common edge or corner. New numbers are in the order of the first
    patches.
    """
    edge = (labels > 0) & ~ndimage.binary_erosion(labels > 0, np.ones((3, 3)))
    rows, columns = np.nonzero(edge)
    mine = labels[rows, columns]
    reach = [min(int(distance / step + 1e-9) + 1, side - 1) for step, side in zip(pitch, labels.shape, strict=True)]
    padded = np.pad(labels, [(side, side) for side in reach])
    rows, columns = rows + reach[0], columns + reach[1]
    # 32 bits: the graphs of scipy before 1.15 take no other indices.
    roots, n_left = np.arange(n_regions + 1, dtype=np.int32), n_regions
    pairs: list[NDArray[np.int32]] = []
    offsets = _offsets(reach, pitch, distance)
    for number, (down, right) in enumerate(offsets, 1):
        other = padded[rows + down, columns + right]
        apart = (other > 0) & (roots[other] != roots[mine])
        if apart.any():
            pairs.append(np.unique(np.stack([mine[apart], other[apart]]), axis=1))
        if pairs and (number % _OFFSETS_AT_ONCE == 0 or number == len(offsets)):
            start, end = np.concatenate([roots[pair] for pair in pairs], axis=1)
            graph = coo_array((np.ones(len(start)), (start, end)), shape=(len(roots), len(roots)))
            components = connected_components(graph, directed=False)[1]
            roots, pairs = components[roots], []
            n_left = len(np.unique(roots[1:]))
            if n_left == 1:
                break
    merged = roots[labels]
    merged[labels == 0] = -1
    # Numbered anew, in the order in which they come.
    _, first, inverse = np.unique(merged, return_index=True, return_inverse=True)
    order = np.argsort(first[1:] if (labels == 0).any() else first)
    numbers = np.empty(len(order), dtype=np.int32)
    numbers[order] = np.arange(1, len(order) + 1)
    if (labels == 0).any():
        numbers = np.concatenate([np.zeros(1, np.int32), numbers])
    return numbers[inverse.reshape(labels.shape)], n_left


def _offsets(reach: list[int], pitch: tuple[float, float], distance: float) -> list[tuple[int, int]]:
    """Return the steps to half of the patches with at most this gap to a patch, the nearest first."""
    found = []
    for down in range(reach[0] + 1):
        for right in range(-reach[1], reach[1] + 1):
            gap = hypot(max(0, down - 1) * pitch[0], max(0, abs(right) - 1) * pitch[1])
            if (down, right) > (0, 0) and gap <= distance * (1 + 1e-9):
                found.append((gap, down, right))
    return [(down, right) for _, down, right in sorted(found)]
