"""Distances of samples from P Gaussians, and their log-likelihoods."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ipca_sklearn.linalg._execution import NUMBA_BATCH, for_each_chunk, full_precision, numba_works
from ipca_sklearn.linalg._finalize import Basis, inverse_scale
from ipca_sklearn.linalg._grouped import GroupedSamples
from ipca_sklearn.linalg._update import Samples

DISTANCES = ("mahalanobis", "residual", "ppca", "factor_analysis")


@dataclass(frozen=True)
class DistanceOperator:
    """Everything that turns samples into distances from P Gaussians. Immutable.

    With d = x - mean for a sample x, z = transform @ rows @ d and r = d - (transform @ rows)^T z, the distance is
    ``sqrt(|scale * z|^2 + |precision * r|^2)``, without the term of a factor that is None.

    Parameters
    ----------
    mean : Tensor of shape (P, m)
        Means of the Gaussians.
    rows : Tensor of shape (P, r, m)
        Rows to project on. They may be float16, half of the bytes: `patch_distances` computes in the dtype of the mean.
    transform : Tensor of shape (P, k, r) or None
        Combines the rows to orthonormal components. None: the rows are the components, and k = r.
    scale : Tensor of shape (P, k) or (P, 1), or None
        Factor of the projection, such as 1 / standard deviation.
    precision : Tensor of shape (P, m) or (P, 1), or None
        Factor of the residual, such as 1 / standard deviation of the noise.

    Raises
    ------
    ValueError
        `scale` and `precision` are both None.

    See Also
    --------
    distance_operator : Makes one for truncated PCAs.
    whitening_operator : Makes one for full covariances.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn.linalg import DistanceOperator, patch_distances
    >>> mean, axis, one = torch.zeros(1, 2), torch.tensor([[[1.0, 0.0]]]), torch.ones(1, 1)
    >>> operator = DistanceOperator(mean, axis, transform=None, scale=one / 3, precision=one)
    >>> patch_distances(operator, torch.tensor([[[9.0, 4.0]]]))  # 3 standard deviations along x, 4 away from it
    tensor([[5.]])
    """

    mean: Tensor
    rows: Tensor
    transform: Tensor | None
    scale: Tensor | None
    precision: Tensor | None

    def __post_init__(self) -> None:
        if self.scale is None and self.precision is None:
            raise ValueError("scale and precision are both None: a distance needs at least one of them")

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> DistanceOperator:
        """Return the operator on another device or in another dtype. Tensors that need no change are shared."""
        return self._each(lambda part: part.to(device=device, dtype=dtype))

    def __getitem__(self, gaussians: slice) -> DistanceOperator:
        """Return the operator of some of the Gaussians."""
        return self._each(lambda part: part[gaussians])

    def _each(self, function: Callable[[Tensor], Tensor]) -> DistanceOperator:
        parts = (self.mean, self.rows, self.transform, self.scale, self.precision)
        return DistanceOperator(*(None if part is None else function(part) for part in parts))  # type: ignore[arg-type]

    def folded(self) -> DistanceOperator:
        """Return the same operator with `transform @ rows` as its rows and without a transform.

        It holds k m numbers per Gaussian instead of r (m + k), and distances cost less where r > k. Folding itself
        costs k r m per Gaussian, so it is worth it for an operator that is stored or used often.
        """
        if self.transform is None:
            return self
        with full_precision():
            return replace(self, rows=torch.bmm(self.transform, self.rows), transform=None)


def distance_operator(basis: Basis, *, distance: str, noise_shrinkage: float = 0.0) -> DistanceOperator:
    """Return the operator of one of the distances from P truncated PCAs.

    Parameters
    ----------
    basis : Basis
        P PCAs with k components of m features, from `finalize`.
    distance : {"mahalanobis", "residual", "ppca", "factor_analysis"}
        z is the projection of a sample divided by the standard deviations, and r is its residual:

        - `"mahalanobis"`: ``|z|`` (paper, Eq. 3);
        - `"residual"`: ``|r|``;
        - `"ppca"`: ``sqrt(|z|^2 + |r|^2 / noise)``, with `noise` the basis' `noise_variance`;
        - `"factor_analysis"`: ``sqrt(|z|^2 + sum_j r_j^2 / noise_j)``.
    noise_shrinkage : float in [0, 1], default=0.0
        For `"factor_analysis"`: noise_j is a mean of two numbers: `feature_noise` of feature j in this PCA, with weight
        1 - noise_shrinkage, and its mean over all P PCAs, with weight noise_shrinkage.

    Returns
    -------
    DistanceOperator
        Shares the mean, the rows and the transform of the basis.

    Raises
    ------
    ValueError
        `distance` is not one of `DISTANCES`.

    Notes
    -----
    Cost per PCA: k, and for `"factor_analysis"` k r m once per basis, for its `feature_noise`.

    Noise is kept above eps times its mean over the P PCAs. Patches with little training variance would otherwise have
    infinite distances.

    References
    ----------
    Tipping & Bishop, "Probabilistic principal component analysis", J. R. Stat. Soc. B 61, 1999.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn import linalg
    >>> samples = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
    >>> basis = linalg.finalize(linalg.update(linalg.empty_state(3, 8), samples, n_rows=2), n_components=2)
    >>> operator = linalg.distance_operator(basis, distance="factor_analysis", noise_shrinkage=0.5)
    >>> operator.scale.shape, operator.precision.shape
    (torch.Size([3, 2]), torch.Size([3, 8]))
    """
    scale: Tensor | None = inverse_scale(basis)
    if distance == "mahalanobis":
        precision = None
    elif distance == "residual":
        scale, precision = None, torch.ones_like(basis.mean[:, :1])
    elif distance == "ppca":
        precision = _floored(basis.noise_variance[:, None]).rsqrt_()
    elif distance == "factor_analysis":
        noise = basis.feature_noise
        noise = torch.lerp(noise, noise.mean(0).expand_as(noise), noise_shrinkage)
        precision = _floored(noise).rsqrt_()
    else:
        raise ValueError(f"distance={distance!r} is unknown; use one of {', '.join(map(repr, DISTANCES))}")
    return DistanceOperator(basis.mean, basis.rows, basis.transform, scale, precision)


def patch_distances(operator: DistanceOperator, step: Samples) -> Tensor:
    """Return the distance of every sample from every Gaussian.

    Parameters
    ----------
    operator : DistanceOperator
        P Gaussians of m features.
    step : Tensor of shape (n, P, m), or GroupedSamples
        Finite samples in any strides; not changed.

    Returns
    -------
    Tensor of shape (n, P)
        Distances >= 0, in the operator's dtype and on its device.

    Notes
    -----
    Cost per sample and Gaussian: r (m + k) for the projection and as much again for a residual. Temporaries are as
    large as a chunk of patches. Matrix products are done in full precision (`full_precision`). On a CPU numba, if it is
    installed, does all of it in one pass over the rows (docs/dev_notes.md has figures).

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn import linalg
    >>> samples = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
    >>> basis = linalg.finalize(linalg.update(linalg.empty_state(3, 8), samples, n_rows=2), n_components=2)
    >>> operator = linalg.distance_operator(basis, distance="ppca")
    >>> distances = linalg.patch_distances(operator, samples)
    >>> distances.shape, bool((linalg.patch_distances(operator, samples + 9) > distances).all())
    (torch.Size([40, 3]), True)
    """
    n_samples, n_patches, n_features = step.shape
    n_rows = operator.rows.shape[1]
    mean = operator.mean
    n_together = step.slots.shape[1] if isinstance(step, GroupedSamples) else 1
    with_numba = mean.device.type == "cpu" and n_patches * n_together >= NUMBA_BATCH and numba_works()
    compute: Callable[..., Tensor] = _by_matrix_products
    if with_numba:
        from ipca_sklearn.linalg._numba_distances import distances_of_chunk as compute  # numba is optional
        from ipca_sklearn.linalg._numba_distances import distances_of_groups
    if with_numba and isinstance(step, GroupedSamples):
        images, slots = step.images.to(mean).contiguous(), step.slots
        by_gaussian = mean.new_empty(n_patches, n_samples)
        distances = by_gaussian.mT

        def task(patches: slice) -> None:
            distances_of_groups(images, slots[patches], *_part(operator, patches), by_gaussian[patches])
    else:
        distances = mean.new_empty(n_samples, n_patches)

        def task(patches: slice) -> None:
            distances[:, patches] = compute(step[:, patches].to(mean), *_part(operator, patches))

    plain = operator.transform is None and operator.precision is None
    numbers_per_sample = n_features + n_rows if plain else 2 * n_features + 3 * n_rows
    # A residual reads the rows twice: the second time from the cache.
    numbers = n_samples * numbers_per_sample + n_rows * n_features
    with_caller = with_numba and operator.transform is None
    with full_precision():
        for_each_chunk(task, n_patches, numbers * mean.element_size(), mean.device, with_caller=with_caller)
    return distances


def _part(
    operator: DistanceOperator, patches: slice
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    some = operator[patches]
    return some.mean, some.rows.to(some.mean), some.transform, some.scale, some.precision


def _by_matrix_products(samples: Tensor, mean: Tensor, rows: Tensor, *factors: Tensor | None) -> Tensor:
    return _distances_here(samples.sub(mean).transpose(0, 1), rows, *factors).mT


def distances_from_centred(
    centred: Tensor, rows: Tensor, transform: Tensor | None, scale: Tensor | None, precision: Tensor | None
) -> Tensor:
    """Return the distances of centred samples, in one piece: the formula of `DistanceOperator` and nothing else.

    It has no chunks and no threads, and while a compiler follows it no global settings, so `torch.export` and
    `torch.onnx.export` can follow it inside a module. Else it computes in full precision (`full_precision`).

    Parameters
    ----------
    centred : Tensor of shape (P, n, m)
        Samples minus the means; not changed.
    rows, transform, scale, precision : Tensor or None
        As in `DistanceOperator`.

    Returns
    -------
    Tensor of shape (P, n)
        Distances >= 0.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn.linalg import distances_from_centred
    >>> axis, one = torch.tensor([[[1.0, 0.0]]]), torch.ones(1, 1)
    >>> distances_from_centred(torch.tensor([[[9.0, 4.0]]]), axis, None, one / 3, one)
    tensor([[5.]])
    """
    if torch.compiler.is_compiling():
        return _distances_here(centred, rows, transform, scale, precision)
    with full_precision():
        return _distances_here(centred, rows, transform, scale, precision)


def _distances_here(
    centred: Tensor, rows: Tensor, transform: Tensor | None, scale: Tensor | None, precision: Tensor | None
) -> Tensor:
    projected = torch.bmm(centred, rows.mT)
    if transform is not None:
        projected = torch.bmm(projected, transform.mT)
    residual = None
    if precision is not None:
        explained = projected if transform is None else torch.bmm(projected, transform)
        left = torch.baddbmm(centred, explained, rows, alpha=-1)
        left *= precision[:, None]
        residual = torch.linalg.vector_norm(left, dim=-1)
    if scale is None:
        assert residual is not None, "scale and precision are both None"
        return residual
    projected *= scale[:, None]
    whitened = torch.linalg.vector_norm(projected, dim=-1)
    if residual is None:
        return whitened
    if torch.compiler.is_compiling():  # torch.onnx cannot translate hypot (torch 2.15); the norms may overflow, too
        return (whitened.square() + residual.square()).sqrt()
    return torch.hypot(whitened, residual)


def log_likelihood(basis: Basis, step: Samples) -> Tensor:
    """Return the log-density of samples under probabilistic PCA (Tipping & Bishop, J. R. Stat. Soc. B 61, 1999).

    The covariance has the basis' variances along its components and `noise_variance` along every other direction.

    Parameters
    ----------
    basis : Basis
        P PCAs of m features.
    step : Tensor of shape (n, P, m), or GroupedSamples
        Finite samples in any strides; not changed.

    Returns
    -------
    Tensor of shape (n, P)
        In the basis' dtype and on its device.

    Notes
    -----
    Cost: that of `patch_distances` with a residual.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn import linalg
    >>> samples = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
    >>> basis = linalg.finalize(linalg.update(linalg.empty_state(3, 8), samples, n_rows=2), n_components=2)
    >>> inside, outside = (linalg.log_likelihood(basis, step).mean() for step in (samples, samples + 9))
    >>> bool(inside > outside)
    True
    """
    n_features = basis.mean.shape[1]
    live = basis.variance > 0
    noise = _floored(basis.noise_variance)
    log_determinant = torch.where(live, basis.variance, 1).log().sum(1) + (n_features - live.sum(1)) * noise.log()
    constant = n_features * math.log(2 * math.pi) + log_determinant
    distances = patch_distances(distance_operator(basis, distance="ppca"), step)
    return -0.5 * (constant + distances.square())


def _floored(noise: Tensor) -> Tensor:
    """Keep the noise of a patch that never varied above eps times the noise of the average patch."""
    average, limits = noise.mean(), torch.finfo(noise.dtype)
    # The product itself may be too small for the dtype.
    return noise.clamp_min((limits.eps * torch.where(average > 0, average, 1)).clamp_min(limits.tiny))
