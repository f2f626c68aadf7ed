"""PatchGaussianDetector: how far the patches of an image lie from what normal images have at the same place."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import update_wrapper
from numbers import Real
from types import MethodType
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin, TransformerMixin, _fit_context
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from ipca_sklearn import linalg
from ipca_sklearn._batched_ipca import BatchedIncrementalPCA
from ipca_sklearn._devices import resolve_device
from ipca_sklearn._model import Model
from ipca_sklearn._samples import Samples, check_samples

# Scores of normal images kept for the threshold, at most: enough for any quantile above 1 in 1000.
MAX_CALIBRATION_SCORES = 8192
_PCA_PARAMETERS = set(BatchedIncrementalPCA().get_params()) - {"whiten"}


def _n_calibration_scores(n_samples: int) -> int:
    """Return how many of the latest scores set the threshold: early ones come from a poor model."""
    return min(MAX_CALIBRATION_SCORES, max(2, n_samples // 2))


class _MethodAndParameter:
    """A method that shares its name with a constructor parameter.

    Which distance is the score is the parameter `score`, and `score(X)` is what scikit-learn's model selection calls.
    The instance dictionary holds the parameter (`get_params` and `set_params` see it), the attribute is the method.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        update_wrapper(self, method)  # type: ignore[arg-type]

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self._method, instance)

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self._method.__name__] = value


