"""P scatter matrices, learnt step by step: exact PCAs where m^2 numbers are few, and the Gaussians of PaDiM."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ipca_sklearn.linalg._distances import DistanceOperator
from ipca_sklearn.linalg._execution import for_each_chunk, full_precision
from ipca_sklearn.linalg._finalize import Basis, variance_left
from ipca_sklearn.linalg._rounded import rounded, share_of_rounding
from ipca_sklearn.linalg._update import Samples, sums_dtype
from ipca_sklearn.linalg.eigh import scatter_eigensolver

# Rows of a block of the lower triangle: the smaller, the less is computed above the diagonal, and the slower a product.
_BLOCK = 64


@dataclass(frozen=True)
class ScatterState:
    """P Gaussians with full covariance, as learnt from the samples so far. Immutable: an update returns a new one.

    Parameters
    ----------
    matrix : Tensor of shape (P, m, m)
        Sum over the samples of the outer products of the deviations from the mean. Only the lower triangle counts; what
        is above the diagonal is undefined.
    mean : Tensor of shape (P, m)
        Mean of the samples, in float64 as in `State`.
    count : int
        Number of samples.
    weight : float
        Sum of the samples' weights: `count`, or less with a forgetting factor.

    Notes
    -----
    Memory: P m (m + 1) numbers.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn import linalg
    >>> samples = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
    >>> state = linalg.update_scatter(linalg.empty_scatter(3, 8), samples)
    >>> state.covariance().shape, state.count
    (torch.Size([3, 8, 8]), 40)
    """

    matrix: Tensor
    mean: Tensor
    count: int
    weight: float

    @property
    def degrees_of_freedom(self) -> float:
        """The divisor that makes a sample covariance of `matrix`."""
        return max(self.weight - 1, 1)

    @property
    def sum_of_squares(self) -> Tensor:
        """Sum of the squared deviations per feature (P, m)."""
        return self.matrix.diagonal(dim1=1, dim2=2)

    def covariance(self, patches: slice = slice(None)) -> Tensor:
        """Return the sample covariance (P, m, m), ddof 1; in float32 with correlations rounded to 1e-6, as stored."""
        lower = rounded(self.matrix[patches]).tril()
        return lower.add_(lower.tril(-1).mT).div_(self.degrees_of_freedom)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ScatterState:
        """Return the state on another device or in another dtype. Tensors that need no change are shared."""
        matrix = self.matrix.to(device=device, dtype=dtype)
        mean = self.mean.to(matrix.device, sums_dtype(matrix.device))
        return ScatterState(matrix, mean, self.count, self.weight)


def empty_scatter(
    n_patches: int,
    n_features: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ScatterState:
    """Return the state of P Gaussians without samples.

    Parameters
    ----------
    n_patches, n_features, dtype, device
        As in `empty_state`.

    Returns
    -------
    ScatterState
        With count 0.

    Examples
    --------
    >>> from ipca_sklearn.linalg import empty_scatter
    >>> empty_scatter(3, 8).matrix.shape
    torch.Size([3, 8, 8])
    """
    size = n_patches, n_features, n_features
    matrix = torch.zeros(size, dtype=dtype or torch.float32, device=device or "cpu")
    mean = matrix.new_zeros(n_patches, n_features, dtype=sums_dtype(matrix.device))
    return ScatterState(matrix, mean, 0, 0)


def update_scatter(
    state: ScatterState, step: Samples, *, forgetting_factor: float = 1.0, in_place: bool = False
) -> ScatterState:
    """Add one step of samples to every Gaussian.

    Parameters
    ----------
    state : ScatterState
        P Gaussians of m features; not changed, unless `in_place`.
    step : Tensor of shape (b, P, m)
        b >= 1 samples for each of them, finite, in any strides; not changed.
    forgetting_factor : float in (0, 1], default=1.0
        As in `update`.
    in_place : bool, default=False
        Overwrite the matrices of `state`, which must not be used any more: P m^2 numbers less are held and moved.

    Returns
    -------
    ScatterState
        Exact.

    Notes
    -----
    Cost per Gaussian: b m (m + 64) / 2 on a CPU, where only blocks of the lower triangle are computed. Temporaries are
    as large as a chunk of patches.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn import linalg
    >>> samples = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
    >>> state = linalg.empty_scatter(3, 8)
    >>> for step in samples.split(16):
    ...     state = linalg.update_scatter(state, step)
    >>> torch.allclose(state.covariance()[0], torch.cov(samples[:, 0].T), atol=1e-5)
    True
    """
    n_samples, n_patches, n_features = step.shape
    ageing = forgetting_factor**n_samples
    old_weight = ageing * state.weight
    total = old_weight + n_samples
    matrix = state.matrix if in_place else torch.empty_like(state.matrix)
    mean = torch.empty_like(state.mean)
    block = _BLOCK if matrix.device.type == "cpu" else n_features

    def task(patches: slice) -> None:
        samples = step[:, patches].to(matrix).transpose(0, 1)
        centre = state.mean[patches, None] if state.count else samples[:, :1].to(mean.dtype)
        reference = centre.to(samples.dtype)
        deviations = samples - reference
        average = deviations.mean(1, keepdim=True)
        deviations -= average
        shift = average + (reference - centre)  # in the dtype of the mean
        row = shift.to(samples.dtype) * math.sqrt(old_weight * n_samples / total)
        for start in range(0, n_features, block):
            rows, columns = slice(start, start + block), slice(min(start + block, n_features))
            old, new = state.matrix[patches, rows, columns], matrix[patches, rows, columns]
            torch.baddbmm(old, deviations[..., rows].mT, deviations[..., columns], beta=ageing, out=new)
            if old_weight:
                new.addcmul_(row[..., rows].mT, row[..., columns])
        torch.add(centre[:, 0], shift[:, 0], alpha=n_samples / total, out=mean[patches])

    with full_precision():
        bytes_per_patch = (3 * n_samples + n_features) * n_features * matrix.element_size()
        for_each_chunk(task, n_patches, bytes_per_patch, matrix.device)
    return ScatterState(matrix, mean, state.count + n_samples, total)


def merge_scatter(first: ScatterState, second: ScatterState) -> ScatterState:
    """Combine the Gaussians of two disjoint sets of samples.

    Parameters
    ----------
    first, second : ScatterState
        P Gaussians of m features each, at least one of them with samples; not changed.

    Returns
    -------
    ScatterState
        In the dtype and on the device of `first`. Exact.

    Notes
    -----
    Cost per Gaussian: m^2.

    References
    ----------
    Chan et al., "Updating formulae and a pairwise algorithm for computing sample variances", 1979.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn import linalg
    >>> samples = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
    >>> halves = [linalg.update_scatter(linalg.empty_scatter(3, 8), half) for half in samples.split(20)]
    >>> state = linalg.merge_scatter(*halves)
    >>> torch.allclose(state.covariance()[0], torch.cov(samples[:, 0].T), atol=1e-5)
    True
    """
    second = second.to(first.matrix.device, first.matrix.dtype)
    total = first.weight + second.weight
    shift = second.mean - first.mean
    row = shift.to(first.matrix.dtype)
    between = row[:, :, None] * row[:, None] * (first.weight * second.weight / total)
    mean = first.mean + shift * (second.weight / total)
    matrix = first.matrix + second.matrix + between
    return ScatterState(matrix, mean, first.count + second.count, total)


def finalize_scatter(state: ScatterState, *, n_components: int | None = None, pooled_share: float = 0.0) -> Basis:
    """Return the leading principal directions of every Gaussian.

    Parameters
    ----------
    state : ScatterState
        At least one sample; not changed.
    n_components : int or None, default=None
        k; None for all m. `keep_share` keeps a share of the variance of all.
    pooled_share : float in [0, 1], default=0.0
        Share of the mean covariance of all Gaussians in the covariance of each; what is left is its own.

    Returns
    -------
    Basis
        Its rows are the components, and zero where there is no variance.

    Raises
    ------
    torch.linalg.LinAlgError
        An eigendecomposition does not converge: the samples hold NaN or infinity.

    Notes
    -----
    Cost per Gaussian: an eigendecomposition of m x m, on a CPU with numba for the k leading directions alone. In
    float32 it is that of the matrix with correlations rounded to 1e-6 (docs/dev_notes.md), so that a stored model gives
    the same bits.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn import linalg
    >>> samples = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
    >>> state = linalg.update_scatter(linalg.empty_scatter(3, 8), samples)
    >>> linalg.finalize_scatter(state).components.shape, linalg.finalize_scatter(state, n_components=2).variance.shape
    (torch.Size([3, 8, 8]), torch.Size([3, 2]))
    """
    n_patches, n_features = state.mean.shape
    kept = n_features if n_components is None else n_components
    rows = state.matrix.new_empty(n_patches, kept, n_features)
    variance = rows.new_empty(n_patches, kept)
    rounding = share_of_rounding(n_features, rows.dtype)
    # The directions that so many samples span.
    rank = max(0, min(n_features, (state.count - 1) * (n_patches if pooled_share else 1)))
    solve = scatter_eigensolver(rows.device, rows.dtype, n_features, n_patches).solve
    pooled = _mean_matrix(state).mul_(pooled_share) if pooled_share else None

    def task(patches: slice) -> None:
        matrices = rounded(state.matrix[patches])
        if pooled is not None:
            matrices = matrices.mul(1 - pooled_share).add_(pooled)
        values, vectors = solve(matrices, kept)
        values = torch.where(values > rounding * values[:, :1], values, 0)
        values[:, rank:] = 0
        variance[patches] = values / state.degrees_of_freedom
        torch.mul(vectors, (variance[patches] > 0)[..., None], out=rows[patches])

    with full_precision():
        bytes_per_patch = (3 * n_features + kept) * n_features * rows.element_size()
        for_each_chunk(task, n_patches, bytes_per_patch, rows.device)
    sums = state.sum_of_squares
    if pooled is not None:
        sums = sums * (1 - pooled_share) + pooled.diagonal()
    feature_variance = sums / state.degrees_of_freedom
    noise_variance = variance_left(feature_variance, variance, kept)
    return Basis(rows, None, variance, state.mean.to(rows.dtype), noise_variance, feature_variance)


def _mean_matrix(state: ScatterState) -> Tensor:
    """Return the mean (m, m) of the rounded matrices, in their order: the same bits whatever the chunks."""
    total = state.mean.new_zeros(state.matrix.shape[1:])
    with full_precision():
        for matrices in state.matrix.split(16):
            total += rounded(matrices).sum(0)
    return total.div_(len(state.matrix)).to(state.matrix.dtype)


def whitening_operator(state: ScatterState, *, ridge: float) -> DistanceOperator:
    """Return the operator of the Mahalanobis distances under covariance + ridge * I.

    Parameters
    ----------
    state : ScatterState
        At least one sample.
    ridge : float
        Added to the diagonal of each covariance; >= 0.

    Returns
    -------
    DistanceOperator
        Its rows W (P, m, m) are the inverses of Cholesky factors: the distance of a sample is ``|W (sample - mean)|``.

    Raises
    ------
    torch.linalg.LinAlgError
        A covariance with the ridge is not positive definite to the dtype's precision.

    Notes
    -----
    Cost per Gaussian: a Cholesky factor and a triangular inverse, about 2 m^3 / 3. `patch_distances` then costs m^2 per
    sample and Gaussian.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn import linalg
    >>> samples = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
    >>> state = linalg.update_scatter(linalg.empty_scatter(3, 8), samples)
    >>> operator = linalg.whitening_operator(state, ridge=0.01)
    >>> linalg.patch_distances(operator, samples).shape
    torch.Size([40, 3])
    """
    whitener = torch.empty_like(state.matrix)
    n_patches, n_features = state.mean.shape
    identity = torch.eye(n_features, dtype=whitener.dtype, device=whitener.device)

    def task(patches: slice) -> None:
        factor = torch.linalg.cholesky(state.covariance(patches) + ridge * identity)
        whitener[patches] = torch.linalg.solve_triangular(factor, identity, upper=False)

    for_each_chunk(task, n_patches, 4 * n_features**2 * whitener.element_size(), whitener.device)
    mean = state.mean.to(whitener.dtype)
    return DistanceOperator(mean, whitener, None, torch.ones_like(mean[:, :1]), None)
