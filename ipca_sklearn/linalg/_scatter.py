"""P full covariance matrices, learnt step by step: the Gaussians of PaDiM, which truncated PCAs are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ipca_sklearn.linalg._distances import DistanceOperator
from ipca_sklearn.linalg._execution import for_each_chunk, full_precision
from ipca_sklearn.linalg._finalize import Basis


@dataclass(frozen=True)
class ScatterState:
    """What P Gaussians with full covariance remember of the samples seen so far. Immutable: an update makes a new one.

    Parameters
    ----------
    matrix : Tensor of shape (P, m, m)
        Sum over the samples of the outer products of the deviations from the mean.
    mean : Tensor of shape (P, m)
        Mean of the samples.
    count : int
        Number of samples.
    weight : float
        Sum of their weights: `count`, or less where the past is forgotten.
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

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> ScatterState:
        """Return the state on another device or in another dtype (itself where nothing changes)."""
        matrix, mean = (tensor.to(device=device, dtype=dtype) for tensor in (self.matrix, self.mean))
        return ScatterState(matrix, mean, self.count, self.weight)


def empty_scatter(
    n_patches: int,
    n_features: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ScatterState:
    """Return the state of P Gaussians that have seen nothing."""
    mean = torch.zeros(n_patches, n_features, dtype=dtype, device=device)
    return ScatterState(mean.new_zeros(n_patches, n_features, n_features), mean, 0, 0)


def update_scatter(state: ScatterState, step: Tensor, *, forgetting_factor: float = 1.0) -> ScatterState:
    """Add a step of samples (b, P, m), b >= 1, which is not changed; see `update`. Cost per Gaussian: b m^2."""
    n_samples, n_patches, n_features = step.shape
    ageing = forgetting_factor**n_samples
    old_weight = ageing * state.weight
    total = old_weight + n_samples
    matrix, mean = torch.empty_like(state.matrix), torch.empty_like(state.mean)

    def task(patches: slice) -> None:
        samples = step[:, patches].to(state.mean).transpose(0, 1)
        reference = state.mean[patches, None] if state.count else samples[:, :1]
        deviations = samples - reference
        shift = deviations.mean(1, keepdim=True)
        deviations = deviations - shift
        between = shift.mT @ shift * (old_weight * n_samples / total)
        torch.baddbmm(between.add_(state.matrix[patches], alpha=ageing), deviations.mT, deviations, out=matrix[patches])
        torch.add(reference[:, 0], shift[:, 0], alpha=n_samples / total, out=mean[patches])

    with full_precision():
        bytes_per_patch = 3 * (n_samples + n_features) * n_features * state.mean.element_size()
        for_each_chunk(task, n_patches, bytes_per_patch, state.mean.device)
    return ScatterState(matrix, mean, state.count + n_samples, total)


def merge_scatter(first: ScatterState, second: ScatterState) -> ScatterState:
    """Combine the Gaussians of two disjoint sets of samples (Chan et al., 1979); exact."""
    second = second.to(first.mean.device, first.mean.dtype)
    total = first.weight + second.weight
    shift = second.mean - first.mean
    between = shift[:, :, None] * shift[:, None] * (first.weight * second.weight / total)
    mean = first.mean + shift * (second.weight / total)
    matrix = first.matrix + second.matrix + between
    return ScatterState(matrix, mean, first.count + second.count, total)


def finalize_scatter(state: ScatterState) -> Basis:
    """Return all m principal directions of every Gaussian. Cost per Gaussian: an eigendecomposition of m x m."""
    n_patches, n_features = state.mean.shape
    rows, variance = torch.empty_like(state.matrix), torch.empty_like(state.mean)

    def task(patches: slice) -> None:
        values, vectors = torch.linalg.eigh(state.covariance(patches))
        variance[patches] = values.flip(-1).clamp_min(0)
        rows[patches] = vectors.flip(-1).mT

    for_each_chunk(task, n_patches, 3 * n_features**2 * rows.element_size(), rows.device)
    identity = torch.eye(n_features, dtype=rows.dtype, device=rows.device).expand_as(rows)
    feature_variance = state.sum_of_squares / state.degrees_of_freedom
    return Basis(rows, identity, variance, state.mean, torch.zeros_like(variance[:, 0]), feature_variance)


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
    return DistanceOperator(state.mean, whitener, None, torch.ones_like(state.mean[:, :1]), None)
