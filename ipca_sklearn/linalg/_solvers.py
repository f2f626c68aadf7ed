"""Leading rows of a stack of matrices: the one decomposition of an update or a merge.

Every solver takes `blocks`, a list of tensors (P, n_i, m) that together are the rows of W (P, n, m). With
W = V diag(s) U^T, it writes the leading rows of diag(s) U^T to `out` (P, k, m). These are unnormalised principal
directions, largest first. Their Gram matrix is the best rank-k approximation of W^T W (paper, Eq. 4-6). Rows that are
nothing but rounding are zero (`rounding_share`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ipca_sklearn.linalg.eigh import EIGENSOLVERS, choose_eigensolver
from ipca_sklearn.linalg.eigh._alone import Decomposition, failures, one_at_a_time, solve_failures_alone, svd_alone

SOLVERS = ("auto", "gram_eigh", "gram_svd", "svd")
SVD_DRIVERS = ("gesvd", "gesvdj", "gesvda")

# A Gram matrix errs by about eps times its largest eigenvalue. Rows whose eigenvalue is below WEAK times that hold
# parts of larger rows. They are freed of them and decomposed once more, at their own scale.
WEAK = 1000


@dataclass(frozen=True)
class Solver:
    """A routine `write_leading_rows(blocks, out)`, and how many patches one call should take at least."""

    write_leading_rows: Callable[[Sequence[Tensor], Tensor], None]
    group: int = 1


def rounding_share(shape: Sequence[int], dtype: torch.dtype) -> float:
    """Return the largest norm of a row that is nothing but rounding, as a share of the largest row of W, of n x m."""
    # Rounding errors of n products, and of m entries in a norm, are independent: a square root (docs/dev_notes.md).
    return math.sqrt(max(shape)) * torch.finfo(dtype).eps


def out_of_range(squares: Tensor, dtype: torch.dtype) -> Tensor:
    """Return where sums of squares have overflowed in `dtype`, or have lost digits to underflow and are not zero."""
    limits = torch.finfo(dtype)
    return ~((squares == 0) | ((squares >= limits.tiny / limits.eps**2) & (squares <= limits.max)))


def _by_gram(blocks: Sequence[Tensor], out: Tensor, decompose: Decomposition) -> None:
    """Decompose the Gram matrix of the shorter side of W (paper, Sec. 3.3)."""
    # On a GPU, W is not formed. On a CPU, a chunk of W stays in the cache, and one product is faster than several.
    if blocks[0].device.type == "cpu":
        blocks = [torch.cat(list(blocks), dim=1)]
    heights = [block.shape[1] for block in blocks]
    edges = [sum(heights[:i]) for i in range(len(heights) + 1)]
    tall = edges[-1] > blocks[0].shape[2]
    if tall:
        gram = torch.bmm(blocks[0].mT, blocks[0])
        for block in blocks[1:]:
            gram.baddbmm_(block.mT, block)
    else:
        gram = blocks[0].new_empty(blocks[0].shape[0], edges[-1], edges[-1])
        for i, lower in enumerate(blocks):
            for j, left in enumerate(blocks[: i + 1]):
                gram[:, edges[i] : edges[i + 1], edges[j] : edges[j + 1]] = torch.bmm(lower, left.mT)
    unscaled = out_of_range(gram.diagonal(dim1=1, dim2=2).sum(1), gram.dtype)
    if unscaled.any():
        gram[unscaled] = 0
    values, vectors = decompose(gram, out.shape[1])
    if tall:
        torch.mul(vectors, values[..., None].clamp_min(0).sqrt(), out=out)
    else:
        torch.bmm(vectors[..., : heights[0]], blocks[0], out=out)
        for i, block in enumerate(blocks[1:], start=1):
            out.baddbmm_(vectors[..., edges[i] : edges[i + 1]], block)
    strong = values > WEAK * torch.finfo(out.dtype).eps * values[:, :1]
    weak = ~strong.all(1)
    if weak.any():
        images = torch.bmm(vectors[weak], torch.cat([block[weak] for block in blocks], dim=1).mT) if tall else out[weak]
        change, norms = _refining(images, strong[weak], (edges[-1], out.shape[2]), decompose)
        if tall:
            out[weak] = torch.bmm(change, vectors[weak]) * norms[..., None]
        else:
            out[weak] = torch.bmm(change, images) * (norms > 0)[..., None]
    if unscaled.any():
        W = torch.cat([block[unscaled] for block in blocks], dim=1)
        scale = W.abs().amax((1, 2), keepdim=True)
        rows = torch.empty_like(out[unscaled])
        _by_gram([W / scale], rows, decompose)
        out[unscaled] = rows * scale


def _refining(
    images: Tensor, strong: Tensor, shape: tuple[int, int], decompose: Decomposition
) -> tuple[Tensor, Tensor]:
    """Return the matrices (P, k, k) that decompose the weak rows a second time, and the norms (P, k) of the new rows.

    `images` (P, k, m or n) are the rows of diag(s) U^T, or of diag(s) V^T. The weak ones are not orthogonal to the
    `strong` (P, k), which stay as they are. `shape` is n and m of W. Norms are 0 where a row is nothing but rounding.
    """
    size = images.shape[1]
    kept = images * strong[..., None]
    squares = kept.square().sum(2, keepdim=True)
    parts = torch.bmm(images * ~strong[..., None], (kept / torch.where(squares > 0, squares, 1)).mT)
    freed = images * ~strong[..., None] - torch.bmm(parts, kept)
    scale = freed.abs().amax((1, 2), keepdim=True)
    freed /= torch.where(scale > 0, scale, 1)
    rotation = decompose(torch.bmm(freed, freed.mT), size)[1]
    identity = torch.eye(size, dtype=images.dtype, device=images.device)
    change = torch.bmm(rotation, identity * ~strong[..., None] - parts)
    change = torch.cat([identity * strong[..., None], change], dim=1)
    norms = torch.linalg.vector_norm(torch.bmm(change, images), dim=2)
    norms, order = norms.sort(dim=1, descending=True)
    norms, order = norms[:, :size], order[:, :size]
    change = change.gather(1, order[..., None].expand(-1, -1, size))
    live = norms > rounding_share(shape, images.dtype) * norms[:, :1]
    return change, norms * live


def _svd_of_gram(gram: Tensor, n_vectors: int, driver: str | None) -> tuple[Tensor, Tensor]:
    gram = gram.tril() + gram.tril(-1).mT
    svd = partial(torch.linalg.svd, full_matrices=False, driver=driver)
    try:
        vectors, values, _ = svd(gram)
    except torch.linalg.LinAlgError:
        values, vectors = one_at_a_time(lambda matrix: svd(matrix)[1::-1], gram, gram.shape[1])
    return solve_failures_alone(gram, values[:, :n_vectors], vectors[..., :n_vectors].mT.contiguous())


def _by_svd(blocks: Sequence[Tensor], out: Tensor, driver: str | None) -> None:
    W = torch.cat(list(blocks), dim=1)
    svd = partial(torch.linalg.svd, full_matrices=False, driver=driver)
    try:
        _, values, right = svd(W)
    except torch.linalg.LinAlgError:
        values, right = one_at_a_time(lambda matrix: svd(matrix)[1:], W, min(W.shape[1:]))
    for index in failures(values, right):
        singular, vectors = svd_alone(W[index])
        values[index], right[index] = singular.to(values), vectors.to(right)
    values = values * (values > rounding_share(W.shape[1:], W.dtype) * values[:, :1])
    torch.mul(right[:, : out.shape[1]], values[:, : out.shape[1], None], out=out)


def get_solver(name: str, driver: str | None, like: Tensor, size: int) -> Solver:
    """Return a solver for W (P, n, m), where `like` has the P, dtype and device of W and `size` is min(n, m)."""
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
