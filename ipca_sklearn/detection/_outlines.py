"""Masks of regions as polygons."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def outlines_of(
    inside: NDArray[np.bool_], rows: NDArray[np.int64], columns: NDArray[np.int64], corner: tuple[int, int]
) -> list[NDArray[np.int64]]:
    """Return a polygon (n, 2) of x and y for each part of a grid that hangs together by edges.

    Labelling tools have polygons without holes: a slit, there and back, leads to each hole. `rows` and `columns` are
    where the patches begin, and where the last one ends, in pixels; the row and column of `corner` are added to all
    points.
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
    """Return the polygons around a mask that hangs together by edges and around its holes, that of the mask first.

    Points are x and y of corners. The mask lies to the right of each polygon.
    """
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
