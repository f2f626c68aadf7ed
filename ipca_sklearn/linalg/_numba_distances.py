"""Distances of a few samples from many small Gaussians on a CPU, one Gaussian after the other (numba).

A batched matrix product takes some microseconds for each matrix, however few samples it is applied to, and torch makes
two of them and as many temporaries. Here the rows of a Gaussian are read from memory once, for the projection and the
residual of all samples. Four rows go through a loop together, which spares loads of the sample. Of samples that come in
groups, four go through it with three rows: as many sums as the 16 registers of AVX2 hold.
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
    for j in range(len(factors)):
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


@_jit
def _project_four(rows, samples, projected, n_rows):
    """Compute `projected = samples @ rows.T` for four samples; three rows at a time, beyond `n_rows` if need be."""
    n_features = rows.shape[1]
    zero = samples.dtype.type(0)
    s0, s1, s2, s3 = samples[0], samples[1], samples[2], samples[3]
    for r in range(0, n_rows, 3):
        r0, r1, r2 = rows[r], rows[r + 1], rows[r + 2]
        a0 = a1 = a2 = b0 = b1 = b2 = c0 = c1 = c2 = d0 = d1 = d2 = zero
        for j in range(n_features):
            x, y, z = r0[j], r1[j], r2[j]
            w = s0[j]
            a0 += w * x
            a1 += w * y
            a2 += w * z
            w = s1[j]
            b0 += w * x
            b1 += w * y
            b2 += w * z
            w = s2[j]
            c0 += w * x
            c1 += w * y
            c2 += w * z
            w = s3[j]
            d0 += w * x
            d1 += w * y
            d2 += w * z
        projected[0, r], projected[0, r + 1], projected[0, r + 2] = a0, a1, a2
        projected[1, r], projected[1, r + 1], projected[1, r + 2] = b0, b1, b2
        projected[2, r], projected[2, r + 1], projected[2, r + 2] = c0, c1, c2
        projected[3, r], projected[3, r + 1], projected[3, r + 2] = d0, d1, d2


@_jit
def _subtract_four(rows, weights, samples, n_rows):
    """Compute `samples -= weights @ rows` for four samples; four rows at a time, those after `n_rows` are 0."""
    n_features = rows.shape[1]
    s0, s1, s2, s3 = samples[0], samples[1], samples[2], samples[3]
    for r in range(0, n_rows, 4):
        r0, r1, r2, r3 = rows[r], rows[r + 1], rows[r + 2], rows[r + 3]
        a0, a1, a2, a3 = weights[0, r], weights[0, r + 1], weights[0, r + 2], weights[0, r + 3]
        b0, b1, b2, b3 = weights[1, r], weights[1, r + 1], weights[1, r + 2], weights[1, r + 3]
        c0, c1, c2, c3 = weights[2, r], weights[2, r + 1], weights[2, r + 2], weights[2, r + 3]
        d0, d1, d2, d3 = weights[3, r], weights[3, r + 1], weights[3, r + 2], weights[3, r + 3]
        for j in range(n_features):
            w, x, y, z = r0[j], r1[j], r2[j], r3[j]
            s0[j] -= a0 * w + a1 * x + a2 * y + a3 * z
            s1[j] -= b0 * w + b1 * x + b2 * y + b3 * z
            s2[j] -= c0 * w + c1 * x + c2 * y + c3 * z
            s3[j] -= d0 * w + d1 * x + d2 * y + d3 * z


@_jit
def _grouped_distances(images, slots, mean, rows, scale, precision, distances):
    n_gaussians, size = slots.shape
    n_samples = distances.shape[1]
    n_rows, n_features = rows.shape[1:]
    own_rows = np.zeros((n_rows + 3, n_features), images.dtype)  # filled up with zeros, for loops of three or four rows
    centred = np.empty((4, n_features), images.dtype)
    projected = np.zeros((4, n_rows + 3), images.dtype)
    for p in range(n_gaussians):
        for r in range(n_rows):  # one after another: memory gives several rows at once at half of the speed
            row = own_rows[r]
            for j in range(n_features):
                row[j] = rows[p, r, j]
        for start in range(0, n_samples, 4):
            for i in range(4):
                image, slot = divmod(min(start + i, n_samples - 1), size)  # the last ones fill up with copies
                sample = images[image, slots[p, slot]]
                for j in range(n_features):
                    centred[i, j] = sample[j] - mean[p, j]
            _project_four(own_rows, centred, projected, n_rows)
            if precision is not None:
                _subtract_four(own_rows, projected, centred, n_rows)
            for i in range(min(4, n_samples - start)):
                total = images.dtype.type(0)
                if scale is not None:
                    total += _scaled_square(projected[i], scale[p])
                if precision is not None:
                    total += _scaled_square(centred[i], precision[p])
                distances[p, start + i] = math.sqrt(total)


def distances_of_groups(
    images: Tensor,
    slots: Tensor,
    mean: Tensor,
    rows: Tensor,
    transform: Tensor | None,
    scale: Tensor | None,
    precision: Tensor | None,
    distances: Tensor,
) -> None:
    """Write the distances (C, n * s) of `GroupedSamples`, each on its own, from C Gaussians of `DistanceOperator`."""
    if transform is not None:
        rows = transform @ rows
    n_gaussians, n_rows, n_features = rows.shape
    scale = None if scale is None else scale.expand(n_gaussians, n_rows)
    precision = None if precision is None else precision.expand(n_gaussians, n_features)
    _grouped_distances(*_contiguous(images, slots, mean, rows, scale, precision, distances))


def _contiguous(*tensors: Tensor | None) -> list[np.ndarray | None]:
    """Return arrays of one memory layout: numba compiles the loops for each that it meets."""
    return [None if tensor is None else tensor.detach().contiguous().numpy() for tensor in tensors]


def distances_of_chunk(
    samples: Tensor,
    mean: Tensor,
    rows: Tensor,
    transform: Tensor | None,
    scale: Tensor | None,
    precision: Tensor | None,
) -> Tensor:
    """Return the distances (n, P), each on its own, of samples (n, P, m) from P Gaussians of `DistanceOperator`."""
    n_samples, n_gaussians, n_features = samples.shape
    n_components = rows.shape[1] if transform is None else transform.shape[1]
    if scale is not None:
        scale = scale.expand(n_gaussians, n_components)
    if precision is not None:
        precision = precision.expand(n_gaussians, n_features)
    distances = samples.new_empty(n_samples, n_gaussians)
    _distances(*_contiguous(samples, mean, rows, transform, scale, precision, distances))
    return distances