class PatchGaussianDetector(  # type: ignore[call-arg]
    OutlierMixin, TransformerMixin, BaseEstimator, auto_wrap_output_keys=None
):
    """Anomaly detector with one truncated Gaussian per patch position, learnt from normal images in one pass.

    Parameters
    ----------
    n_components : int or None, default=16
        Directions kept per patch, k; None as in :class:`BatchedIncrementalPCA`.
    step_size : int or None, default=16
        Images per update, and per step of scoring.
    score : {"residual", "mahalanobis", "ppca"}, default="residual"
        Distance of a patch from its Gaussian, with z the projection divided by the standard deviations and r what the
        projection leaves: `"residual"` |r| (feature reconstruction error), `"mahalanobis"` |z| (paper, Eq. 3),
        `"ppca"` sqrt(|z|^2 + |r|^2 / noise_variance_). All of them read the same model: `set_params(score=...)` on a
        fitted detector changes the scores, but not `offset_`, which only learning sets. The attribute `score` is the
        method; `get_params()["score"]` is the parameter.
    centering : {"incremental", "deferred"}, default="incremental"
        As in :class:`BatchedIncrementalPCA`; `"deferred"` with `score="mahalanobis"` is the paper.
    n_oversamples, solver, svd_driver, dtype, device
        As in :class:`BatchedIncrementalPCA`.
    contamination : "auto" or float in (0, 0.5], default="auto"
        Share of *normal* images that `predict` may call anomalous. The threshold is set from scores that each step of
        training images got before the model learnt from it, so they are scores of unseen normal images, and no second
        pass is needed. `"auto"` puts it three robust standard deviations (1.4826 times the median absolute deviation)
        beyond their median, which needs fewer images than a small quantile.
    image_score : {"max", "mean"} or float in (0, 1], default="max"
        Score of an image from its map: the largest value, the mean, or the mean of this share of the largest values.
    smoothing : float, default=0.0
        Standard deviation in patches of a Gaussian blur of the maps (for `(n, H, W, m)` input), before the image score.

    Attributes
    ----------
    pca_ : BatchedIncrementalPCA
        What was learnt: `pca_.components_`, `pca_.mean_`, `pca_.noise_variance_`, ...
    offset_ : float
        `decision_function(X) = score_samples(X) - offset_`; minus infinity before two images have been seen.
    n_samples_seen_ : int
        Images learnt from.
    n_features_in_ : int
        m.
    feature_names_in_ : ndarray of shape (m,)
        Names of the columns, where X had string names.
    patch_shape_ : tuple of int
        `(H, W)`, `(P,)` or `()`.

    See Also
    --------
    BatchedIncrementalPCA : The model without the scores.
    PatchFeatureExtractor : Images to features, the step before this one in a pipeline.

    Notes
    -----
    Signs are scikit-learn's: `score_samples` and `decision_function` are higher for more normal images, `predict` is
    +1 for normal and -1 for anomalous. Only the maps of `transform` are larger where the image is more anomalous.

    Cost per image and patch: that of :class:`BatchedIncrementalPCA`, and 4 m k for a score. Memory: P (k + 2) m
    numbers, twice that during an update, and one step of features; it does not depend on the number of images.

    References
    ----------
    Lee, Nagai, Minezawa, "Memory-efficient and GPU-oriented visual anomaly detection with incremental dimension
    reduction". Ndiour, Ahuja, Tickoo, "Subspace modeling for fast out-of-distribution and anomaly detection", ICIP
    2022 (the residual).

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn import PatchGaussianDetector
    >>> rng = np.random.default_rng(0)
    >>> normal = rng.normal(size=(64, 4, 4, 8)) * [4, 2, 1, 1, 1, 1, 1, 1]     # 64 images, 4 x 4 patches
    >>> detector = PatchGaussianDetector(n_components=2).fit(normal)
    >>> defect = rng.normal(size=(1, 4, 4, 8)) * [4, 2, 1, 1, 1, 1, 1, 1]
    >>> defect[0, 1, 2] += 10
    >>> detector.predict(defect)
    array([-1])
    >>> row, column = np.unravel_index(detector.transform(defect)[0].argmax(), (4, 4))
    >>> print(row, column)
    1 2
    """

    _parameter_constraints: dict = {  # noqa: RUF012  (scikit-learn's own form)
        **{name: BatchedIncrementalPCA._parameter_constraints[name] for name in sorted(_PCA_PARAMETERS)},
        "score": [StrOptions(set(linalg.SCORES))],
        "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
        "image_score": [StrOptions({"max", "mean"}), Interval(Real, 0, 1, closed="right")],
        "smoothing": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        n_components: int | None = 16,
        *,
        step_size: int | None = 16,
        score: str = "residual",
        centering: str = "incremental",
        n_oversamples: int = 0,
        solver: str = "auto",
        svd_driver: str | None = None,
        dtype: Any = None,
        device: Any = None,
        contamination: Any = "auto",
        image_score: Any = "max",
        smoothing: float = 0.0,
    ) -> None:
        self.n_components = n_components
        self.step_size = step_size
        self.score = score
        self.centering = centering
        self.n_oversamples = n_oversamples
        self.solver = solver
        self.svd_driver = svd_driver
        self.dtype = dtype
        self.device = device
        self.contamination = contamination
        self.image_score = image_score
        self.smoothing = smoothing

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> PatchGaussianDetector:
        """Learn from the features of normal images, forgetting what was learnt before.

        Parameters
        ----------
        X : PatchFeatures, array-like or tensor of shape (n, H, W, m), (n, P, m) or (n, m)
            Finite. Read one step at a time.
        y : None
            Ignored: all images count as normal.

        Returns
        -------
        PatchGaussianDetector
            This estimator.

        Raises
        ------
        ValueError
            NaN or infinity, a shape that is not 2-D to 4-D, `n_components` larger than m, a device that is not there.
        """
        pca = BatchedIncrementalPCA(**self._pca_params())
        return self._learn(check_samples(self, X, reset=True), pca, np.empty(0))

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any = None) -> PatchGaussianDetector:
        """Go on learning from any number of normal images >= 1; parameters, result and errors as in `fit`.

        If anything goes wrong the detector stays as it was before the call.
        """
        if not hasattr(self, "pca_"):
            return self.fit(X)
        pca = copy.copy(self.pca_).set_params(**self._pca_params())
        return self._learn(check_samples(self, X, reset=False), pca, self._calibration_scores)

    def _pca_params(self) -> dict[str, Any]:
        mine = self.get_params()
        return {name: mine[name] for name in _PCA_PARAMETERS}

    def _learn(self, samples: Samples, pca: BatchedIncrementalPCA, scores: np.ndarray) -> PatchGaussianDetector:
        """Let the PCA take all steps, scoring each before it is learnt, and store the result when all is done."""
        if self.smoothing > 0 and len(samples.patch_shape) != 2:
            raise ValueError(
                f"smoothing={self.smoothing} needs X of shape (n, H, W, m), not patches of shape {samples.patch_shape}"
            )
        # Tensors stay where they are until the end: the host need not wait for a GPU at every step.
        seen: list[Tensor] = []
        n_before = pca.n_samples_seen_ if hasattr(pca, "n_samples_seen_") else 0
        total = n_before + samples.n_samples
        first_needed = total - _n_calibration_scores(total)

        def calibrate(model: Model | None, step: Tensor) -> None:
            n_learnt = model.state.count if model is not None else 0
            if n_learnt + len(step) <= first_needed:
                return  # more than that will have come after it
            if model is not None:
                seen.append(self._score_step(model, step, samples.patch_shape))
            elif len(step) > 1:
                # Nothing is known before the first step: each half of it is scored by what the other half teaches.
                # Its scores are the first to be dropped when more come.
                seen.extend(self._cross_scores(pca, samples, step))

        pca._learn(samples, getattr(pca, "_model", None), calibrate)
        self.pca_ = pca
        samples.set_features_in(self)
        self.patch_shape_ = pca.patch_shape_
        self._set_threshold(np.concatenate([scores, *(part.cpu().numpy() for part in seen)]))
        return self

    def _cross_scores(self, pca: BatchedIncrementalPCA, samples: Samples, step: Tensor) -> Iterator[Tensor]:
        halves = step.tensor_split(2)
        for learnt, scored in (halves, halves[::-1]):
            half = BatchedIncrementalPCA(**pca.get_params())
            half.partial_fit(learnt.unflatten(1, samples.patch_shape) if samples.patch_shape else learnt[:, 0])
            yield self._score_step(half._model, scored, samples.patch_shape)

    def _set_threshold(self, scores: np.ndarray) -> None:
        """Set `offset_` from scores of images that the model had not seen when it scored them."""
        self._calibration_scores = scores[-_n_calibration_scores(self.n_samples_seen_) :]
        scores = self._calibration_scores.astype(np.float64)
        if len(scores) == 0:
            warnings.warn(
                "one image is too few for a threshold: predict calls everything normal until more are learnt",
                UserWarning,
                stacklevel=4,
            )
            self.offset_ = -np.inf
        elif self.contamination == "auto":
            median = np.median(scores)
            self.offset_ = float(median - 3 * 1.4826 * np.median(np.abs(scores - median)))
        else:
            self.offset_ = float(np.quantile(scores, self.contamination))

    @property
    def n_samples_seen_(self) -> int:
        """Images learnt from."""
        return self.pca_.n_samples_seen_

    def merge(self, other: PatchGaussianDetector) -> PatchGaussianDetector:
        """Take in what another detector learnt from other images, as if this one had seen them too.

        The threshold is set from the scores that both have seen.

        Parameters
        ----------
        other : PatchGaussianDetector
            Fitted with the same `n_components`, `centering`, `score`, `image_score` and `smoothing` on features of the
            same shape; not changed.

        Returns
        -------
        PatchGaussianDetector
            This estimator, changed in place.

        Raises
        ------
        NotFittedError
            If one of the two is not fitted.
        TypeError, ValueError
            If `other` is of another class, or was learnt from other shapes or with other parameters.
        """
        check_is_fitted(self)
        if not isinstance(other, PatchGaussianDetector):
            raise TypeError(f"merge takes another PatchGaussianDetector, got {type(other).__name__}")
        check_is_fitted(other)
        mine, theirs = self.get_params(), other.get_params()
        for name in ("score", "image_score", "smoothing"):
            if mine[name] != theirs[name]:
                raise ValueError(
                    f"cannot merge detectors of different {name} {mine[name]!r} and {theirs[name]!r}: fit both alike"
                )
        self.pca_.merge(other.pca_)
        self._set_threshold(np.concatenate([other._calibration_scores, self._calibration_scores]))
        return self

    def transform(self, X: Any) -> Any:
        """Return the anomaly maps of images: larger where a patch is more anomalous.

        Parameters
        ----------
        X : PatchFeatures, array-like or tensor of shape (n, H, W, m), (n, P, m) or (n, m)
            Features of the shape that was learnt.

        Returns
        -------
        array or tensor of shape (n, H, W), (n, P) or (n, 1)
            Distances >= 0 in X's kind, floating dtype and device (numpy for PatchFeatures).

        Raises
        ------
        NotFittedError
            Before `fit` or `partial_fit`.
        ValueError
            Other shapes than learnt, NaN or infinity.
        """
        return self._map_steps(X, self._map_step)

    def score_samples(self, X: Any) -> Any:
        """Return how normal each image is: minus the image score of its map, so higher is more normal.

        Parameters
        ----------
        X : PatchFeatures, array-like or tensor of shape (n, H, W, m), (n, P, m) or (n, m)
            Features of the shape that was learnt.

        Returns
        -------
        array or tensor of shape (n,)

        Raises
        ------
        NotFittedError, ValueError
            As `transform`.
        """
        return self._map_steps(X, self._score_step)

    def decision_function(self, X: Any) -> Any:
        """Return `score_samples(X) - offset_`: negative is anomalous. Parameters and errors as `score_samples`."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Any:
        """Return +1 for normal and -1 for anomalous images. Parameters and errors as `score_samples`."""
        decision = self.decision_function(X)
        if isinstance(decision, Tensor):
            return torch.where(decision < 0, -1, 1)
        return np.where(decision < 0, -1, 1)

    @_MethodAndParameter
    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean log-likelihood of the patches of images under probabilistic PCA: higher fits better.

        For choosing parameters with normal images only: compare it on images that were not trained on.

        Parameters
        ----------
        X : PatchFeatures, array-like or tensor of shape (n, H, W, m), (n, P, m) or (n, m)
            Normal images' features, of the shape that was learnt.
        y : None
            Ignored.

        Returns
        -------
        float
            Natural logarithm of the density of the m features, averaged over images and patches (Tipping & Bishop,
            1999). Comparable between models of the same features only.

        Raises
        ------
        NotFittedError, ValueError
            As `transform`.
        """
        return float(np.mean(np.asarray(self._map_steps(X, self._likelihood_step), dtype=np.float64)))

    def _likelihood_step(self, model: Model, step: Tensor, patch_shape: tuple[int, ...]) -> Tensor:
        device = resolve_device(self.device, step.device, required=False)
        return linalg.log_likelihood(model.basis(device), step.to(device)).mean(1).cpu()

    @property
    def _distance(self) -> str:
        return vars(self)["score"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters of this estimator; `deep` has no effect."""
        return super().get_params(deep) | {"score": self._distance}

    def _map_steps(self, X: Any, function: Any) -> Any:
        check_is_fitted(self)
        samples = check_samples(self, X, reset=False)
        model = self.pca_._model
        return samples.map_steps(lambda step: function(model, step, samples.patch_shape), self.step_size)

    def _map_step(self, model: Model, step: Tensor, patch_shape: tuple[int, ...]) -> Tensor:
        """Return the maps (b, *patch_shape) of a step (b, P, m), (b, 1) for one PCA."""
        device = resolve_device(self.device, step.device, required=False)
        maps = linalg.patch_distances(model.basis(device), step.to(device), score=self._distance)
        maps = maps.unflatten(1, patch_shape or (1,))
        if self.smoothing > 0:
            # Four standard deviations to each side, or as far as the grid can be mirrored.
            kernel = [2 * min(round(4 * self.smoothing), side - 1) + 1 for side in reversed(patch_shape)]
            maps = gaussian_blur(maps[:, None], kernel, [self.smoothing] * 2)[:, 0]
        return maps

    def _score_step(self, model: Model, step: Tensor, patch_shape: tuple[int, ...]) -> Tensor:
        """Return the scores (b,) of a step (b, P, m), higher is more normal."""
        maps = self._map_step(model, step, patch_shape).flatten(1)
        if self.image_score == "max":
            return -maps.amax(1)
        if self.image_score == "mean":
            return -maps.mean(1)
        n_top = max(1, round(self.image_score * maps.shape[1]))
        return -maps.topk(n_top, dim=1).values.mean(1)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "pca_")
