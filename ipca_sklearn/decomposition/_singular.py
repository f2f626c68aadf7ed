"""Covariances that cannot be inverted: which ones, why, and the error that says so."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ipca_sklearn import linalg

# Smallest share of the largest variance that is more than rounding, in units of the dtype's eps.
_ROUNDING = 16


def check_regular(basis: linalg.Basis, patch_shape: tuple[int, ...], region: np.ndarray | None, n_samples: int) -> None:
    """Refuse covariances, components plus noise, that have no inverse; the LinAlgError names the first such patch."""
    n_components, n_features = basis.variance.shape[1], basis.mean.shape[1]
    variance = basis.variance
    smallest = basis.noise_variance if n_components < n_features else variance.amin(1)
    largest = torch.maximum(variance.amax(1), basis.noise_variance)
    singular = smallest <= _ROUNDING * torch.finfo(variance.dtype).eps * largest
    if singular.any():
        remedy = "remove features that are constant or depend on others, or learn more samples"
        if n_components == n_features:
            remedy += f", or let n_components be less than {n_features}, so that there is noise in all directions"
        raise _error(_first(singular), patch_shape, region, n_samples, n_features, remedy)


def whitening_operator(state: linalg.ScatterState, *, ridge: float) -> linalg.DistanceOperator:
    """Return `linalg.whitening_operator`; numpy's LinAlgError names a covariance that the ridge leaves singular."""
    n_patches, n_features = state.mean.shape
    eps = _ROUNDING * torch.finfo(state.matrix.dtype).eps
    variances = state.sum_of_squares / state.degrees_of_freedom + ridge
    failed: torch.linalg.LinAlgError | None = None
    try:
        operator = linalg.whitening_operator(state, ridge=ridge)
        # 1 / (pivot of a feature), times its variance: how much of it the features before it explain.
        explained = operator.rows.diagonal(dim1=1, dim2=2).square() * variances
        singular = (explained * eps >= 1).any(1)
    except torch.linalg.LinAlgError as error:
        if not torch.isfinite(state.matrix.tril()).all():
            raise
        failed = error
        singular = torch.stack([_fails(state.covariance(slice(i, i + 1)), ridge) for i in range(n_patches)])
    if failed is None and not singular.any():
        return operator
    remedy = f"set ridge > {ridge:g} (0.01 is the default)" + (
        f", or learn more than {n_features} samples before the first ones are scored, or let n_random_features be less"
        if state.weight <= n_features
        else ", or remove features that are constant or depend on others"
    )
    index = _first(singular) if singular.any() else 0
    what = f" with ridge={ridge:g}"
    raise _error(index, (n_patches,), None, state.count, n_features, remedy, what) from failed


def _fails(covariance: Tensor, ridge: float) -> Tensor:
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.linalg.cholesky_ex(covariance + ridge * identity).info[0] > 0


def _first(singular: Tensor) -> int:
    return int(singular.int().argmax())


def _error(
    index: int,
    patch_shape: tuple[int, ...],
    region: np.ndarray | None,
    n_samples: int,
    n_features: int,
    remedy: str,
    what: str = "",
) -> np.linalg.LinAlgError:
    place = ""
    if patch_shape not in ((), (1,)):
        position = np.flatnonzero(region)[index] if region is not None else index
        at = tuple(int(axis) for axis in np.unravel_index(position, patch_shape))
        place = f" of patch {at if len(at) > 1 else at[0]}"
    return np.linalg.LinAlgError(
        f"the covariance{place}{what} is singular: {n_samples} samples do not vary in all directions of {n_features} "
        f"features; {remedy}"
    )
