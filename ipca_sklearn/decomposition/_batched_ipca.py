"""BatchedIncrementalPCA: thousands of small incremental PCAs behind one scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ipca_sklearn import linalg
from ipca_sklearn._utils._devices import resolve_device, resolve_dtype
from ipca_sklearn._utils._versions import VersionedMixin
from ipca_sklearn.decomposition._batches import Samples, check_samples
from ipca_sklearn.decomposition._fitted import Model
from ipca_sklearn.exceptions import ImageReadError

_TOO_LARGE = (
    "the values of X passed to {owner} are too large for their squares to be summed in {dtype}; divide X by a "
    "constant, or set dtype='float64'"
)

# Called with the model before a step (None before the first) and the step (b, P, m).
StepHook = Callable[[Model | None, Tensor], None]


class BatchedIncrementalPCA(VersionedMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Truncated PCA of one or of many data sets at once, learnt one step of samples at a time.

    For `(n, m)` input this is a drop-in for :class:`sklearn.decomposition.IncrementalPCA`. For `(n, P, m)` or
    `(n, H, W, m)` input, each of the P (or H*W) positions gets a PCA of its own and all of them are updated together
    by batched decompositions. numpy in, numpy out; torch in, torch out, on the same device and in the same dtype.

    Parameters
    ----------
    n_components : int or None, default=16
        Components to keep per PCA, k <= m. None keeps as many as the first step has samples, at most m.
    step_size : int or None, default=16
        Samples per update. Memory for one step is `step_size * P * m` numbers; larger steps cost less per sample and
        truncate less often. None takes all the samples of one call together: `fit` is then a regular PCA.
    centering : {"incremental", "deferred"}, default="incremental"
        `"incremental"` follows the running mean, as scikit-learn does. `"deferred"` is the method of the paper:
        uncentred updates, the mean taken out at the end; one of the directions is spent on the mean.
    n_oversamples : int, default=0
        Directions kept beyond k while learning and cut when read. They make the result of a long stream nearer to
        that of an exact PCA: memory and time grow as if k were `n_components + n_oversamples`.
    forgetting_factor : float in (0, 1], default=1.0
        For data that drift: what the weight of all samples seen is multiplied by for each new one, so that a sample
        which t samples of later steps came after counts `forgetting_factor ** t`, in the mean, the variances and the
        components. The past weighs as much as `1 / (1 - forgetting_factor)` samples at most; 1 forgets nothing.
    whiten : bool, default=False
        Divide the transformed values by the standard deviation of their component.
    solver : {"auto", "gram_eigh", "gram_svd", "svd"}, default="auto"
        Decomposition of a step's small matrix: symmetric eigenproblem of the Gram matrix (the fastest), its SVD (the
        paper's), or the SVD of the rows themselves (the slowest; accurate below sqrt(eps) of the largest singular
        value). `"auto"` is `"gram_eigh"`.
    svd_driver : {"gesvd", "gesvdj", "gesvda"} or None, default=None
        cuSOLVER routine for the two SVD solvers on a GPU, as in :func:`torch.linalg.svd`.
    dtype : {"float32", "float64"} or None, default=None
        What to compute in. None follows the first X: float32 for float32 and half precision, float64 for the rest.
    device : str, torch.device or None, default=None
        Where to compute: None is where X is, `"auto"` is a GPU if there is one. Data on another device is moved one
        step at a time.

    Attributes
    ----------
    components_ : array of shape (P, k, m), or (k, m) for 2-D input
        Orthonormal directions by decreasing variance. A row is zero where the samples seen so far have no variance
        left (fewer than k + 1 samples, or a lower rank): the missing directions come with more samples.
    explained_variance_ : array of shape (P, k) or (k,)
        Variance along each component, ddof 1 (with `forgetting_factor`: 1 of the sum of the weights).
    explained_variance_ratio_ : array of shape (P, k) or (k,)
        The same as a share of the total variance (0 where nothing varies).
    singular_values_ : array of shape (P, k) or (k,)
        `sqrt(explained_variance_ * (n_samples_seen_ - 1))`; with `forgetting_factor`, of the weighted samples.
    mean_, var_ : array of shape (P, m) or (m,)
        Mean and variance (ddof 0) of each feature.
    noise_variance_ : array of shape (P,), or float
        Variance per direction outside the components, (total - kept) / (m - k): the maximum likelihood estimate of
        probabilistic PCA; 0 for k = m. (IncrementalPCA divides by the number of discarded rows instead.)
    n_components_ : int
        k.
    n_samples_seen_ : int
        Samples learnt from.
    n_features_in_ : int
        m.
    feature_names_in_ : ndarray of shape (m,)
        Names of the columns, where the first X had string names.
    patch_shape_ : tuple of int
        `()`, `(P,)` or `(H, W)`: the shape of X between its first and its last axis.

    See Also
    --------
    sklearn.decomposition.IncrementalPCA : The same for one data set, on numpy arrays.
    ipca_sklearn.PatchGaussianDetector : Anomaly scores from such PCAs.

    Notes
    -----
    Cost of a step of b samples, per PCA: about (k + b)^2 m + k (k + b) m operations and a symmetric eigenproblem of
    size k + b (of size m where that is smaller). Memory: P k m numbers for the model, twice that during an update,
    whatever the number of samples. A failed call leaves the model as it was.

    References
    ----------
    Lee, Nagai, Minezawa, "Memory-efficient and GPU-oriented visual anomaly detection with incremental dimension
    reduction", Eq. 4-9 and Sec. 3.3. Ross, Lim, Lin, Yang, "Incremental learning for robust visual tracking", IJCV 77,
    2008. Tipping, Bishop, "Probabilistic principal component analysis", JRSS B 61, 1999.

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn import BatchedIncrementalPCA
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(100, 5, 8)) * np.arange(8, 0, -1)   # 100 samples at each of 5 positions
    >>> pca = BatchedIncrementalPCA(n_components=3).fit(X)
    >>> pca.components_.shape, pca.explained_variance_.shape, pca.transform(X).shape
    ((5, 3, 8), (5, 3), (100, 5, 3))
    >>> pca.partial_fit(X[:1]).n_samples_seen_
    101
    """

    _parameter_constraints: dict = {  # noqa: RUF012  (scikit-learn's own form)
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "step_size": [Interval(Integral, 1, None, closed="left"), None],
        "centering": [StrOptions(set(linalg.CENTERINGS))],
        "n_oversamples": [Interval(Integral, 0, None, closed="left")],
        "forgetting_factor": [Interval(Real, 0, 1, closed="right")],
        "whiten": ["boolean"],
        "solver": [StrOptions(set(linalg.SOLVERS))],
        "svd_driver": [StrOptions(set(linalg.SVD_DRIVERS)), None],
        "dtype": [StrOptions({"float32", "float64"}), type, np.dtype, torch.dtype, None],
        "device": [str, Integral, torch.device, None],
    }

    def __init__(
        self,
        n_components: int | None = 16,
        *,
        step_size: int | None = 16,
        centering: str = "incremental",
        n_oversamples: int = 0,
        forgetting_factor: float = 1.0,
        whiten: bool = False,
        solver: str = "auto",
        svd_driver: str | None = None,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        self.n_components = n_components
        self.step_size = step_size
        self.centering = centering
        self.n_oversamples = n_oversamples
        self.forgetting_factor = forgetting_factor
        self.whiten = whiten
        self.solver = solver
        self.svd_driver = svd_driver
        self.dtype = dtype
        self.device = device

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> BatchedIncrementalPCA:
        """Learn from X, forgetting what was learnt before.

        Parameters
        ----------
        X : array-like or tensor of shape (n, m), (n, P, m) or (n, H, W, m), or PatchFeatures
            Normal samples, finite. Anything with a shape, a dtype and slices (a memory map, an HDF5 data set) is read
            one step at a time.
        y : None
            Ignored.

        Returns
        -------
        BatchedIncrementalPCA
            This estimator.

        Raises
        ------
        ValueError
            NaN or infinity, a shape that is not 2-D to 4-D, `n_components` larger than m, a device that is not there,
            images of which none can be read, values whose squares overflow.
        """
        self._learn(check_samples(self, X, reset=True), None)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any = None) -> BatchedIncrementalPCA:
        """Go on learning from any number of samples >= 1; parameters, result and errors as in `fit`.

        `fit(X)` equals a loop of `partial_fit` over consecutive steps of `step_size` samples, bit for bit. If
        anything goes wrong the model stays as it was before the call.
        """
        model = getattr(self, "_model", None)
        self._learn(check_samples(self, X, reset=model is None), model)
        return self

    def _learn(self, samples: Samples, model: Model | None, on_step: StepHook | None = None) -> None:
        """Take all steps of `samples` on from `model` and, only when the last one is done, store the result."""
        if model is not None:
            self._check_unchanged(model)
        try:
            model = self._take_steps(samples, model, on_step)
        except torch.linalg.LinAlgError as error:
            samples.check_finite()  # NaN, which is not looked for at once on a GPU, is what the user can mend
            raise ValueError(_TOO_LARGE.format(owner=samples.owner, dtype=samples.dtype)) from error
        state = model.state
        for values in (state.scatter, *((state.rows,) if model.centering == "deferred" else ())):
            if values.numel() and not torch.isfinite(torch.stack(torch.aminmax(values))).all():
                raise ValueError(_TOO_LARGE.format(owner=samples.owner, dtype=values.dtype))
        self.patch_shape_ = samples.patch_shape
        samples.set_features_in(self)
        self._store(model)

    def _take_steps(self, samples: Samples, model: Model | None, on_step: StepHook | None) -> Model:
        made_here: list[linalg.State] = []
        for step in samples.steps(self.step_size):
            if model is None:
                model = self._new_model(samples, len(step))
            state = model.state
            device = resolve_device(self.device, step.device)
            step = step.to(device)
            if on_step is not None:
                on_step(model if state.count else None, step)
            spare = made_here.pop(0) if len(made_here) > 1 else None
            model = self._after_step(model, step, spare, samples.kind)
            made_here.append(model.state)
        if model is None:  # X has at least one sample, but all were skipped
            reason = next(iter(samples.source.skipped.values()))
            raise ImageReadError(f"none of the {samples.n_samples} images could be read, one of them because: {reason}")
        return model

    def _after_step(self, model: Model, step: Tensor, spare: linalg.State | None, kind: str) -> Model:
        """Return the model with a step added; the memory of `spare`, a state of nobody, may be used for it."""
        state = linalg.update(
            model.state.to(step.device),
            step,
            n_rows=model.n_components + self.n_oversamples,
            centering=model.centering,
            solver=self.solver,
            svd_driver=self.svd_driver,
            forgetting_factor=self.forgetting_factor,
            memory=None if spare is None else spare.rows,
        )
        return Model(state, model.n_components, model.centering, kind)

    def _check_unchanged(self, model: Model) -> None:
        for name, now, then in (
            ("n_components", self.n_components or model.n_components, model.n_components),
            ("centering", self.centering, model.centering),
        ):
            if now != then:
                raise ValueError(
                    f"{name} was changed from {then!r} to {now!r} after learning began; call fit to restart"
                )

    def _new_model(self, samples: Samples, first_step: int) -> Model:
        n_features = samples.n_features
        n_components = min(first_step, n_features) if self.n_components is None else self.n_components
        if n_components > n_features:
            raise ValueError(
                f"n_components={n_components} is larger than n_features={n_features}: a PCA of {n_features} feature(s) "
                f"has no more than {n_features} component(s); lower n_components"
            )
        state = linalg.empty_state(
            samples.n_patches,
            n_features,
            dtype=resolve_dtype(self.dtype, samples.dtype),
            device=resolve_device(self.device, samples.device),
        )
        return Model(state, n_components, self.centering, samples.kind)

    def _store(self, model: Model) -> None:
        self._model = model
        self.n_components_ = self._n_features_out = model.n_components
        self.n_samples_seen_ = model.state.count

    def transform(self, X: Any) -> Any:
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
        return self._map_steps(check_samples(self, X, reset=False), linalg.project, self.n_components_)

    def inverse_transform(self, X: Any) -> Any:
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
        samples = check_samples(self, X, reset=True)  # its width is k, not the m that was learnt
        if (*samples.patch_shape, samples.n_features) != (*self.patch_shape_, self.n_components_):
            raise ValueError(
                f"X has shape {(samples.n_samples, *samples.patch_shape, samples.n_features)}; expected n samples of "
                f"shape {(*self.patch_shape_, self.n_components_)}, as transform returns them"
            )
        return self._map_steps(samples, linalg.reconstruct, self.n_features_in_)

    def _map_steps(self, samples: Samples, function: Callable[..., Tensor], width: int) -> Any:
        def step_result(step: Tensor) -> Tensor:
            device = resolve_device(self.device, step.device, required=False)
            return function(self._model.basis(device), step.to(device), whiten=self.whiten)

        joined = samples.map_steps(step_result, self.step_size)
        return joined.reshape(samples.n_samples, *samples.patch_shape, width)

    def merge(self, other: BatchedIncrementalPCA) -> BatchedIncrementalPCA:
        """Take in what another estimator learnt from other samples, as if this one had seen them too.

        Exact where all the samples together have rank <= k (plus `n_oversamples`); else a truncation like that of one
        step. Any order and any tree of merges will do.

        Parameters
        ----------
        other : BatchedIncrementalPCA
            Fitted with the same `n_components` and `centering`, on samples of the same shape; not changed.

        Returns
        -------
        BatchedIncrementalPCA
            This estimator, changed in place.

        Raises
        ------
        NotFittedError
            If one of the two is not fitted.
        TypeError, ValueError
            If `other` is of another class, or was learnt from other shapes or with other parameters.

        Examples
        --------
        >>> import numpy as np
        >>> from ipca_sklearn import BatchedIncrementalPCA
        >>> X = np.random.default_rng(0).normal(size=(60, 4))
        >>> halves = [BatchedIncrementalPCA(n_components=4).fit(half) for half in (X[:20], X[20:])]
        >>> merged = halves[0].merge(halves[1])
        >>> bool(np.allclose(merged.explained_variance_, BatchedIncrementalPCA(4).fit(X).explained_variance_))
        True
        """
        check_is_fitted(self)
        if not isinstance(other, BatchedIncrementalPCA):
            raise TypeError(f"merge takes another BatchedIncrementalPCA, got {type(other).__name__}")
        check_is_fitted(other)
        mine, theirs = self._signature(), other._signature()
        if mine != theirs:
            differences = [f"{name} {mine[name]} and {theirs[name]}" for name in mine if mine[name] != theirs[name]]
            raise ValueError(f"cannot merge estimators of different {'; '.join(differences)}: fit both alike")
        self._store(self._merged(self._model, other._model))
        return self

    def _merged(self, mine: Model, theirs: Model) -> Model:
        state = linalg.merge(
            mine.state,
            theirs.state,
            n_rows=mine.n_components + self.n_oversamples,
            centering=mine.centering,
            solver=self.solver,
            svd_driver=self.svd_driver,
        )
        return Model(state, mine.n_components, mine.centering, mine.kind)

    def _signature(self) -> dict[str, Any]:
        """Return what two estimators must share to be merged."""
        return {
            "patch_shape_": self.patch_shape_,
            "n_features_in_": self.n_features_in_,
            "n_components_": self.n_components_,
            "centering": self._model.centering,
        }

    def get_covariance(self) -> Any:
        """Return the covariance of the model, components plus noise: (P, m, m), or (m, m) for 2-D input.

        P m^2 numbers: 0.8 GB in float32 for P = 3136, m = 256.
        """
        check_is_fitted(self)
        basis = self._model.basis()
        # A component that is missing yet must not subtract noise along a direction that it does not have.
        excess = (basis.variance - basis.noise_variance[:, None]).clamp_min(0)
        covariance = torch.bmm(basis.components.mT * excess[:, None], basis.components)
        covariance.diagonal(dim1=1, dim2=2).add_(basis.noise_variance[:, None])
        return self._read(covariance)

    def get_precision(self) -> Any:
        """Return the inverse of `get_covariance()`, which must be regular; the same shape and memory."""
        covariance = self.get_covariance()
        return torch.linalg.inv(covariance) if isinstance(covariance, Tensor) else np.linalg.inv(covariance)

    def _read(self, tensor: Tensor) -> Any:
        return self._model.read(tensor, one_pca=self.patch_shape_ == ())

    def _learned(self, name: str) -> Model:
        """Return the model, or say that attribute `name` comes with fitting (an AttributeError too, for hasattr)."""
        if not hasattr(self, "_model"):
            raise NotFittedError(f"{type(self).__name__} has no {name} yet: call fit or partial_fit first")
        return self._model

    @property
    def components_(self) -> Any:
        """Orthonormal directions by decreasing variance."""
        return self._read(self._learned("components_").basis().components)

    @property
    def explained_variance_(self) -> Any:
        """Variance along each component."""
        return self._read(self._learned("explained_variance_").basis().variance)

    @property
    def explained_variance_ratio_(self) -> Any:
        """Share of the total variance along each component."""
        model = self._learned("explained_variance_ratio_")
        total = model.state.scatter.sum(-1, keepdim=True) / model.state.degrees_of_freedom
        return self._read(model.basis().variance / torch.where(total > 0, total, 1))

    @property
    def singular_values_(self) -> Any:
        """Singular values of the centred samples."""
        model = self._learned("singular_values_")
        return self._read((model.basis().variance * model.state.degrees_of_freedom).sqrt())

    @property
    def mean_(self) -> Any:
        """Mean of each feature."""
        return self._read(self._learned("mean_").state.mean)

    @property
    def var_(self) -> Any:
        """Variance (ddof 0) of each feature."""
        model = self._learned("var_")
        return self._read(model.state.scatter / model.state.weight)

    @property
    def noise_variance_(self) -> Any:
        """Variance per direction outside the components."""
        return self._read(self._learned("noise_variance_").basis().noise_variance)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_model")
