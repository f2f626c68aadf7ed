"""Eigensolvers that need torch alone: its own routine, and the CPU's threads for data on another device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ipca_sklearn.linalg._execution import for_each_chunk


def leading_eigh(gram: Tensor, n_vectors: int) -> tuple[Tensor, Tensor]:
    """Return the k largest eigenvalues (P, k), descending, and eigenvectors as rows, of the lower triangles (P, n, n).

    Where an iteration does not converge it raises a LinAlgError; some routines return NaN instead.
    """
    values, vectors = torch.linalg.eigh(gram, UPLO="L")
    return values.flip(-1)[:, :n_vectors], vectors.flip(-1)[..., :n_vectors].mT.contiguous()


def leading_eigh_on_host(
    gram: Tensor, n_vectors: int, *, solve: Callable[[Tensor, int], tuple[Tensor, Tensor]], group: int
) -> tuple[Tensor, Tensor]:
    """Solve in chunks on the CPU's threads: for devices whose own routine takes one matrix after the other.

    `solve` is the CPU's routine and `group` the number of matrices that one call of it should take at least.
    """
    matrices = gram.cpu()
    n_patches, size = gram.shape[:2]
    values = matrices.new_empty(n_patches, n_vectors)
    vectors = matrices.new_empty(n_patches, n_vectors, size)

    def task(patches: slice) -> None:
        values[patches], vectors[patches] = solve(matrices[patches], n_vectors)

    bytes_per_patch = 4 * size * size * matrices.element_size()
    for_each_chunk(task, n_patches, bytes_per_patch, matrices.device, group=group)
    return values.to(gram.device), vectors.to(gram.device)
