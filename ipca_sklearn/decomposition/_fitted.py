"""What a PCA has learnt: an immutable state, what is derived from it when it is read, and its pickled form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ipca_sklearn import linalg
from ipca_sklearn.decomposition._batches import as_tensor

_Self = TypeVar("_Self", bound="Fitted")


class Fitted(ABC):
    """A learnt state and the form in which the user reads it.

    An object is never changed after it is made. An estimator keeps the old one until the new one is complete, so a
    failed call leaves it as it was. Pickles as numpy arrays. Components and distance operators are not pickled: they
    are made from the state when they are first read, and kept per device.

    Parameters
    ----------
    state : linalg.State or linalg.ScatterState
        At least one sample.
    array_type : {"numpy", "torch"}
        The type of the attributes.
    """

    # Arrays of the state that are pickled, and the class that they are given to.
    _ARRAYS: tuple[str, ...]
    _STATE: type

    def __init__(self, state: Any, array_type: str) -> None:
        self.state = state
        self.array_type = array_type
        self._bases: dict[torch.device, linalg.Basis] = {}
        self._operators: dict[tuple[torch.device, str, float], linalg.DistanceOperator] = {}

    @property
    @abstractmethod
    def n_components(self) -> int:
        """Number of components, k."""

    def basis(self, device: torch.device | None = None) -> linalg.Basis:
        """Return the components on a device (None: that of the state)."""
        home = self.state.mean.device
        if home not in self._bases:
            self._bases[home] = self._make_basis()
        device = device or home
        if device not in self._bases:
            self._bases[device] = self._bases[home].to(device)
        return self._bases[device]

    def distance_operator(
        self, device: torch.device | None = None, *, distance: str, noise_shrinkage: float
    ) -> linalg.DistanceOperator:
        """Return what `linalg.patch_distances` needs, on a device (None: that of the state)."""
        key = (device or self.state.mean.device, distance, noise_shrinkage)
        if key not in self._operators:
            self._operators[key] = self._make_operator(*key)
        return self._operators[key]

    @abstractmethod
    def _make_basis(self) -> linalg.Basis: ...

    @abstractmethod
    def _make_operator(
        self, device: torch.device, distance: str, noise_shrinkage: float
    ) -> linalg.DistanceOperator: ...

    @property
    def overflowed(self) -> bool:
        """Whether sums of squares are infinite: values too large for the dtype were learnt."""
        return not all(
            torch.isfinite(torch.stack(torch.aminmax(values))).all() for values in self._sums() if values.numel()
        )

    def _sums(self) -> tuple[Tensor, ...]:
        return (self.state.sum_of_squares,)

    def read_as(self: _Self, array_type: str) -> _Self:
        """Return the same with attributes of another type; what is derived from the state is shared."""
        if array_type == self.array_type:
            return self
        other = object.__new__(type(self))
        vars(other).update(vars(self), array_type=array_type)
        return other

    def read(self, tensor: Tensor, *, one_pca: bool) -> Any:
        """Return a (P, ...) tensor as an attribute of the user's array type; for one PCA without the patch axis."""
        if one_pca:
            tensor = tensor[0]
        if self.array_type == "torch":
            return tensor
        array = tensor.cpu().numpy()
        return array[()] if array.ndim == 0 else array

    def _settings(self) -> dict[str, Any]:
        """Return the arguments of the constructor besides the state and the array type."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        arrays = {name: getattr(self.state, name).cpu().numpy() for name in self._ARRAYS}
        return {**self._settings(), "count": self.state.count, "weight": self.state.weight, **arrays}

    def __setstate__(self, stored: dict[str, Any]) -> None:
        settings = dict(stored)
        arrays = [as_tensor(np.asarray(settings.pop(name))) for name in self._ARRAYS]
        state = self._STATE(*arrays, settings.pop("count"), settings.pop("weight"))
        self.__init__(state, array_type="numpy", **settings)  # type: ignore[misc]


class FittedPCA(Fitted):
    """P truncated PCAs.

    Parameters
    ----------
    state : linalg.State
        At least one sample.
    array_type : {"numpy", "torch"}
        The type of the attributes.
    n_components : int
        k.
    centering : {"incremental", "deferred"}
        How the state was learnt.
    """

    _ARRAYS = ("rows", "mean", "sum_of_squares")
    _STATE = linalg.State

    def __init__(self, state: linalg.State, array_type: str, n_components: int, centering: str) -> None:
        super().__init__(state, array_type)
        self._n_components = n_components
        self.centering = centering

    @property
    def n_components(self) -> int:
        """Number of components, k."""
        return self._n_components

    def _make_basis(self) -> linalg.Basis:
        return linalg.finalize(self.state, n_components=self.n_components, centering=self.centering)

    def _make_operator(self, device: torch.device, distance: str, noise_shrinkage: float) -> linalg.DistanceOperator:
        return linalg.distance_operator(self.basis(device), distance=distance, noise_shrinkage=noise_shrinkage)

    def _sums(self) -> tuple[Tensor, ...]:
        # Uncentred rows may overflow where the centred sums do not.
        return (*super()._sums(), *((self.state.rows,) if self.centering == "deferred" else ()))

    def _settings(self) -> dict[str, Any]:
        return {"n_components": self.n_components, "centering": self.centering}


class FittedCovariance(Fitted):
    """P Gaussians with full covariance. All m directions are components.

    Parameters
    ----------
    state : linalg.ScatterState
        At least one sample.
    array_type : {"numpy", "torch"}
        The type of the attributes.
    ridge : float
        Added to the diagonal of the covariance for distances.
    """

    _ARRAYS = ("matrix", "mean")
    _STATE = linalg.ScatterState

    def __init__(self, state: linalg.ScatterState, array_type: str, ridge: float) -> None:
        super().__init__(state, array_type)
        self.ridge = ridge

    @property
    def n_components(self) -> int:
        """Number of components: m."""
        return self.state.mean.shape[1]

    def _make_basis(self) -> linalg.Basis:
        return linalg.finalize_scatter(self.state)

    def _make_operator(self, device: torch.device, distance: str, noise_shrinkage: float) -> linalg.DistanceOperator:
        """Return the operator of the Mahalanobis distance: no direction is left for a residual."""
        return linalg.whitening_operator(self.state, ridge=self.ridge).to(device)

    def _settings(self) -> dict[str, Any]:
        return {"ridge": self.ridge}
