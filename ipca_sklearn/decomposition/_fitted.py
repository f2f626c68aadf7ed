"""What a PCA has learnt: an immutable state, what is derived from it when it is read, and its pickled form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ipca_sklearn import linalg
from ipca_sklearn._utils._arrays import as_tensor
from ipca_sklearn._utils._surroundings import own_surroundings

_Self = TypeVar("_Self", bound="Fitted")


class Fitted(ABC):
    """A learnt state and the form in which the user reads it. Immutable: a failed call leaves the old one in its place.

    Pickles as numpy arrays, without components and distance operators: they are made from the state when they are first
    read, and kept per device. `group` consecutive samples are not independent: those of an image, where its patches
    share a Gaussian. `wanted` is the number of components, or the share of the variance, that is asked for.
    """

    def __init__(self, state: Any, array_type: str, wanted: int | float, group: int = 1) -> None:
        self.wanted = int(wanted) if isinstance(wanted, Integral) else wanted  # numpy's integers too
        self.state = state
        self.array_type = array_type
        self.group = group
        self._bases: dict[torch.device, linalg.Basis] = {}
        self._operators: dict[tuple[Any, ...], linalg.DistanceOperator] = {}

    @property
    def count(self) -> int:
        """Number of samples, or of groups of them, that were learnt."""
        return self.state.count // self.group

    @property
    def weight(self) -> float:
        """Sum of the weights of the samples, or of the groups of them."""
        return self.state.weight / self.group

    @property
    def n_components(self) -> int:
        """Number of components, k; of a share, what most of the PCAs need at the most."""
        return self.wanted if isinstance(self.wanted, int) else self.basis().variance.shape[1]

    @property
    @abstractmethod
    def _most_components(self) -> int:
        """Components that could be kept."""

    @property
    def _most_wanted(self) -> int:
        return self.wanted if isinstance(self.wanted, int) else self._most_components

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of what is read; sums over all samples are float64."""
        state = self.state
        return (state.matrix if isinstance(state, linalg.ScatterState) else state.rows).dtype

    def basis(self, device: torch.device | None = None) -> linalg.Basis:
        """Return the components on a device (None: that of the state)."""
        home = self.state.mean.device
        device = device or home
        with own_surroundings():
            if home not in self._bases:
                basis = self._finalized(self._most_wanted)
                is_share = not isinstance(self.wanted, int)
                self._bases[home] = linalg.keep_share(basis, self.wanted)[0] if is_share else basis
            if device not in self._bases:
                self._bases[device] = self._bases[home].to(device)
        return self._bases[device]

    @abstractmethod
    def _finalized(self, n_components: int, pooled_share: float = 0.0, most: int | None = None) -> linalg.Basis:
        """Return some of the components; `most` of them are ever read with this share (None: all)."""

    @property
    def fewest_samples(self) -> float:
        """Independent samples that a Gaussian scores with at least, because it borrows those that are missing."""
        return 0.0

    @property
    def n_scoring_components(self) -> int:
        """Number of components that distances and likelihoods use."""
        return self.n_components

    def scoring_basis(self, device: torch.device | None = None) -> linalg.Basis:
        """Return the components that distances and likelihoods use, on a device (None: that of the state)."""
        return self.basis(device)

    def distance_operator(self, device: torch.device, settings: Any) -> linalg.DistanceOperator:
        """Return what `linalg.patch_distances` needs, on a device; `settings` are `ScoreSettings` of a detector."""
        distance, noise_shrinkage = settings.distance, settings.noise_shrinkage
        key = device, distance, noise_shrinkage
        if key not in self._operators:
            with own_surroundings():
                needs_noise = distance in ("ppca", "factor_analysis")
                basis = self.scoring_basis(device) if needs_noise else self.basis(device)
                operator = linalg.distance_operator(basis, distance=distance, noise_shrinkage=noise_shrinkage)
                self._operators[key] = operator
        return self._operators[key]

    def check_share(self) -> None:
        """Raise a ValueError if `wanted` is a share of the variance that the directions kept do not reach."""
        if isinstance(self.wanted, int):
            return
        n_rows, n_features = self._most_components, self.state.mean.shape[1]
        explained = linalg.keep_share(self._finalized(n_rows), self.wanted)[1]
        if n_rows < min(n_features, self.state.count - 1) and bool((explained <= self.wanted).any()):
            raise ValueError(
                f"n_components={self.wanted} is a share of the variance that takes more than the {n_rows} directions "
                f"that are kept (they explain {float(explained.min()):.3f}): set solver='covariance', which keeps all "
                f"{n_features}, or a number of components"
            )

    @property
    def overflowed(self) -> bool:
        """Whether sums of squares are infinite: values too large for the dtype were learnt."""
        return not all(
            torch.isfinite(torch.stack(torch.aminmax(values))).all() for values in self._sums() if values.numel()
        )

    def _sums(self) -> tuple[Tensor, ...]:
        return (self.state.sum_of_squares.to(self.dtype),)

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
        return {"group": self.group}

    def __deepcopy__(self: _Self, memo: Any) -> _Self:
        return self  # it never changes, and a pickle may round it


