"""From the unnormalised rows of a state to components and variances."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ipca_sklearn.linalg._execution import for_each_chunk, full_precision
from ipca_sklearn.linalg._solvers import out_of_range, rounding_share
from ipca_sklearn.linalg._update import State, check_centering
from ipca_sklearn.linalg.eigh import Eigensolver, choose_eigensolver


@dataclass(frozen=True)
class Basis:
    """P truncated PCAs, ready to project on. Shares the rows of the state that it was made from.

    Parameters
    ----------
    rows : Tensor of shape (P, r, m)
        Rows that span the components.
    transform : Tensor of shape (P, k, r) or None
        `transform @ rows` are the orthonormal components, by decreasing variance, up to their signs; None: the rows
        are. Components are zero where the samples have no variance left: with fewer samples, or a lower rank, than k.
    variance : Tensor of shape (P, k)
        Sample variance along each component (ddof 1).
    mean : Tensor of shape (P, m)
        Mean of the samples.
    noise_variance : Tensor of shape (P,)
        Variance per direction outside the components, (total - kept) / (m - k), and 0 for k = m: the maximum
        likelihood estimate of probabilistic PCA (Tipping & Bishop, 1999).
    feature_variance : Tensor of shape (P, m)
        Sample variance of each feature (ddof 1).
    n_kept : Tensor of int, shape (P,), or None
        Components that each PCA keeps, where they differ (a share of the variance); None: k.

    Attributes
    ----------
    components : Tensor of shape (P, k, m)
        Orthonormal components with scikit-learn's signs.
    feature_noise : Tensor of shape (P, m)
        Variance of each feature that the components leave, times m / (m - k).

    Notes
    -----
    `components` and `feature_noise` are computed when they are first read, for k r m per PCA each. Distances do not
    need the components, and only `"factor_analysis"` needs `feature_noise`.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn import linalg
    >>> samples = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
    >>> basis = linalg.finalize(linalg.update(linalg.empty_state(3, 8), samples, n_rows=2), n_components=2)
    >>> basis.components.shape, basis.variance.shape
    (torch.Size([3, 2, 8]), torch.Size([3, 2]))
    >>> torch.allclose(basis.components @ basis.components.mT, torch.eye(2), atol=1e-5)
    True
    """

    rows: Tensor
    transform: Tensor | None
    variance: Tensor
    mean: Tensor
    noise_variance: Tensor
    feature_variance: Tensor
    n_kept: Tensor | None = None

    def _unsigned(self, patches: slice) -> Tensor:
        """Return orthonormal components (p, k, m) with any signs."""
        rows = self.rows[patches]
        return rows if self.transform is None else torch.bmm(self.transform[patches], rows)

    @cached_property
    def components(self) -> Tensor:
        """Components (P, k, m), signed as in scikit-learn: the entry of largest magnitude is positive."""
        n_patches, n_features = self.mean.shape
        components = self.rows.new_empty(n_patches, self.variance.shape[1], n_features)

        def task(patches: slice) -> None:
            unit = self._unsigned(patches)
            flip = -unit.amin(-1, keepdim=True) > unit.amax(-1, keepdim=True)
            torch.mul(unit, torch.where(flip, -1, 1), out=components[patches])

        with full_precision():
            bytes_per_patch = 3 * components.shape[1] * n_features * components.element_size()
            for_each_chunk(task, n_patches, bytes_per_patch, components.device)
        return components

    @cached_property
    def feature_noise(self) -> Tensor:
        """Variance (P, m) of each feature that the components leave, times m / (m - k).

        Its mean over the features is about `noise_variance`. These are the unique variances of factor analysis with the
        components as loadings.
        """
        n_patches, n_features = self.mean.shape
        noise = torch.empty_like(self.feature_variance)
        n_kept = self.variance.shape[1] if self.n_kept is None else self.n_kept[:, None]
        share = n_features / torch.as_tensor(n_features - n_kept, device=noise.device).clamp_min(1).to(noise)

        def task(patches: slice) -> None:
            explained = torch.bmm(self.variance[patches, None], self._unsigned(patches).square())[:, 0]
            left = (self.feature_variance[patches] - explained).clamp_min_(0)
            torch.mul(left, share.expand(n_patches, 1)[patches], out=noise[patches])

        with full_precision():
            bytes_per_patch = 2 * self.variance.shape[1] * n_features * noise.element_size()
            for_each_chunk(task, n_patches, bytes_per_patch, noise.device)
        return noise

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Basis:
        """Return the basis on another device or in another dtype. Tensors that need no change are shared."""
        tensors = (self.variance, self.mean, self.noise_variance, self.feature_variance)
        variance, mean, noise_variance, feature_variance = (tensor.to(device=device, dtype=dtype) for tensor in tensors)
        rows = self.rows.to(device=device, dtype=dtype)
        transform = None if self.transform is None else self.transform.to(device=device, dtype=dtype)
        n_kept = None if self.n_kept is None else self.n_kept.to(device)
        return Basis(rows, transform, variance, mean, noise_variance, feature_variance, n_kept)


def variance_left(feature_variance: Tensor, variance: Tensor, n_kept: Tensor | int) -> Tensor:
    """Return the variance (P,) per direction that components of variances (P, k) leave, and 0 where they are m."""
    left = (feature_variance.sum(-1) - variance.sum(-1)).clamp_min_(0)
    n_left = torch.as_tensor(feature_variance.shape[-1] - n_kept, device=left.device)
    return torch.where(n_left > 0, left / n_left.clamp_min(1), 0)


def leading_components(basis: Basis, n_components: int) -> Basis:
    """Return the first components of a basis: the bits that `finalize_scatter` gives for so many.

    Parameters
    ----------
    basis : Basis
        Without `transform`, as from `finalize_scatter`.
    n_components : int
        At most those of `basis`.

    Returns
    -------
    Basis

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn import linalg
    >>> samples = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
    >>> state = linalg.update_scatter(linalg.empty_scatter(3, 8), samples)
    >>> two = linalg.leading_components(linalg.finalize_scatter(state), 2)
    >>> torch.equal(two.variance, linalg.finalize_scatter(state, n_components=2).variance)
    True
    """
    if n_components == basis.variance.shape[1]:
        return basis
    rows, variance = basis.rows[:, :n_components].contiguous(), basis.variance[:, :n_components].contiguous()
    noise_variance = variance_left(basis.feature_variance, variance, n_components)
    return Basis(rows, None, variance, basis.mean, noise_variance, basis.feature_variance)


def keep_share(basis: Basis, share: float) -> tuple[Basis, Tensor]:
    """Keep as few components of each PCA as explain more than a share of its variance, as scikit-learn's PCA does.

    Parameters
    ----------
    basis : Basis
        With as many components as may be needed.
    share : float in (0, 1)
        Of the sum of `feature_variance`.

    Returns
    -------
    basis : Basis
        With k the largest number of components that a PCA keeps; those that another does not need are zero rows.
    explained : Tensor of shape (P,)
        Share that all components of `basis` explain, and 1 for a PCA without variance: where it is not larger than
        `share` the components were too few.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn import linalg
    >>> samples = torch.randn(400, 2, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 3, 1, 1])
    >>> basis = linalg.finalize_scatter(linalg.update_scatter(linalg.empty_scatter(2, 4), samples))
    >>> linalg.keep_share(basis, 0.95)[0].n_kept
    tensor([2, 2])
    """
    total = basis.feature_variance.sum(-1, keepdim=True)
    explained = torch.where(total > 0, basis.variance.cumsum(-1) / torch.where(total > 0, total, 1), 1)
    n_kept = (explained <= share).sum(-1).add_(1).clamp_(max=basis.variance.shape[1])
    most = int(n_kept.max())
    kept = torch.arange(most, device=n_kept.device) < n_kept[:, None]
    variance = basis.variance[:, :most] * kept
    rows, transform = basis.rows, basis.transform
    if transform is None:
        rows = rows[:, :most] * kept[..., None]
    else:
        transform = transform[:, :most] * kept[..., None]
    noise_variance = variance_left(basis.feature_variance, variance, n_kept)
    smaller = Basis(rows, transform, variance, basis.mean, noise_variance, basis.feature_variance, n_kept)
    return smaller, explained[:, -1]


def _orthonormalize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return T (P, r, r) such that T @ rows are orthonormal, or zero for rounding alone, and norms (P, r), descending.

    The rows of a state are orthogonal only to about eps * s_1 / s_i. A Cholesky factor of the Gram matrix of the unit
    rows is a Gram-Schmidt in order of size. Unlike QR, it is batched on every device.
    """
    gram = torch.bmm(rows, rows.mT)
    squares = gram.diagonal(dim1=1, dim2=2)
    unscaled = out_of_range(squares.sum(1), rows.dtype)
    if unscaled.any():
        transform, norms = torch.zeros_like(gram), torch.zeros_like(squares)
        scale = rows[unscaled].abs().amax((1, 2), keepdim=True)
        unit_transform, unit_norms = _orthonormalize(rows[unscaled] / scale)
        squares_left = unit_norms * scale[..., 0] > torch.finfo(rows.dtype).tiny ** 0.5
        transform[unscaled] = torch.where(squares_left[..., None], unit_transform / scale, 0)
        norms[unscaled] = torch.where(squares_left, unit_norms * scale[..., 0], 0)
        if not unscaled.all():
            transform[~unscaled], norms[~unscaled] = _orthonormalize(rows[~unscaled])
        return transform, norms
    norms, order = squares.sqrt().sort(dim=-1, descending=True)
    rounding = rounding_share(rows.shape[1:], rows.dtype) * norms[:, :1]
    inverse = torch.where(norms > rounding, 1 / norms, 0)
    identity = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    normalize = identity[order] * inverse[..., None]
    unit_gram = normalize @ gram @ normalize.mT
    unit_gram.diagonal(dim1=1, dim2=2).fill_(1)
    factor, failed = torch.linalg.cholesky_ex(unit_gram)
    # Cholesky fails only for rows made parallel by rounding; fall back to normalising by the norms.
    factor = torch.where((failed > 0)[:, None, None], identity, factor)
    norms = norms * factor.diagonal(dim1=1, dim2=2)
    live = norms > rounding
    transform = torch.linalg.solve_triangular(factor, normalize, upper=False)
    return transform * live[..., None], norms * live


