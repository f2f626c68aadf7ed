"""Scatter matrices in few bytes: a diagonal, and correlations of 20 bits.

Half of a symmetric matrix in float32 takes 4 bytes for each pair of features. Correlations lie in [-1, 1], where 20
bits are steps of 2e-6: as fine as what float32 leaves of a sum over thousands of samples. What is decomposed is the
rounded matrix, so a model that was stored and read again gives the same bits.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# Correlations are whole multiples of 1 / _LARGEST, stored with _LARGEST added.
_LARGEST = 2**19 - 1


def share_of_rounding(n_features: int, dtype: torch.dtype) -> float:
    """Return the largest eigenvalue that is nothing but rounding, as a share of the largest one of m x m."""
    # Independent errors of size e in a symmetric matrix have a spectral norm of about 2 e sqrt(m).
    error = 0.5 / _LARGEST if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
    return 2 * error * math.sqrt(n_features)


def _levels(matrix: Tensor, deviations: Tensor) -> Tensor:
    """Return correlations as whole numbers; 0 where a feature never varied."""
    inverse = torch.where(deviations > 0, 1 / deviations, 0) * math.sqrt(_LARGEST)
    levels = matrix * inverse[:, :, None]
    return levels.mul_(inverse[:, None]).round_().clamp_(-_LARGEST, _LARGEST)


def _scattered(levels: Tensor, deviations: Tensor) -> Tensor:
    scaled = deviations / math.sqrt(_LARGEST)
    return levels.mul_(scaled[:, :, None]).mul_(scaled[:, None])


def rounded(matrix: Tensor) -> Tensor:
    """Return scatter matrices as `unpack(*pack(matrix))` gives them, but for the upper triangles; float64 as it is."""
    if matrix.dtype != torch.float32:
        return matrix
    diagonal = matrix.diagonal(dim1=1, dim2=2).clamp_min(0)
    deviations = diagonal.sqrt()
    result = _scattered(_levels(matrix, deviations), deviations)
    result.diagonal(dim1=1, dim2=2).copy_(diagonal)
    return result


def pack(matrix: Tensor) -> dict[str, np.ndarray]:
    """Return the lower triangles of scatter matrices (P, m, m) as arrays that take little room.

    Parameters
    ----------
    matrix : Tensor of shape (P, m, m)
        On any device.

    Returns
    -------
    dict of str to ndarray
        float32: `diagonal` (P, m), and 20 bits for each correlation below it: `low` (the lower 16) and `high` (the
        upper 4, two in a byte). Other dtypes: `lower`, the triangle as it is.
    """
    n_features = matrix.shape[1]
    matrix = matrix.detach().cpu()
    if matrix.dtype != torch.float32:
        rows, columns = np.tril_indices(n_features)
        return {"lower": matrix.numpy()[:, rows, columns]}
    diagonal = matrix.diagonal(dim1=1, dim2=2).clamp_min(0)
    rows, columns = torch.tril_indices(n_features, n_features, -1, device="cpu")
    levels = _levels(matrix, diagonal.sqrt())[:, rows, columns].to(torch.int32).add_(_LARGEST).numpy().ravel()
    high = (levels >> 16).astype(np.uint8)
    if len(high) % 2:
        high = np.append(high, np.uint8(0))
    return {
        "diagonal": diagonal.numpy(),
        "low": (levels & 0xFFFF).astype(np.uint16),
        "high": high[::2] | (high[1::2] << 4),
    }


def unpack(n_features: int, arrays: dict[str, np.ndarray]) -> Tensor:
    """Return the matrices (P, m, m) of `pack`: the bits of the lower triangles, and above them the same to rounding."""
    if "lower" in arrays:
        lower = np.asarray(arrays["lower"])
        rows, columns = np.tril_indices(n_features)
        matrix = np.empty((len(lower), n_features, n_features), lower.dtype)
        matrix[:, rows, columns] = lower
        matrix[:, columns, rows] = lower
        return torch.from_numpy(matrix)
    diagonal = torch.from_numpy(np.array(arrays["diagonal"]))
    low, packed = np.asarray(arrays["low"]), np.asarray(arrays["high"])
    high = np.empty(2 * len(packed), np.int32)
    high[::2], high[1::2] = packed & 15, packed >> 4
    levels = ((high[: len(low)] << 16) | low) - _LARGEST
    below = np.tri(n_features, k=-1, dtype=bool)
    triangles = np.zeros((len(diagonal), n_features, n_features), np.float32)
    for matrix, values in zip(triangles, levels.reshape(len(diagonal), -1), strict=True):  # each in the cache
        matrix[below] = values
        matrix += matrix.T
    scattered = torch.from_numpy(triangles)
    scattered = _scattered(scattered, diagonal.sqrt())
    scattered.diagonal(dim1=1, dim2=2).copy_(diagonal)
    return scattered
