"""Samples in the coordinates of P truncated PCAs, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from ipca_sklearn.linalg._execution import full_precision
from ipca_sklearn.linalg._finalize import Basis


def project(basis: Basis, step: Tensor, *, whiten: bool = False) -> Tensor:
    """Return the coordinates of samples in the basis of the components.

    Parameters
    ----------
    basis : Basis
        P PCAs with k components of m features.
    step : Tensor of shape (n, P, m)
        Samples in any strides; not changed.
    whiten : bool, default=False
        Divide by the standard deviations of the components.

    Returns
    -------
    Tensor of shape (n, P, k)
        In the basis' dtype and on its device.

    Notes
    -----
    Cost per sample and PCA: k m, and once per basis that of its `components`.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn import linalg
    >>> samples = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
    >>> basis = linalg.finalize(linalg.update(linalg.empty_state(3, 8), samples, n_rows=8), n_components=8)
    >>> coordinates = linalg.project(basis, samples, whiten=True)
    >>> coordinates.std(0).round(decimals=4).unique()
    tensor([1.])
    >>> torch.allclose(linalg.reconstruct(basis, coordinates, whiten=True), samples, atol=1e-4)
    True
    """
    with full_precision():
        projected = torch.einsum("npm,pkm->npk", step.to(basis.mean) - basis.mean, basis.components)
    return projected * inverse_scale(basis) if whiten else projected


def reconstruct(basis: Basis, coordinates: Tensor, *, whiten: bool = False) -> Tensor:
    """Return the samples that belong to coordinates: the inverse of `project`, at the same cost.

    Parameters
    ----------
    basis : Basis
        P PCAs with k components of m features.
    coordinates : Tensor of shape (n, P, k)
        From `project`, or any others.
    whiten : bool, default=False
        Whether the coordinates were divided by the standard deviations.

    Returns
    -------
    Tensor of shape (n, P, m)
        In the basis' dtype and on its device.

    Examples
    --------
    See `project`.
    """
    coordinates = coordinates.to(basis.mean)
    if whiten:
        coordinates = coordinates * basis.variance.sqrt()
    with full_precision():
        return torch.einsum("npk,pkm->npm", coordinates, basis.components) + basis.mean


def inverse_scale(basis: Basis) -> Tensor:
    """Return 1 / standard deviation (P, k), and 1 for components without variance: they are zero rows."""
    return torch.where(basis.variance > 0, basis.variance, 1).rsqrt()
