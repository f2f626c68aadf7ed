"""What is learnt as scatter matrices: exact PCAs and full covariances, and their pickled form of few bytes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from joblib.externals.loky.backend.reduction import dumps
from torch import Tensor

from ipca_sklearn import linalg
from ipca_sklearn._utils._arrays import as_tensor
from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn.decomposition._fitted import Fitted, FittedPCA, check_n_components
from ipca_sklearn.decomposition._singular import whitening_operator

# Independent samples below which the covariance of a cell is completed with the mean of all (docs/dev_notes.md).
_FEWEST_SAMPLES = 48.0

_exact_pickles: ContextVar[bool] = ContextVar("exact_pickles", default=False)


def pickles_are_exact() -> bool:
    """Return whether `exact_pickles` is in force."""
    return _exact_pickles.get()


@contextmanager
def exact_pickles() -> Iterator[None]:
    """Pickle scatter matrices bit by bit: for models that another process goes on learning or merges."""
    token = _exact_pickles.set(True)
    try:
        yield
    finally:
        _exact_pickles.reset(token)


class Travelling:
    """A model on its way to a process that goes on learning or merges: pickled bit by bit (`exact_pickles`)."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __reduce__(self) -> tuple[Any, ...]:
        with exact_pickles():
            return _arrived, (bytes(dumps(self.model)),)  # joblib's pickler: classes of a script travel, too


def _arrived(content: bytes) -> Travelling:
    return Travelling(pickle.loads(content))


def _packed_state(fitted: Fitted) -> dict[str, Any]:
    state = fitted.state
    matrices = {"matrix": state.matrix.cpu().numpy()} if pickles_are_exact() else linalg.pack(state.matrix)
    mean = state.mean.cpu().numpy()
    return {**fitted._settings(), "count": state.count, "weight": state.weight, "mean": mean, **matrices}


def _set_packed_state(fitted: Any, stored: dict[str, Any]) -> None:
    settings = {name: value for name, value in stored.items() if not isinstance(value, np.ndarray)}
    arrays = {name: value for name, value in stored.items() if isinstance(value, np.ndarray)}
    mean, exact = as_tensor(arrays.pop("mean")), arrays.get("matrix")
    matrix = linalg.unpack(mean.shape[1], arrays) if exact is None else as_tensor(exact)
    state = linalg.ScatterState(matrix, mean, settings.pop("count"), settings.pop("weight"))
    fitted.__init__(state, array_type="numpy", **settings)


@dataclass
class _Decomposition:
    """The eigendecomposition that the same Gaussians share, whatever their number of components.

    `most` is the largest number that somebody wants; `bases` has the components by `pooled_share`, once they are read.
    """

    most: int
    bases: dict[float, linalg.Basis] = field(default_factory=dict)


class FittedExactPCA(FittedPCA):
    """P truncated PCAs that are computed from their scatter matrices: exact, with any number of components."""

    def __init__(self, state: linalg.ScatterState, array_type: str, n_components: int | float, group: int = 1) -> None:
        super().__init__(state, array_type, n_components, group=group)  # type: ignore[arg-type]
        self._decomposition = _Decomposition(self._most_wanted)

    def with_components(self, n_components: int | float) -> FittedExactPCA:
        """Return the same Gaussians, and their one eigendecomposition, with another number of components."""
        if n_components == self.wanted:
            return self
        check_n_components(n_components, self._most_components)
        other = FittedExactPCA(self.state, self.array_type, n_components, self.group)
        other._decomposition = self._decomposition
        other._decomposition.most = max(other._decomposition.most, other._most_wanted)
        return other

    @property
    def _most_components(self) -> int:
        return self.state.mean.shape[1]

    @property
    def fewest_samples(self) -> float:
        """Independent samples that a cell scores with at least: those that are missing come from all cells."""
        return _FEWEST_SAMPLES if self.group > 1 and len(self.state.mean) > 1 else 0.0

    @property
    def pooled_share(self) -> float:
        """Share of the mean covariance of all cells in the covariance that scores."""
        return max(0.0, 1 - self._own_samples / self.fewest_samples) if self.fewest_samples else 0.0

    def _finalized(self, n_components: int, pooled_share: float = 0.0, most: int | None = None) -> linalg.Basis:
        shared = self._decomposition
        basis = shared.bases.get(pooled_share)
        if basis is None or basis.variance.shape[1] < n_components:
            n_decomposed = max(n_components, shared.most if most is None else min(shared.most, most))
            basis = linalg.finalize_scatter(self.state, n_components=n_decomposed, pooled_share=pooled_share)
            shared.bases[pooled_share] = basis
        return linalg.leading_components(basis, n_components)

    def _sums(self) -> tuple[Tensor, ...]:
        return (self.state.sum_of_squares,)

    def _settings(self) -> dict[str, Any]:
        return {"n_components": self.wanted, "group": self.group}

    __getstate__, __setstate__ = _packed_state, _set_packed_state


class FittedCovariance(Fitted):
    """P Gaussians with full covariance. All m directions are components. Pickles are those of `FittedExactPCA`."""

    def __init__(self, state: linalg.ScatterState, array_type: str, group: int = 1) -> None:
        super().__init__(state, array_type, state.mean.shape[1], group)

    __getstate__, __setstate__ = _packed_state, _set_packed_state

    @property
    def _most_components(self) -> int:
        return self.state.mean.shape[1]

    def _finalized(self, n_components: int, pooled_share: float = 0.0, most: int | None = None) -> linalg.Basis:
        return linalg.finalize_scatter(self.state, n_components=n_components)

    def distance_operator(self, device: torch.device, settings: Any) -> linalg.DistanceOperator:
        """Return the operator of Mahalanobis distances, which adds the ridge of the settings."""
        check_full_distance(settings.distance)
        key = device, settings.ridge
        if key not in self._operators:
            with own_surroundings():
                self._operators[key] = whitening_operator(self.state, ridge=settings.ridge).to(device)
        return self._operators[key]


def check_full_distance(distance: str) -> None:
    """Raise a ValueError if a full covariance, which leaves no residual, has no such distance."""
    if distance != "mahalanobis":
        raise ValueError(
            f"covariance='full' leaves no residual, so distance={distance!r} does not exist; set distance='mahalanobis'"
        )
