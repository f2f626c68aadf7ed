"""Matrices that a fast routine fails on: each is solved alone, in float64, by LAPACK.

A routine fails on a matrix if it raises or returns NaN. LAPACK too fails now and then: the `ssyevd` in torch 2.15's
wheels returns NaN for some matrices of small integers whose spectrum falls below the smallest float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

# Takes symmetric matrices (P, n, n), whose lower triangle alone is defined, and k. Returns the k largest eigenvalues
# (P, k), descending, and their eigenvectors as rows (P, k, n).
Decomposition = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def solve_failures_alone(gram: Tensor, values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return what was found for `gram`; where that is NaN it is solved alone, unless its numbers are infinite."""
    failed = failures(values, vectors)
    for index in failed:
        largest, leading = _solve_alone(gram[index], values.shape[1])
        values[index], vectors[index] = largest.to(values), leading.to(vectors)
    if failed and not torch.isfinite(values).all():
        raise torch.linalg.LinAlgError("the largest eigenvalue of a matrix overflows")
    return values, vectors


def failures(values: Tensor, vectors: Tensor) -> list[int]:
    """Return the matrices whose values (P, k) or vectors (P, k, n) are not finite."""
    failed = ~torch.isfinite(vectors.sum((1, 2)) + values.sum(1))  # NaN and infinity survive a sum
    return failed.nonzero()[:, 0].tolist() if failed.any() else []


def one_at_a_time(
    solve: Callable[[Tensor], tuple[Tensor, Tensor]], matrices: Tensor, n_values: int
) -> tuple[Tensor, Tensor]:
    """Return the values (P, k) and vectors that `solve`, which has raised for all, gives for each alone, or NaN."""
    values = matrices.new_full((len(matrices), n_values), torch.nan)
    vectors = matrices.new_full((len(matrices), n_values, matrices.shape[2]), torch.nan)
    for index in range(len(matrices)):
        with suppress(torch.linalg.LinAlgError):
            values[index], vectors[index] = solve(matrices[index])
    return values, vectors


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
    for routine in routines:
        try:
            result = [part if isinstance(part, Tensor) else torch.from_numpy(part) for part in routine()]
        except (torch.linalg.LinAlgError, np.linalg.LinAlgError):
            continue
        if all(bool(torch.isfinite(part).all()) for part in result):
            return result[0], result[1]
    raise RuntimeError("no routine of LAPACK decomposes a finite matrix; please report this with your data")
