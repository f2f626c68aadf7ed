"""What the PCAs share: the loop over the steps of X, and how a result is stored, merged and read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ipca_sklearn import linalg
from ipca_sklearn._utils._arrays import at_patches
from ipca_sklearn._utils._devices import memory_of, resolve_device, resolve_dtype
from ipca_sklearn._utils._estimators import PatchTransformer, set_learnt
from ipca_sklearn._utils._files import shown_bytes
from ipca_sklearn._utils._layouts import check_mergeable
from ipca_sklearn._utils._sklearn_compat import FitProgress, fit_context, validate_parameters
from ipca_sklearn._utils._turns import in_turn, of_one_state, snapshot
from ipca_sklearn._utils._typing import ArrayLike, DeviceLike, DTypeLike
from ipca_sklearn.decomposition._batches import StepReader, read_steps, same_region
from ipca_sklearn.decomposition._fitted import Fitted

_Self = TypeVar("_Self", bound="BasePCA")


class MemoryNeed(NamedTuple):
    """Memory that learning takes, about, in bytes.

    Parameters
    ----------
    model : int
        What is learnt: it is kept, and stored in files.
    learning : int
        All that a fit holds at once: the model, its next version, what scores a step, the step, and what computes the
        features (the network with a batch of images).
    """

    model: int
    learning: int


class BasePCA(PatchTransformer):
    """Base of the estimators that learn one Gaussian per patch, one step of samples at a time.

    A subclass says how one step is added (`_learning`) and how two results are merged (`_merged`).
    """

    _learning: type[Learning]
    fitted_: Any  # a Fitted of the subclass' own kind
    step_size: int | None
    dtype: DTypeLike
    device: DeviceLike
    patch_shape_: tuple[int, ...]
    region_: np.ndarray | None = None
    n_features_in_: int
    n_components_: int
    n_samples_seen_: int

    @in_turn
    @fit_context(prefer_skip_nested_validation=True)
    def fit(self: _Self, X: ArrayLike, y: Any = None) -> _Self:
        """Learn from X and forget what was learnt before.

        Parameters
        ----------
        X : array-like or tensor of shape (n, m), (n, P, m) or (n, H, W, m), or PatchFeatures
            Normal samples, finite. Anything with a shape, a dtype and slices (a memory map, an HDF5 data set) is read
            one step at a time.
        y : None
            Ignored.

        Returns
        -------
        estimator
            This estimator.

        Raises
        ------
        ValueError
            NaN or infinity, a shape that is not 2-D to 4-D, `n_components` larger than m, a device that is not there,
            no readable image, values whose squares overflow.
        """
        steps = read_steps(self, X, reset=True)
        return self._learn(steps, None, FitProgress(self, steps.count(self.step_size), X, y))

    @in_turn
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self: _Self, X: ArrayLike, y: Any = None) -> _Self:
        """Go on learning from any number of samples >= 1; parameters, result and errors as in `fit`.

        `fit(X)` equals a loop of `partial_fit` over consecutive steps of `step_size` samples, bit for bit. If
        anything goes wrong the model stays as it was before the call.
        """
        validate_parameters(self)  # fit_context does it before the first call only
        fitted = getattr(self, "fitted_", None)
        steps = read_steps(self, X, reset=fitted is None)
        return self._learn(steps, fitted, FitProgress(self, steps.count(self.step_size), X, y))

    def memory_needed(self, X: ArrayLike) -> MemoryNeed:
        """Return about how much memory `fit` takes for X, of which only shape and dtype count.

        Parameters
        ----------
        X : array-like or tensor of shape (n, m), (n, P, m) or (n, H, W, m), or PatchFeatures
            Nothing is computed from it.

        Returns
        -------
        MemoryNeed
            `model` and `learning`, in bytes. A fit that needs more than the machine has raises a MemoryError before
            its first step.
        """
        validate_parameters(self)
        return memory_needed(self, read_steps(self, X, reset=True))

    @abstractmethod
    def _numbers_per_feature(self, n_samples: int, n_features: int, group: int) -> tuple[float, float, float]:
        """Return numbers per feature of a Gaussian: kept and held while learning, both in the dtype, and in float64."""

    def _learn(self: _Self, steps: StepReader, fitted: Fitted | None, progress: FitProgress) -> _Self:
        """Store `fitted` (None: nothing) with all steps added."""
        if steps.n_copies:
            raise ValueError(
                f"{type(self).__name__} learns no augmented copies of images: set n_augmented=0, or learn with a "
                "PatchGaussianDetector"
            )
        check_memory(self, steps)
        learning = Learning.of(self, fitted)
        with steps.overflow_named():
            for step in steps.read(self.step_size):
                learning.advance(step)
                progress.step()
        if learning.fitted is None:  # X has at least one sample, but all of them were skipped
            raise steps.unreadable()
        learning.store(steps)
        progress.end()
        return self

    @of_one_state
    def transform(self, X: ArrayLike) -> Any:
        """Project X on the components.

        Parameters
        ----------
        X : array-like or tensor of shape (n, m), (n, P, m) or (n, H, W, m), or PatchFeatures
            Samples of the shape that was learnt.

        Returns
        -------
        array or tensor of shape (n, k), (n, P, k) or (n, H, W, k)
            In X's kind, floating dtype and device.

        Raises
        ------
        NotFittedError
            Before `fit` or `partial_fit`.
        ValueError
            Other shapes than learnt, NaN or infinity.
        """
        check_is_fitted(self)
        return self._map_steps(read_steps(self, X, reset=False), linalg.project, self.n_components_)

    @of_one_state
    def inverse_transform(self, X: ArrayLike) -> Any:
        """Return the samples that coordinates stand for: `(n, ..., k)` to `(n, ..., m)`.

        Parameters
        ----------
        X : array-like or tensor of shape (n, k), (n, P, k) or (n, H, W, k)
            As from `transform`.

        Returns
        -------
        array or tensor of shape (n, m), (n, P, m) or (n, H, W, m)
            In X's kind, floating dtype and device.

        Raises
        ------
        NotFittedError
            Before `fit` or `partial_fit`.
        ValueError
            Other shapes than `transform` gives, NaN or infinity.
        """
        check_is_fitted(self)
        steps = read_steps(self, X, reset=True)  # its width is k, not the m that was learnt
        steps.region = self.region_
        if (*steps.patch_shape, steps.n_features) != (*self.patch_shape_, self.n_components_):
            raise ValueError(
                f"X has shape {(steps.n_samples, *steps.patch_shape, steps.n_features)}; expected n samples of "
                f"shape {(*self.patch_shape_, self.n_components_)}, as transform returns them"
            )
        return self._map_steps(steps, linalg.reconstruct, self.n_features_in_)

    def _map_steps(self, steps: StepReader, function: Callable[..., Tensor], width: int) -> Any:
        whiten = getattr(self, "whiten", False)

        def step_result(step: Tensor) -> Tensor:
            device = resolve_device(self.device, step.device, required=False)
            return function(self.fitted_.basis(device), step.to(device), whiten=whiten)

        joined = steps.map_steps(step_result, self.step_size)
        if self.region_ is None:
            return joined.reshape(steps.n_samples, *steps.patch_shape, width)
        placed = at_patches(joined if isinstance(joined, Tensor) else torch.from_numpy(joined), self.region_)
        return placed if isinstance(joined, Tensor) else placed.numpy()

    @in_turn
    def _merge(self: _Self, other: Any, kind: type[BasePCA]) -> _Self:
        """Take in what `other`, which must be a `kind`, learnt from other samples."""
        check_is_fitted(self)
        if not isinstance(other, kind):
            raise TypeError(f"merge takes another {kind.__name__}, got {type(other).__name__}")
        check_is_fitted(other)
        other = snapshot(other)
        check_mergeable(self, other)
        mine, theirs = self._signature(), other._signature()
        if not same_region(self.region_, other.region_):
            raise ValueError("cannot merge estimators of different regions of interest: fit both alike")
        differences = [f"{name} {mine[name]} and {theirs[name]}" for name in mine if mine[name] != theirs[name]]
        if differences:
            raise ValueError(f"cannot merge estimators of different {'; '.join(differences)}: fit both alike")
        names = {name: value for name, value in vars(self).items() if name.endswith("_in_")}
        merged = self._merged(self.fitted_, other.fitted_)
        array_type = self.fitted_.array_type
        shape = {"patch_shape_": self.patch_shape_, "region_": self.region_}
        set_learnt(self, shape | names | _attributes(merged, array_type))
        return self

    @abstractmethod
    def _merged(self, mine: Any, theirs: Any) -> Any:
        """Return what both know together."""

    def _signature(self) -> dict[str, Any]:
        """Return what two estimators must share to be merged."""
        return {
            "patch_shape_": self.patch_shape_,
            "n_features_in_": self.n_features_in_,
            "n_components_": self.n_components_,
        }

    def _read(self, tensor: Tensor) -> Any:
        return self.fitted_.read(tensor, one_pca=self.patch_shape_ == ())

    def _known(self, name: str) -> Any:
        """Return what was learnt, or say that attribute `name` comes with fitting (an AttributeError, for hasattr)."""
        if not hasattr(self, "fitted_"):
            raise NotFittedError(f"{type(self).__name__} has no {name} yet: call fit or partial_fit first")
        return self.fitted_

    @property
    def components_(self) -> Any:
        """Orthonormal directions by decreasing variance."""
        return self._read(self._known("components_").basis().components)

    @property
    def explained_variance_(self) -> Any:
        """Variance along each component."""
        return self._read(self._known("explained_variance_").basis().variance)

    @property
    def explained_variance_ratio_(self) -> Any:
        """Share of the total variance along each component."""
        fitted = self._known("explained_variance_ratio_")
        total = fitted.state.sum_of_squares.sum(-1, keepdim=True) / fitted.state.degrees_of_freedom
        return self._read((fitted.basis().variance / torch.where(total > 0, total, 1)).to(fitted.dtype))

    @property
    def singular_values_(self) -> Any:
        """Singular values of the centred samples."""
        fitted = self._known("singular_values_")
        return self._read((fitted.basis().variance * fitted.state.degrees_of_freedom).sqrt())

    @property
    def mean_(self) -> Any:
        """Mean of each feature."""
        fitted = self._known("mean_")
        return self._read(fitted.state.mean.to(fitted.dtype))

    @property
    def var_(self) -> Any:
        """Variance (ddof 0) of each feature."""
        fitted = self._known("var_")
        return self._read((fitted.state.sum_of_squares / fitted.state.weight).to(fitted.dtype))

    @property
    def noise_variance_(self) -> Any:
        """Variance per direction outside the components."""
        return self._read(self._known("noise_variance_").basis().noise_variance)

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "fitted_")


class Learning(ABC):
    """A fit in progress: what is known so far, and the PCA that says how more is learnt, in groups as of `Fitted`."""

    def __init__(self, pca: Any, fitted: Any, group: int) -> None:
        self.fitted = fitted
        self._pca = pca
        self._group = group
        self._start = fitted

    @classmethod
    def of(cls, pca: BasePCA, fitted: Fitted | None, group: int = 1) -> Learning:
        """Return a fit that goes on from what is known (None: nothing), which does not change."""
        return pca._learning(pca, fitted, group)

    @abstractmethod
    def advance(self, step: Any) -> None:
        """Learn a step (b, P, m). Memory of what this object has made may be overwritten."""

    @property
    def _may_overwrite(self) -> bool:
        """Whether the state is not the caller's own start."""
        return self.fitted is None or self.fitted is not self._start

    def store(self, steps: StepReader) -> None:
        """Make what was learnt from `steps` the result of the PCA, unless an error says what is wrong with it."""
        fitted = self.fitted
        if fitted.overflowed:
            raise steps.overflow(fitted.dtype)
        fitted.check_share()
        shape = {"patch_shape_": steps.patch_shape, "region_": steps.region, **steps.features_in}
        set_learnt(self._pca, shape | _attributes(fitted, steps.array_type))


