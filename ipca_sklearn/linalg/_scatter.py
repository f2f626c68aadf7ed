"""P full covariance matrices, learnt step by step: the Gaussians of PaDiM, as a baseline for truncated PCAs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ipca_sklearn.linalg._distances import DistanceOperator
from ipca_sklearn.linalg._execution import for_each_chunk, full_precision
from ipca_sklearn.linalg._finalize import Basis
from ipca_sklearn.linalg._update import sums_dtype


@dataclass(frozen=True)
class ScatterState:
    """P Gaussians with full covariance, as learnt from the samples so far. Immutable: an update returns a new one.

    Parameters
    ----------
    matrix : Tensor of shape (P, m, m)
        Sum over the samples of the outer products of the deviations from the mean.
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
        """Return the sample covariance (P, m, m), ddof 1."""
        return self.matrix[patches] / self.degrees_of_freedom

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


def update_scatter(state: ScatterState, step: Tensor, *, forgetting_factor: float = 1.0) -> ScatterState:
    """Add one step of samples to every Gaussian.

    Parameters
    ----------
    state : ScatterState
        P Gaussians of m features; not changed.
    step : Tensor of shape (b, P, m)
        b >= 1 samples for each of them, finite, in any strides; not changed.
    forgetting_factor : float in (0, 1], default=1.0
        As in `update`.

    Returns
    -------
    ScatterState
        Exact.

    Notes
    -----
    Cost per Gaussian: b m^2. Temporaries are as large as a chunk of patches.

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
    matrix, mean = torch.empty_like(state.matrix), torch.empty_like(state.mean)

    def task(patches: slice) -> None:
        samples = step[:, patches].to(matrix).transpose(0, 1)
        centre = state.mean[patches, None] if state.count else samples[:, :1].to(mean.dtype)
        reference = centre.to(samples.dtype)
        deviations = samples - reference
        average = deviations.mean(1, keepdim=True)
        deviations -= average
        shift = average + (reference - centre)  # in the dtype of the mean
        row = shift.to(samples.dtype)
        between = row.mT @ row * (old_weight * n_samples / total)
        torch.baddbmm(between.add_(state.matrix[patches], alpha=ageing), deviations.mT, deviations, out=matrix[patches])
        torch.add(centre[:, 0], shift[:, 0], alpha=n_samples / total, out=mean[patches])

    with full_precision():
        bytes_per_patch = 3 * (n_samples + n_features) * n_features * matrix.element_size()
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


def finalize_scatter(state: ScatterState) -> Basis:
    """Return all m principal directions of every Gaussian.

    Parameters
    ----------
    state : ScatterState
        At least one sample; not changed.

    Returns
    -------
    Basis
        With k = m components and no noise.

    Raises
    ------
    torch.linalg.LinAlgError
        An eigendecomposition does not converge: the samples hold NaN or infinity.

    Notes
    -----
    Cost per Gaussian: an eigendecomposition of m x m.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn import linalg
    >>> samples = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
    >>> state = linalg.update_scatter(linalg.empty_scatter(3, 8), samples)
    >>> linalg.finalize_scatter(state).components.shape
    torch.Size([3, 8, 8])
    """
    n_patches, n_features = state.mean.shape
    rows = torch.empty_like(state.matrix)
    variance = rows.new_empty(n_patches, n_features)

    def task(patches: slice) -> None:
        values, vectors = torch.linalg.eigh(state.covariance(patches))
        variance[patches] = values.flip(-1).clamp_min(0)
        rows[patches] = vectors.flip(-1).mT

    for_each_chunk(task, n_patches, 3 * n_features**2 * rows.element_size(), rows.device)
    identity = torch.eye(n_features, dtype=rows.dtype, device=rows.device).expand_as(rows)
    feature_variance = state.sum_of_squares / state.degrees_of_freedom
    mean, no_noise = state.mean.to(rows.dtype), torch.zeros_like(variance[:, 0])
    return Basis(rows, identity, variance, mean, no_noise, feature_variance)


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
