"""Leading rows of a stack of matrices: the one decomposition of an update or a merge.

Every solver takes `blocks`, a list of tensors (P, n_i, m) that together are the rows of W (P, n, m). With
W = V diag(s) U^T, it writes the leading rows of diag(s) U^T to `out` (P, k, m). These are unnormalised principal
directions, largest first. Their Gram matrix is the best rank-k approximation of W^T W (paper, Eq. 4-6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ipca_sklearn.linalg.eigh import EIGENSOLVERS, choose_eigensolver

# Takes symmetric matrices (P, n, n), whose lower triangle alone is defined, and k. Returns the k largest eigenvalues
# (P, k), descending, and their eigenvectors as rows (P, k, n).
Decomposition = Callable[[Tensor, int], tuple[Tensor, Tensor]]

SOLVERS = ("auto", "gram_eigh", "gram_svd", "svd")
SVD_DRIVERS = ("gesvd", "gesvdj", "gesvda")


@dataclass(frozen=True)
class Solver:
    """A routine `write_leading_rows(blocks, out)`, and how many patches one call should take at least."""

    write_leading_rows: Callable[[Sequence[Tensor], Tensor], None]
    group: int = 1


def _by_gram(blocks: Sequence[Tensor], out: Tensor, decompose: Decomposition) -> None:
    """Decompose the Gram matrix of the shorter side of W (paper, Sec. 3.3).

    On a GPU, W is not formed. On a CPU, a chunk of W stays in the cache, and one product is faster than several.
    """
    if blocks[0].device.type == "cpu":
        blocks = [torch.cat(list(blocks), dim=1)]
    heights = [block.shape[1] for block in blocks]
    n_features = blocks[0].shape[2]
    if sum(heights) > n_features:
        scatter = torch.bmm(blocks[0].mT, blocks[0])
        for block in blocks[1:]:
            scatter.baddbmm_(block.mT, block)
        values, vectors = decompose(scatter, out.shape[1])
        torch.mul(vectors, values[..., None].clamp_min(0).sqrt(), out=out)
        return
    gram = blocks[0].new_empty(blocks[0].shape[0], sum(heights), sum(heights))
    edges = [sum(heights[:i]) for i in range(len(heights) + 1)]
    for i, lower in enumerate(blocks):
        for j, left in enumerate(blocks[: i + 1]):
            gram[:, edges[i] : edges[i + 1], edges[j] : edges[j + 1]] = torch.bmm(lower, left.mT)
    rotation = decompose(gram, out.shape[1])[1]
    torch.bmm(rotation[..., : heights[0]], blocks[0], out=out)
    for i, block in enumerate(blocks[1:], start=1):
        out.baddbmm_(rotation[..., edges[i] : edges[i + 1]], block)


def _svd_of_gram(gram: Tensor, n_vectors: int, driver: str | None) -> tuple[Tensor, Tensor]:
    gram = gram.tril() + gram.tril(-1).mT
    vectors, values, _ = torch.linalg.svd(gram, full_matrices=False, driver=driver)
    return values[:, :n_vectors], vectors[..., :n_vectors].mT.contiguous()


def _by_svd(blocks: Sequence[Tensor], out: Tensor, driver: str | None) -> None:
    _, values, right = torch.linalg.svd(torch.cat(list(blocks), dim=1), full_matrices=False, driver=driver)
    torch.mul(right[:, : out.shape[1]], values[:, : out.shape[1], None], out=out)


def get_solver(name: str, driver: str | None, like: Tensor, size: int) -> Solver:
    """Return a solver for W of P x n x m, where `like` is (P, m) and `size` is the shorter of n and m.

    `update` describes the names. `"svd"` forms W, the others do not on a GPU.

    Raises
    ------
    ValueError
        `name` is unknown, or `driver` is given where torch has no choice of driver: on a CPU, or for a solver without
        an SVD.
    """
    if name not in SOLVERS:
        raise ValueError(f"solver={name!r} is unknown; use one of {', '.join(map(repr, SOLVERS))}")
    device = like.device
    if driver is not None and name not in ("svd", "gram_svd"):
        raise ValueError(f"svd_driver={driver!r} has no effect with solver={name!r}; use solver='svd' or 'gram_svd'")
    if driver is not None and device.type != "cuda":
        raise ValueError(f"svd_driver={driver!r} chooses a cuSOLVER routine and the data is on {device}; use None")
    if name == "svd":
        return Solver(partial(_by_svd, driver=driver))
    if name == "gram_svd":
        return Solver(partial(_by_gram, decompose=partial(_svd_of_gram, driver=driver)))
    eigensolver = EIGENSOLVERS["torch"]
    if name == "auto":
        eigensolver = choose_eigensolver(device, like.dtype, size, like.shape[0])
    return Solver(partial(_by_gram, decompose=eigensolver.solve), group=eigensolver.group)
