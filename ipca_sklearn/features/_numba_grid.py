"""Maps of a layer to the grid on a CPU, in one pass (numba).

A row of the matrices that resize has three or four weights that are not 0, where a matrix product multiplies with all.
"""

from __future__ import annotations

import numba
import numpy as np

_jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})


def band(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what is not 0 of the rows of a matrix (H, h): the first column of each, and its values, at least three."""
    filled = np.pad(matrix, ((0, 0), (0, max(0, 3 - matrix.shape[1]))))
    used = filled != 0
    first, stop = used.argmax(1), filled.shape[1] - used[:, ::-1].argmax(1)
    width = max(3, int((stop - first).max()))
    first = np.minimum(first, filled.shape[1] - width)
    return first, np.take_along_axis(filled, first[:, None] + np.arange(width), 1)


@_jit
def write_maps(maps, first_rows, row_weights, first_columns, column_weights, out):
    """Write maps (n, h, w, C) on the grid (n, H, W, C)."""
    n_images, n_rows, n_columns, n_channels = maps.shape
    # Columns beyond the last one have no weight (`band`), and rows beyond it are not read.
    line = np.zeros(max(n_columns, 3) * n_channels, maps.dtype)
    length = n_columns * n_channels
    for i in range(n_images):
        rows = maps[i].reshape(n_rows, length)
        for y in range(out.shape[1]):
            at, weights = first_rows[y], row_weights[y]
            a, b, c = weights[0], weights[1], weights[2]
            p, q, r = rows[at], rows[min(at + 1, n_rows - 1)], rows[min(at + 2, n_rows - 1)]
            for j in range(length):
                line[j] = a * p[j] + b * q[j] + c * r[j]
            for k in range(3, len(weights)):
                a, p = weights[k], rows[at + k]
                for j in range(length):
                    line[j] += a * p[j]
            for x in range(out.shape[2]):
                start, weights = first_columns[x] * n_channels, column_weights[x]
                a, b, c = weights[0], weights[1], weights[2]
                p, q = line[start : start + n_channels], line[start + n_channels : start + 2 * n_channels]
                r, patch = line[start + 2 * n_channels : start + 3 * n_channels], out[i, y, x]
                for j in range(n_channels):
                    patch[j] = a * p[j] + b * q[j] + c * r[j]
                for k in range(3, len(weights)):
                    a, p = weights[k], line[start + k * n_channels : start + (k + 1) * n_channels]
                    for j in range(n_channels):
                        patch[j] += a * p[j]
