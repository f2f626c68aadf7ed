"""FullCovariance: Gaussians that keep their whole covariance, the baseline for truncated ones."""

from __future__ import annotations

from typing import Any

from ipca_sklearn import linalg
from ipca_sklearn._utils._devices import resolve_device, resolve_dtype
from ipca_sklearn._utils._typing import DeviceLike, DTypeLike
from ipca_sklearn.decomposition._banded import update_scatter
from ipca_sklearn.decomposition._base import BasePCA, Learning
from ipca_sklearn.decomposition._batched_ipca import BatchedIncrementalPCA
from ipca_sklearn.decomposition._fitted_scatter import FittedCovariance


class _CovarianceLearning(Learning):
    _pca: FullCovariance

    def advance(self, step: Any) -> None:
        pca, device = self._pca, resolve_device(self._pca.device, step.device)
        if self.fitted is None:
            dtype = resolve_dtype(pca.dtype, step.dtype)
            state = linalg.empty_scatter(*step.shape[1:], dtype=dtype, device=device)
        else:
            state = self.fitted.state.to(device)
        state = update_scatter(
            state, step.to(device), forgetting_factor=pca.forgetting_factor, in_place=self._may_overwrite
        )
        self.fitted = FittedCovariance(state, "torch", self._group)


class FullCovariance(BasePCA):
    """Mean and full covariance of every patch (Defard et al., "PaDiM", 2021), learnt one step of samples at a time.

    Parameters
    ----------
    step_size, forgetting_factor, dtype, device
        As in :class:`BatchedIncrementalPCA`.

    Attributes
    ----------
    covariance_ : array of shape (P, m, m), or (m, m) for 2-D input
        Sample covariance (ddof 1).
    components_, explained_variance_, mean_, ...
        As in :class:`BatchedIncrementalPCA`, with k = m.

    See Also
    --------
    BatchedIncrementalPCA : The truncated form, P k m numbers.

    Notes
    -----
    Memory: P m^2 numbers, and as much again for distances. Cost of a step of b samples: b m^2 per patch. The first
    distances after a step cost m^3 per patch.

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn.decomposition import FullCovariance
    >>> X = np.random.default_rng(0).normal(size=(100, 5, 3))
    >>> gaussians = FullCovariance().fit(X)
    >>> bool(np.allclose(gaussians.covariance_[2], np.cov(X[:, 2].T)))
    True
    """

    _learning = _CovarianceLearning
    _parameter_constraints: dict = {  # noqa: RUF012  (scikit-learn's own form)
        name: BatchedIncrementalPCA._parameter_constraints[name]
        for name in ("step_size", "forgetting_factor", "dtype", "device")
    }

    def __init__(
        self,
        *,
        step_size: int | None = 16,
        forgetting_factor: float = 1.0,
        dtype: DTypeLike = None,
        device: DeviceLike = None,
    ) -> None:
        self.step_size = step_size
        self.forgetting_factor = forgetting_factor
        self.dtype = dtype
        self.device = device

    def _numbers_per_feature(self, n_samples: int, n_features: int, group: int) -> tuple[float, float, float]:
        return n_features, 3 * n_features, 1  # the matrices, those that score, and work

    def merge(self, other: FullCovariance) -> FullCovariance:
        """Take in what another estimator learnt from other samples; exact. Errors as `BatchedIncrementalPCA.merge`."""
        return self._merge(other, FullCovariance)

    def _merged(self, mine: FittedCovariance, theirs: FittedCovariance) -> FittedCovariance:
        return FittedCovariance(linalg.merge_scatter(mine.state, theirs.state), mine.array_type, mine.group)

    @property
    def covariance_(self) -> Any:
        """Sample covariance of each patch."""
        return self._read(self._known("covariance_").state.covariance())