def _remove_mean(
    projected_mean: Tensor, norms: Tensor, weight: float, eigensolver: Eigensolver
) -> tuple[Tensor, Tensor]:
    """Return the rotation (P, r, r) from the raw Gram matrix to the scatter, and norms (paper, Eq. 7-9)."""
    largest = norms[:, :1]
    unit = torch.where(largest > 0, 1 / largest, 0)  # squares of the norms may underflow
    projected_mean, norms = projected_mean * unit, norms * unit
    outer = projected_mean[:, :, None] * projected_mean[:, None, :]
    values, rotation = eigensolver.solve(torch.diag_embed(norms.square()) - weight * outer, norms.shape[1])
    # Rounding turns a zero eigenvalue into at most 20 eps times the largest, whatever r is.
    live = values > 50 * torch.finfo(norms.dtype).eps
    return rotation * live[..., None], torch.where(live, values, 0).sqrt() * largest


def finalize(state: State, *, n_components: int, centering: str = "incremental") -> Basis:
    """Make components and variances of a state: normalise its rows, remove a deferred mean, keep k directions.

    Parameters
    ----------
    state : State
        At least one sample; not changed.
    n_components : int
        k. Components that the state does not have yet are zero rows with zero variance.
    centering : {"incremental", "deferred"}, default="incremental"
        The `centering` of the updates.

    Returns
    -------
    Basis
        Shares the state's rows and mean, which never change.

    Raises
    ------
    ValueError
        `centering` is unknown.

    Notes
    -----
    Cost per PCA: r^2 m and a Cholesky factor of r x r. `"deferred"` adds an eigendecomposition of r x r (paper, Eq.
    7-9). The components themselves cost k r m when they are first read. Distances do not need them.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn import linalg
    >>> samples = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
    >>> basis = linalg.finalize(linalg.update(linalg.empty_state(3, 8), samples, n_rows=8), n_components=2)
    >>> covariances = torch.stack([torch.cov(patch.T) for patch in samples.unbind(1)])
    >>> torch.allclose(basis.variance, torch.linalg.eigvalsh(covariances).flip(1)[:, :2], rtol=1e-3)
    True
    """
    check_centering(centering)
    n_patches, n_rows, n_features = state.rows.shape
    dtype, device = state.rows.dtype, state.rows.device
    mean = state.mean.to(dtype)
    transforms = state.rows.new_zeros(n_patches, n_components, n_rows)
    variance = state.rows.new_zeros(n_patches, n_components)
    feature_variance = state.rows.new_empty(n_patches, n_features)
    noise_variance = state.rows.new_zeros(n_patches)
    kept = min(n_components, n_rows)
    eigensolver = choose_eigensolver(device, dtype, n_rows, n_patches)

    def task(patches: slice) -> None:
        if kept:
            rows = state.rows[patches]
            transform, norms = _orthonormalize(rows)
            if centering == "deferred":
                scale = mean[patches].abs().amax(1, keepdim=True)  # products of rows and mean may leave the range
                unit_mean = mean[patches] / torch.where(scale > 0, scale, 1)
                projected_mean = (transform @ (rows @ unit_mean[..., None]))[..., 0] * scale
                rotation, norms = _remove_mean(projected_mean, norms, state.weight, eigensolver)
                transform = rotation @ transform
            squares = norms[:, :kept].square() / state.degrees_of_freedom
            representable = squares >= torch.finfo(dtype).tiny
            transforms[patches, :kept] = transform[:, :kept] * representable[..., None]
            variance[patches, :kept] = squares * representable
        of_features = state.sum_of_squares[patches] / state.degrees_of_freedom
        feature_variance[patches] = of_features
        noise_variance[patches] = variance_left(of_features, variance[patches], n_components)

    with full_precision():
        bytes_per_patch = 2 * max(n_rows, 1) * n_features * state.rows.element_size()
        for_each_chunk(task, n_patches, bytes_per_patch, device, group=eigensolver.group)
    return Basis(state.rows, transforms, variance, mean, noise_variance, feature_variance)


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