# Patches over which the features of a network depend on each other, as an area: a value of the coarsest layer covers 16
# of them with the default network. Measured with cells of 16, 64 and all patches (docs/dev_notes.md).
_DEPENDENT_PATCHES = 25


def independent_samples(group: int) -> float:
    """Return how many independent samples the neighbouring patches of one image count as (docs/dev_notes.md)."""
    return 1 + (group - 1) / _DEPENDENT_PATCHES


def check_n_components(n_components: int | float, n_features: int) -> None:
    """Raise a ValueError for more components than features."""
    if n_components > n_features:
        raise ValueError(
            f"n_components={n_components} is larger than n_features={n_features}: a PCA of {n_features} feature(s) "
            f"has no more than {n_features} component(s); lower n_components"
        )


class FittedPCA(Fitted):
    """P truncated PCAs."""

    def __init__(
        self,
        state: linalg.State,
        array_type: str,
        n_components: int | float,
        centering: str = "incremental",
        group: int = 1,
    ) -> None:
        super().__init__(state, array_type, n_components, group)
        self.centering = centering
        self._scoring_basis: linalg.Basis | None = None

    @property
    def n_scoring_components(self) -> int:
        """Number of components that distances and likelihoods use: k from 2 k + 1 samples on, else fewer.

        The noise is estimated from the directions that components leave of those that samples span: at least half.
        Samples of a group depend on each other, and count as fewer (`independent_samples`).
        """
        return min(self.n_components, self._most_scoring_components)

    @property
    def _most_scoring_components(self) -> int:
        return max(0, int((max(self._own_samples, self.fewest_samples) - 1) // 2))

    @property
    def _own_samples(self) -> float:
        return self.weight * independent_samples(self.group)

    @property
    def pooled_share(self) -> float:
        """Share of the mean covariance of all cells in the covariance that scores."""
        return 0.0

    def scoring_basis(self, device: torch.device | None = None) -> linalg.Basis:
        """Return the `n_scoring_components` that distances and likelihoods use (device None: that of the state)."""
        if self.n_scoring_components == self.n_components and not self.pooled_share:
            return self.basis(device)
        if self._scoring_basis is None:
            with own_surroundings():
                most = self._most_scoring_components
                self._scoring_basis = self._finalized(self.n_scoring_components, self.pooled_share, most)
        return self._scoring_basis.to(device or self.state.mean.device)

    @property
    def _most_components(self) -> int:
        return self.state.rows.shape[1]

    def _finalized(self, n_components: int, pooled_share: float = 0.0, most: int | None = None) -> linalg.Basis:
        return linalg.finalize(self.state, n_components=n_components, centering=self.centering)

    def _sums(self) -> tuple[Tensor, ...]:
        # Uncentred rows may overflow where the centred sums do not.
        return (*super()._sums(), *((self.state.rows,) if self.centering == "deferred" else ()))

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "n_components": self.wanted, "centering": self.centering}

    def __getstate__(self) -> dict[str, Any]:
        stored = self._settings() | vars(self.state)
        return {name: value.cpu().numpy() if isinstance(value, Tensor) else value for name, value in stored.items()}

    @own_surroundings()
    def __setstate__(self, stored: dict[str, Any]) -> None:
        settings = dict(stored)
        names = ("rows", "mean", "sum_of_squares")
        rows, mean, squares = (as_tensor(np.asarray(settings.pop(name))) for name in names)
        state = linalg.State(rows, mean, squares, settings.pop("count"), settings.pop("weight"))
        self.__init__(state, array_type="numpy", **settings)  # type: ignore[misc]
