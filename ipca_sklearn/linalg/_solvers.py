"""Leading rows of a stack of matrices: the one decomposition that an update or a merge needs.

Every solver takes `blocks`, a list of (P, n_i, m) tensors that together are the rows of W (P, n, m), and returns the
`n_rows` leading rows of `diag(s) U^T` of each W = V diag(s) U^T: unnormalised principal directions, largest first, so
that their Gram matrix is the best rank-`n_rows` approximation of W^T W (paper, Eq. 4-6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# From a symmetric matrix, of which the lower triangle is given, to eigenvalues (descending) and eigenvectors.
Decomposition = Callable[[Tensor], tuple[Tensor, Tensor]]
Solver = Callable[[Sequence[Tensor], int, str | None], Tensor]

SVD_DRIVERS = ("gesvd", "gesvdj", "gesvda")


def _eigh_descending(gram: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(gram, UPLO="L")
    return values.flip(-1), vectors.flip(-1)


def _leading_rows_by_gram(blocks: Sequence[Tensor], n_rows: int, decompose: Decomposition) -> Tensor:
    """Return the leading rows from the Gram matrix of the shorter side of W, without forming W (paper, Sec. 3.3)."""
    heights = [block.shape[1] for block in blocks]
    n_features = blocks[0].shape[2]
    if sum(heights) > n_features:
        scatter = torch.bmm(blocks[0].mT, blocks[0])
        for block in blocks[1:]:
            scatter.baddbmm_(block.mT, block)
        values, vectors = decompose(scatter)
        return vectors[..., :n_rows].mT * values[..., :n_rows, None].clamp_min(0).sqrt()
    gram = blocks[0].new_empty(blocks[0].shape[0], sum(heights), sum(heights))
    edges = [sum(heights[:i]) for i in range(len(heights) + 1)]
    for i, lower in enumerate(blocks):
        for j, left in enumerate(blocks[: i + 1]):
            gram[:, edges[i] : edges[i + 1], edges[j] : edges[j + 1]] = torch.bmm(lower, left.mT)
    rotation = decompose(gram)[1][..., :n_rows].mT.contiguous()
    rows = torch.bmm(rotation[..., : heights[0]], blocks[0])
    for i, block in enumerate(blocks[1:], start=1):
        rows.baddbmm_(rotation[..., edges[i] : edges[i + 1]], block)
    return rows


def gram_eigh(blocks: Sequence[Tensor], n_rows: int, driver: str | None = None) -> Tensor:
    """Symmetric eigendecomposition of the Gram matrix: the fastest, resolves singular values above sqrt(eps) * s_1."""
    return _leading_rows_by_gram(blocks, n_rows, _eigh_descending)


def gram_svd(blocks: Sequence[Tensor], n_rows: int, driver: str | None = None) -> Tensor:
    """Singular value decomposition of the Gram matrix: the paper's choice (Sec. 3.3)."""

    def decompose(gram: Tensor) -> tuple[Tensor, Tensor]:
        gram = gram.tril() + gram.tril(-1).mT
        vectors, values, _ = torch.linalg.svd(gram, full_matrices=False, driver=driver)
        return values, vectors

    return _leading_rows_by_gram(blocks, n_rows, decompose)


def svd(blocks: Sequence[Tensor], n_rows: int, driver: str | None = None) -> Tensor:
    """Singular value decomposition of W itself: slowest, most accurate (the paper's unoptimised Eq. 6). Forms W."""
    _, values, right = torch.linalg.svd(torch.cat(list(blocks), dim=1), full_matrices=False, driver=driver)
    return right[:, :n_rows] * values[:, :n_rows, None]


_SOLVERS: dict[str, Solver] = {"gram_eigh": gram_eigh, "gram_svd": gram_svd, "svd": svd}
SOLVERS = ("auto", *_SOLVERS)


def get_solver(name: str, driver: str | None, device: torch.device) -> Solver:
    """Return the solver called `name`; `"auto"` is `"gram_eigh"` on every device.

    Raises
    ------
    ValueError
        If `driver` is given where torch has no choice of driver: on a CPU, or for a solver that calls no SVD.
    """
    if driver is not None and name not in ("svd", "gram_svd"):
        raise ValueError(f"svd_driver={driver!r} has no effect with solver={name!r}; use solver='svd' or 'gram_svd'")
    if driver is not None and device.type != "cuda":
        raise ValueError(f"svd_driver={driver!r} chooses a cuSOLVER routine and the data is on {device}; leave it None")
    return _SOLVERS["gram_eigh" if name == "auto" else name]
