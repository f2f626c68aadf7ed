"""Regions of a grid: those that lie near each other as one, and masks as polygons."""

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
    between the nearest edges of two regions: 0 is a common edge or corner. Numbers keep the order of the regions.
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
    _, first, inverse = np.unique(roots[1:], return_index=True, return_inverse=True)
    numbers = np.argsort(np.argsort(first))[inverse] + 1
    return np.append(0, numbers).astype(np.int32)[labels], n_left


def _offsets(reach: list[int], pitch: tuple[float, float], distance: float) -> list[tuple[int, int]]:
    """Return the steps to half of the patches with at most this gap to a patch, the nearest first."""
    found = []
    for down in range(reach[0] + 1):
        for right in range(-reach[1], reach[1] + 1):
            gap = hypot(max(0, down - 1) * pitch[0], max(0, abs(right) - 1) * pitch[1])
            if (down, right) > (0, 0) and gap <= distance * (1 + 1e-9):
                found.append((gap, down, right))
    return [(down, right) for _, down, right in sorted(found)]


def outlines_of(
    inside: NDArray[np.bool_], rows: NDArray[np.int64], columns: NDArray[np.int64], corner: tuple[int, int]
) -> list[NDArray[np.int64]]:
    """Return a polygon (n, 2) of x and y for each part of a grid that hangs together by edges; a slit leads to holes.

    `rows` and `columns` are where the patches begin, and where the last one ends, in pixels from `corner`.
    """
    labels, n_parts = ndimage.label(inside)
    polygons = []
    for number, place in zip(range(1, n_parts + 1), ndimage.find_objects(labels), strict=True):
        polygon, *holes = traced(labels[place] == number)
        for hole in holes:
            polygon = _joined(polygon, hole)
        x, y = columns[place[1].start :][polygon[:, 0]], rows[place[0].start :][polygon[:, 1]]
        polygons.append(np.stack([x + corner[1], y + corner[0]], axis=1))
    return polygons


def traced(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Return the polygons (x, y of corners) with a connected mask to their right: that around it, then its holes."""
    padded = np.pad(mask, 1).astype(np.int8)
    # Each side of a pixel between inside and outside is a step from one corner to the next.
    down, across = np.diff(padded, axis=0)[:, 1:-1], np.diff(padded, axis=1)[1:-1]
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for change, forward, (dx, dy) in ((down, 1, (1, 0)), (across, -1, (0, 1))):
        for y, x in np.argwhere(change == forward).tolist():
            steps.setdefault((x, y), []).append((dx, dy))
        for y, x in np.argwhere(change == -forward).tolist():
            steps.setdefault((x + dx, y + dy), []).append((-dx, -dy))
    polygons = []
    while steps:
        start = at = next(iter(steps))
        came: tuple[int, int] | None = None
        points = []
        while at in steps:
            ways = steps[at]
            # Where two parts touch, turn right: round the same part.
            way = ways[0] if came is None or len(ways) == 1 else (-came[1], came[0])
            ways.remove(way)
            if not ways:
                del steps[at]
            if way != came:
                points.append(at)
            at, came = (at[0] + way[0], at[1] + way[1]), way
            if at == start and (at not in steps or (-came[1], came[0]) not in steps[at]):
                break
        polygons.append(np.array(points))
    return polygons


def _joined(polygon: NDArray[np.int64], hole: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a polygon that leads to a hole by the shortest way between two corners, round it and back."""
    lengths = ((polygon[:, None] - hole[None]) ** 2).sum(2)
    here, there = np.unravel_index(lengths.argmin(), lengths.shape)
    return np.concatenate([polygon[: here + 1], hole[there:], hole[: there + 1], polygon[here:]])
