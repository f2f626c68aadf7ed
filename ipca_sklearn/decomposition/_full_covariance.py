"""FullCovariance: Gaussians that keep their covariance whole, the baseline that truncated ones are compared with."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ipca_sklearn import linalg
from ipca_sklearn._utils._devices import resolve_device, resolve_dtype
from ipca_sklearn.decomposition._batched_ipca import BatchedIncrementalPCA
from ipca_sklearn.decomposition._batches import Samples, as_tensor
from ipca_sklearn.decomposition._fitted import Model


class CovarianceModel(Model):
    """A learnt `linalg.ScatterState`; see `Model`. All directions are components, and `ridge` is added to each."""

    def __init__(self, state: linalg.ScatterState, ridge: float, kind: str) -> None:
        super().__init__(state, state.mean.shape[1], "incremental", kind)  # type: ignore[arg-type]
        self.state: linalg.ScatterState = state  # type: ignore[assignment]
        self.ridge = ridge
        self._whiteners: dict[torch.device, Tensor] = {}

    def _make_basis(self) -> linalg.Basis:
        return linalg.finalize_scatter(self.state)

    def distances(self, step: Tensor, *, score: str, noise_shrinkage: float) -> Tensor:
        """Return the Mahalanobis distances (n, P), the only ones there are: no direction is left for a residual."""
        return linalg.whitened_distances(self.whitener(step.device), self.state.mean.to(step.device), step)

    def whitener(self, device: torch.device) -> Tensor:
        """Return what deviations are multiplied by for the distances (P, m, m); one copy per device is kept."""
        if device not in self._whiteners:
            self._whiteners[device] = linalg.whiten_scatter(self.state, ridge=self.ridge).to(device)
        return self._whiteners[device]

    def __getstate__(self) -> dict[str, Any]:
        arrays = {name: getattr(self.state, name).cpu().numpy() for name in ("matrix", "mean")}
        return {"ridge": self.ridge, "count": self.state.count, "weight": self.state.weight, **arrays}

    def __setstate__(self, stored: dict[str, Any]) -> None:
        matrix, mean = (as_tensor(np.asarray(stored[name])) for name in ("matrix", "mean"))
        state = linalg.ScatterState(matrix, mean, stored["count"], stored["weight"])
        self.__init__(state, stored["ridge"], "numpy")  # type: ignore[misc]


class FullCovariance(BatchedIncrementalPCA):
    """Mean and full covariance of every patch (Defard et al., "PaDiM", 2021), by the same steps as the truncated PCA.

    Parameters
    ----------
    ridge : float, default=0.01
        Added to the diagonal of the covariance when distances are computed.
    step_size, forgetting_factor, dtype, device
        As in :class:`BatchedIncrementalPCA`.

    Attributes
    ----------
    covariance_ : array of shape (P, m, m), or (m, m) for 2-D input
        Sample covariance (ddof 1), without the ridge.
    components_, explained_variance_, mean_, ...
        As in :class:`BatchedIncrementalPCA`, with k = m.

    Notes
    -----
    Memory: P m^2 numbers, and as much again for the distances. Cost of a step of b samples: b m^2 per patch, and m^3
    when distances are asked for.
    """

    _parameter_constraints: dict = {  # noqa: RUF012  (scikit-learn's own form)
        "ridge": [Interval(Real, 0, None, closed="left")],
        **{
            name: BatchedIncrementalPCA._parameter_constraints[name]
            for name in ("step_size", "forgetting_factor", "dtype", "device")
        },
    }
    # What the base class reads and this one does not let choose.
    n_components = None
    centering = "incremental"
    whiten = False

    def __init__(
        self,
        ridge: float = 0.01,
        *,
        step_size: int | None = 16,
        forgetting_factor: float = 1.0,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        self.ridge = ridge
        self.step_size = step_size
        self.forgetting_factor = forgetting_factor
        self.dtype = dtype
        self.device = device

    def _new_model(self, samples: Samples, first_step: int) -> Model:
        state = linalg.empty_scatter(
            samples.n_patches,
            samples.n_features,
            dtype=resolve_dtype(self.dtype, samples.dtype),
            device=resolve_device(self.device, samples.device),
        )
        return CovarianceModel(state, self.ridge, samples.kind)

    def _after_step(self, model: Model, step: Tensor, spare: Any, kind: str) -> Model:
        old: linalg.ScatterState = model.state.to(step.device)  # type: ignore[assignment]
        state = linalg.update_scatter(old, step, forgetting_factor=self.forgetting_factor)
        return CovarianceModel(state, self.ridge, kind)

    def _merged(self, mine: Model, theirs: Model) -> Model:
        return CovarianceModel(linalg.merge_scatter(mine.state, theirs.state), self.ridge, mine.kind)  # type: ignore[arg-type]

    @property
    def covariance_(self) -> Any:
        """Sample covariance of each patch."""
        check_is_fitted(self)
        return self._read(self._model.state.covariance())  # type: ignore[attr-defined]