def memory_needed(pca: BasePCA, steps: StepReader, *, n_kept: int = 0, n_gaussians: int | None = None) -> MemoryNeed:
    """Return the memory that learning takes, if `n_kept` samples are kept besides and patches share `n_gaussians`."""
    dtype = resolve_dtype(pca.dtype, steps.dtype)
    n_in_step = steps.n_samples if pca.step_size is None else min(pca.step_size, steps.n_samples)
    n_gaussians = n_gaussians or steps.n_patches
    n_of_each = 1 + steps.n_copies
    n_in_step = max(n_in_step, n_of_each)
    group = -(-steps.n_patches // n_gaussians) * n_of_each
    kept, held, sums = pca._numbers_per_feature(n_in_step * group // n_of_each, steps.n_features, group)
    model = n_gaussians * steps.n_features * (dtype.itemsize * kept + 8 * sums)
    learning = n_gaussians * steps.n_features * (dtype.itemsize * held + 3 * 8 * sums)
    if not steps.by_bands:  # whose source counts what it holds
        # Measured: kept samples are held 2.8 times.
        learning += steps.n_patches * steps.n_features * dtype.itemsize * (n_in_step + 3 * n_kept * n_of_each)
    return MemoryNeed(round(model), round(learning) + steps.memory_needed)


def check_memory(pca: BasePCA, steps: StepReader, *, n_kept: int = 0, n_gaussians: int | None = None) -> None:
    """Raise a MemoryError if learning from steps needs more memory than is known to be there; see `memory_needed`."""
    need = memory_needed(pca, steps, n_kept=n_kept, n_gaussians=n_gaussians)
    device = resolve_device(pca.device, steps.device)
    there_is = memory_of(device)  # all of it, not what is free: other programs may give theirs back
    if there_is is not None and need.learning > there_is:
        raise MemoryError(
            f"{steps.owner}: learning P = {steps.n_patches} patches of m = {steps.n_features} features needs about "
            f"{shown_bytes(need.learning)} of memory, {shown_bytes(need.model)} of it for the model; "
            f"{'this machine' if device.type == 'cpu' else device} has {shown_bytes(there_is)}. Lower n_components or "
            "step_size or, of PatchFeatureExtractor, image_size, grid_size or batch_size; inspect a region=; or take "
            "fewer features (layers, n_random_features of PatchGaussianDetector)"
        )


def _attributes(fitted: Fitted, array_type: str) -> dict[str, Any]:
    return {
        "fitted_": fitted.read_as(array_type),
        "n_components_": fitted.n_components,
        "n_samples_seen_": fitted.state.count,
    }
