"""Matrices that a fast routine fails on: each is solved alone, in float64, by LAPACK.

A routine fails on a matrix if it raises or returns NaN. LAPACK too fails now and then: the `ssyevd` in torch 2.15's
wheels returns NaN for some matrices of small integers whose spectrum falls below the smallest float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

# Takes symmetric matrices (P, n, n), whose lower triangle alone is defined, and k. Returns the k largest eigenvalues
# (P, k), descending, and their eigenvectors as rows (P, k, n).
Decomposition = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def solving_failures_alone(solve: Decomposition) -> Decomposition:
    """Return a routine that takes every finite matrix: those that `solve` fails on are solved alone.

    It raises :class:`torch.linalg.LinAlgError` only if a matrix holds NaN or infinity, or its eigenvalues overflow.
    """

    @wraps(solve)
    def solve_all(gram: Tensor, n_vectors: int) -> tuple[Tensor, Tensor]:
        values, vectors = marking_failures(solve, gram, n_vectors)
        # NaN and infinity survive a sum.
        failed = ~torch.isfinite(vectors.sum((1, 2)) + values.sum(1))
        if failed.any():
            for index in failed.nonzero()[:, 0].tolist():
                largest, leading = _solve_alone(gram[index], n_vectors)
                values[index], vectors[index] = largest.to(values), leading.to(vectors)
            if not torch.isfinite(values).all():
                raise torch.linalg.LinAlgError("the largest eigenvalue of a matrix overflows")
        return values, vectors

    return solve_all


def marking_failures(solve: Decomposition, matrices: Tensor, n_vectors: int) -> tuple[Tensor, Tensor]:
    """Return what `solve` returns, with NaN where it raises."""
    try:
        return solve(matrices, n_vectors)
    except torch.linalg.LinAlgError:
        if len(matrices) == 1:
            nan = matrices.new_full((1, n_vectors, matrices.shape[2]), torch.nan)
            return nan[..., 0].clone(), nan
    # It says nothing of the others. One at a time, their results do not depend on their neighbours.
    results = [marking_failures(solve, matrix, n_vectors) for matrix in matrices.split(1)]
    return torch.cat([values for values, _ in results]), torch.cat([vectors for _, vectors in results])


def _solve_alone(gram: Tensor, n_vectors: int) -> tuple[Tensor, Tensor]:
    lower, scale = _scaled(gram.tril())
    values, vectors = _first_finite(
        [
            lambda: torch.linalg.eigh(torch.from_numpy(lower), UPLO="L"),
            lambda: scipy.linalg.eigh(lower, lower=True, driver="ev"),
            lambda: scipy.linalg.eigh(lower, lower=True, driver="evr"),
        ]
    )
    return values.flip(0)[:n_vectors] * scale, vectors.flip(1)[:, :n_vectors].mT


def svd_alone(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return singular values, descending, and right singular vectors as rows of a finite matrix, in float64."""
    matrix, scale = _scaled(rows)
    values, right = _first_finite(
        [
            lambda: torch.linalg.svd(torch.from_numpy(matrix), full_matrices=False)[1:],
            lambda: scipy.linalg.svd(matrix, full_matrices=False, lapack_driver="gesvd")[1:],
        ]
    )
    return values * scale, right


def _scaled(matrix: Tensor) -> tuple[np.ndarray, float]:
    """Return a matrix in float64 with a largest entry of 1, and the factor that was taken out."""
    array = matrix.detach().cpu().double().numpy()
    scale = float(np.abs(array).max())
    if not np.isfinite(scale):
        raise torch.linalg.LinAlgError(
            "a matrix holds NaN or infinity: squares overflow, or the samples are not finite"
        )
    return array / (scale or 1.0), scale


def _first_finite(routines: Sequence[Callable[[], tuple]]) -> tuple[Tensor, Tensor]:
    """Return the first result that is finite, of routines for the same finite matrix."""
    for routine in routines:
        try:
            result = [part if isinstance(part, Tensor) else torch.from_numpy(part) for part in routine()]
        except (torch.linalg.LinAlgError, np.linalg.LinAlgError):
            continue
        if all(bool(torch.isfinite(part).all()) for part in result):
            return result[0], result[1]
    raise RuntimeError("no routine of LAPACK decomposes a finite matrix; please report this with your data")
