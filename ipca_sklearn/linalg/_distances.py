"""Samples seen by P truncated PCAs: projections, reconstructions, and the distances that anomaly scores are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ipca_sklearn.linalg._execution import for_each_chunk, full_precision
from ipca_sklearn.linalg._finalize import Basis

DISTANCES = ("mahalanobis", "residual", "ppca", "factor_analysis")


def project(basis: Basis, step: Tensor, *, whiten: bool = False) -> Tensor:
    """Return the coordinates (n, P, k) of samples (n, P, m), divided by the standard deviations if `whiten`."""
    with full_precision():
        projected = torch.einsum("npm,pkm->npk", step.to(basis.mean) - basis.mean, basis.components)
    return projected * _inverse_scale(basis) if whiten else projected


def reconstruct(basis: Basis, coordinates: Tensor, *, whiten: bool = False) -> Tensor:
    """Return the samples (n, P, m) that coordinates (n, P, k) stand for: the inverse of `project`."""
    coordinates = coordinates.to(basis.mean)
    if whiten:
        coordinates = coordinates * basis.variance.sqrt()
    with full_precision():
        return torch.einsum("npk,pkm->npm", coordinates, basis.components) + basis.mean


def _inverse_scale(basis: Basis) -> Tensor:
    """Return 1 / standard deviation (P, k); a component without variance is a zero row, and 0 * 1 stays 0."""
    return torch.where(basis.variance > 0, basis.variance, 1).rsqrt()


def patch_distances(basis: Basis, step: Tensor, *, distance: str, noise_shrinkage: float = 0.0) -> Tensor:
    """Return the distance of every sample from every PCA.

    Parameters
    ----------
    basis : Basis
        P PCAs with k components of m features.
    step : Tensor of shape (n, P, m)
        Finite samples in any strides; not changed.
    distance : {"mahalanobis", "residual", "ppca", "factor_analysis"}
        With x the deviation from the mean, z its projection divided by the standard deviations, r what the projection
        leaves of x: `"mahalanobis"` |z| (paper, Eq. 3), `"residual"` |r|, `"ppca"` sqrt(|z|^2 + |r|^2 / noise),
        `"factor_analysis"` sqrt(|z|^2 + sum_j r_j^2 / noise_j).
    noise_shrinkage : float, default=0.0
        For `"factor_analysis"`: noise_j is (1 - noise_shrinkage) times what the components leave of the variance of
        feature j at that PCA, and noise_shrinkage times the mean of that over all P.

    Returns
    -------
    Tensor of shape (n, P)
        Distances >= 0, in the basis' dtype and on its device.

    Notes
    -----
    Cost per sample and PCA: 2 m k, twice that where the residual is needed. The residual is formed explicitly: the
    difference |x|^2 - |U x|^2 would lose half of the digits where it is small. Temporaries are as large as a chunk.
    """
    n_samples, n_patches, n_features = step.shape
    n_rows = basis.rows.shape[1]
    distances = basis.mean.new_empty(n_samples, n_patches)
    scale, precision = distance_weights(basis, distance=distance, noise_shrinkage=noise_shrinkage)

    def task(patches: slice) -> None:
        rows, transform = basis.rows[patches], basis.transform[patches]
        centred = step[:, patches].to(basis.mean).sub(basis.mean[patches]).transpose(0, 1)
        projected = torch.bmm(torch.bmm(centred, rows.mT), transform.mT)
        if distance != "mahalanobis":
            left = torch.baddbmm(centred, torch.bmm(projected, transform), rows, alpha=-1)
            if distance != "residual":
                left *= precision[patches, None]
            residual = torch.linalg.vector_norm(left, dim=-1)
        if distance != "residual":
            whitened = torch.linalg.vector_norm(projected * scale[patches, None], dim=-1)
        if distance == "mahalanobis":
            result = whitened
        elif distance == "residual":
            result = residual
        else:
            result = torch.hypot(whitened, residual)
        distances[:, patches] = result.mT

    with full_precision():
        bytes_per_patch = n_samples * (2 * n_features + 3 * n_rows) * basis.mean.element_size()
        for_each_chunk(task, n_patches, bytes_per_patch, basis.mean.device)
    return distances


def distance_weights(basis: Basis, *, distance: str, noise_shrinkage: float) -> tuple[Tensor, Tensor]:
    """Return what projections (P, k) and residuals (P, m), or (P, 1), are multiplied by; see `patch_distances`."""
    if distance == "factor_analysis":
        noise = basis.feature_noise
        noise = torch.lerp(noise, noise.mean(0).expand_as(noise), noise_shrinkage)
    else:
        noise = basis.noise_variance[:, None]
    return _inverse_scale(basis), _floored(noise).rsqrt_()


def _floored(noise: Tensor) -> Tensor:
    """Keep the noise of a patch that never varied above what the dtype resolves of the average patch."""
    average, limits = noise.mean(), torch.finfo(noise.dtype)
    # The product itself may be too small for the dtype.
    return noise.clamp_min((limits.eps * torch.where(average > 0, average, 1)).clamp_min(limits.tiny))


def log_likelihood(basis: Basis, step: Tensor) -> Tensor:
    """Return the log-density (n, P) of samples (n, P, m) under probabilistic PCA (Tipping & Bishop, 1999).

    The covariance is that of the components along them and `noise_variance` along every other direction.
    """
    n_features = basis.mean.shape[1]
    live = basis.variance > 0
    noise = _floored(basis.noise_variance)
    log_determinant = torch.where(live, basis.variance, 1).log().sum(1) + (n_features - live.sum(1)) * noise.log()
    constant = n_features * math.log(2 * math.pi) + log_determinant
    return -0.5 * (constant + patch_distances(basis, step, distance="ppca").square())
