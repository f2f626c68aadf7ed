"""Distances of a few samples from many small Gaussians on a CPU, one Gaussian after the other (numba).

A batched matrix product takes some microseconds for each matrix, however few samples it is applied to, and torch makes
two of them and as many temporaries. Here the rows of a Gaussian are read from memory once, for the projection and the
residual of all samples. Four rows go through a loop together, which spares loads of the sample.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from torch import Tensor

_jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})


@_jit
def _project(rows, sample, projected):
    """Compute `projected = rows @ sample`."""
    n_rows, n_features = rows.shape
    together = n_rows - n_rows % 4
    for r in range(0, together, 4):
        first, second, third, fourth = rows[r], rows[r + 1], rows[r + 2], rows[r + 3]
        a = b = c = d = sample.dtype.type(0)
        for j in range(n_features):
            a += first[j] * sample[j]
            b += second[j] * sample[j]
            c += third[j] * sample[j]
            d += fourth[j] * sample[j]
        projected[r], projected[r + 1], projected[r + 2], projected[r + 3] = a, b, c, d
    for r in range(together, n_rows):
        a = sample.dtype.type(0)
        for j in range(n_features):
            a += rows[r, j] * sample[j]
        projected[r] = a


@_jit
def _subtract(rows, weights, sample):
    """Compute `sample -= rows.T @ weights`."""
    n_rows, n_features = rows.shape
    together = n_rows - n_rows % 4
    for r in range(0, together, 4):
        first, second, third, fourth = rows[r], rows[r + 1], rows[r + 2], rows[r + 3]
        a, b, c, d = weights[r], weights[r + 1], weights[r + 2], weights[r + 3]
        for j in range(n_features):
            sample[j] -= a * first[j] + b * second[j] + c * third[j] + d * fourth[j]
    for r in range(together, n_rows):
        for j in range(n_features):
            sample[j] -= weights[r] * rows[r, j]


@_jit
def _scaled_square(values, factors):
    total = values.dtype.type(0)
    for j in range(len(values)):
        value = values[j] * factors[j]
        total += value * value
    return total


@_jit
def _distances(samples, mean, rows, transform, scale, precision, distances):
    n_samples, n_gaussians, n_features = samples.shape
    n_rows = rows.shape[1]
    centred = np.empty(n_features, samples.dtype)
    projected = np.empty(n_rows, samples.dtype)
    combined = projected if transform is None else np.empty(transform.shape[1], samples.dtype)
    for p in range(n_gaussians):
        for i in range(n_samples):
            for j in range(n_features):
                centred[j] = samples[i, p, j] - mean[p, j]
            _project(rows[p], centred, projected)
            if transform is not None:
                _project(transform[p], projected, combined)
            total = samples.dtype.type(0)
            if scale is not None:
                total = _scaled_square(combined, scale[p])
            if precision is not None:
                if transform is not None:
                    projected[:] = 0
                    for k in range(len(combined)):
                        for r in range(n_rows):
                            projected[r] += combined[k] * transform[p, k, r]
                _subtract(rows[p], projected, centred)
                total += _scaled_square(centred, precision[p])
            distances[i, p] = math.sqrt(total)


def distances_of_chunk(
    samples: Tensor,
    mean: Tensor,
    rows: Tensor,
    transform: Tensor | None,
    scale: Tensor | None,
    precision: Tensor | None,
) -> Tensor:
    """Return the distances (n, P) of samples (n, P, m) from P Gaussians, on the CPU.

    Parameters
    ----------
    samples, mean, rows : Tensor
        As in `DistanceOperator`, of one dtype.
    transform, scale, precision : Tensor or None
        As in `DistanceOperator`.

    Notes
    -----
    A result depends on neither the number of samples nor that of Gaussians.
    """
    n_samples, n_gaussians, n_features = samples.shape
    n_components = rows.shape[1] if transform is None else transform.shape[1]
    if scale is not None:
        scale = scale.expand(n_gaussians, n_components)
    if precision is not None:
        precision = precision.expand(n_gaussians, n_features)
    distances = samples.new_empty(n_samples, n_gaussians)
    # One memory layout: numba compiles the loops for each that it meets.
    arrays = (
        None if tensor is None else tensor.detach().contiguous().numpy()
        for tensor in (samples, mean, rows, transform, scale, precision, distances)
    )
    _distances(*arrays)
    return distances
