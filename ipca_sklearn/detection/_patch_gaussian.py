"""PatchGaussianDetector: how far the patches of an image lie from what normal images have at the same place."""

from __future__ import annotations

import copy
import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin, TransformerMixin, _fit_context, clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ipca_sklearn import linalg
from ipca_sklearn._utils._devices import resolve_device
from ipca_sklearn._utils._versions import VersionedMixin
from ipca_sklearn.decomposition._batched_ipca import BatchedIncrementalPCA
from ipca_sklearn.decomposition._batches import Samples, check_samples
from ipca_sklearn.decomposition._fitted import Model
from ipca_sklearn.decomposition._full_covariance import FullCovariance
from ipca_sklearn.detection._calibration import MAX_IMAGES, Calibration, no_calibration, tails, window
from ipca_sklearn.detection._map_ops import image_scores, smooth_maps
from ipca_sklearn.detection._method_and_parameter import MethodAndParameter

_PCA_PARAMETERS = set(BatchedIncrementalPCA().get_params()) - {"whiten"}
_FULL_PARAMETERS = set(FullCovariance().get_params())


class PatchGaussianDetector(  # type: ignore[call-arg]
    VersionedMixin, OutlierMixin, TransformerMixin, BaseEstimator, auto_wrap_output_keys=None
):
    """Anomaly detector with one truncated Gaussian per patch position, learnt from normal images in one pass.

    Parameters
    ----------
    n_components : int or None, default=16
        Directions kept per patch, k; None as in :class:`BatchedIncrementalPCA`.
    step_size : int or None, default=16
        Images per update, and per step of scoring.
    score : {"factor_analysis", "residual", "mahalanobis", "ppca"}, default="factor_analysis"
        Distance of a patch from its Gaussian, with z the projection divided by the standard deviations and r what the
        projection leaves: `"mahalanobis"` is the norm of z (paper, Eq. 3), `"residual"` that of r (feature
        reconstruction error), `"ppca"` is `sqrt(z^2 + r^2 / noise_variance_)` of these norms, `"factor_analysis"`
        `sqrt(z^2 + sum_j r_j^2 / noise_j)`, with the noise of each feature j at each patch. All of them read the same
        model: `set_params(score=...)` on a fitted detector changes the scores, but not `offset_`, which only learning
        sets. The attribute `score` is the method; `get_params()["score"]` is the parameter.
    noise_shrinkage : float in [0, 1], default=0.5
        For `score="factor_analysis"`: how far the noise of a patch is moved from its own estimate (0) to the mean of
        all patches (1). Few images say little about one place, and a place that hardly ever varied must not shout at
        the first change (objects that move); but at the edge of the image, or where the texture is strong, noise is
        larger for good. Half way is near the best on aligned and on unaligned images (docs/accuracy.md).
    covariance : {"low_rank", "full"}, default="low_rank"
        `"full"` keeps the whole covariance matrix of each patch, P m^2 numbers, and adds `ridge` to its diagonal: the
        baseline PaDiM, with `n_random_features=100`. It needs `score="mahalanobis"`, and ignores `n_components`,
        `centering`, `n_oversamples`, `solver` and `svd_driver`.
    n_random_features : int or None, default=None
        Learn from so many randomly chosen features of X; None is all.
    ridge : float, default=0.01
        For `covariance="full"`, in the units of the squared features.
    random_state : int, RandomState or None, default=None
        For `n_random_features`.
    centering : {"incremental", "deferred"}, default="incremental"
        As in :class:`BatchedIncrementalPCA`; `"deferred"` with `score="mahalanobis"` is the paper.
    n_oversamples, forgetting_factor, solver, svd_driver, dtype, device
        As in :class:`BatchedIncrementalPCA`. With `forgetting_factor` the threshold follows the latest images too.
    contamination : "auto" or float in (0, 0.5], default="auto"
        Share of *normal* images, not learnt from, that `predict` may call anomalous. `"auto"` puts the threshold three
        robust standard deviations (1.4826 times the median absolute deviation) beyond the median of their scores,
        which needs fewer images than a small quantile.
    calibration : "prequential" or float in (0, 0.5], default="prequential"
        Where the scores of unseen normal images come from, of which thresholds and p-values are made, without a
        second pass. `"prequential"`: what each step of training images scored before the model learnt from it; all
        images are learnt from, and the later half of the scores is kept. A number: the last share of the images of
        each call is not learnt from but scored at its end. That costs images and makes the p-values valid for any
        number of them, if the images of one `fit` come in random order.
    pixel_contamination : "image" or float in (0, 0.5], default="image"
        The same for the patches of a map, which `predict_masks` marks: share of the patches of normal images that may
        be marked; `"image"` lets the share `contamination` of normal images have any.
    image_score : {"max", "mean"} or float in (0, 1], default="max"
        Score of an image from its map: the largest value, the mean, or the mean of this share of the largest values.
    smoothing : float, default=0.0
        Standard deviation in patches of a Gaussian blur of the maps (for `(n, H, W, m)` input) before the image score.
        PaDiM's is 1 (4 pixels). Good for outlines of large defects, bad for defects of a single patch.

    Attributes
    ----------
    pca_ : BatchedIncrementalPCA
        What was learnt: `pca_.components_`, `pca_.mean_`, `pca_.noise_variance_`, ... With `covariance="full"` all
        directions are components, and there is `pca_.covariance_`.
    offset_ : float
        `decision_function(X) = score_samples(X) - offset_`; minus infinity before two images have been seen.
    map_threshold_ : float
        Patches with larger values of the map are anomalous; infinity before two images have been seen.
    calibration_scores_ : ndarray of shape (n_calibration,)
        Scores of unseen normal images, of which `offset_` was made, in the order in which they came.
    n_samples_seen_ : int
        Images learnt from.
    n_features_in_ : int
        m.
    feature_names_in_ : ndarray of shape (m,)
        Names of the columns, where X had string names.
    feature_indices_ : ndarray of shape (n_random_features,)
        The features learnt from, ascending; only with `n_random_features`.
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
    `covariance="full"` costs m^2 per image and patch, and m^3 per patch for the scores of each step.

    References
    ----------
    Lee, Nagai, Minezawa, "Memory-efficient and GPU-oriented visual anomaly detection with incremental dimension
    reduction". Ndiour, Ahuja, Tickoo, "Subspace modeling for fast out-of-distribution and anomaly detection", ICIP
    2022 (the residual). Defard, Setkov, Loesch, Audigier, "PaDiM: a patch distribution modeling framework for anomaly
    detection and localization", ICPR 2021 (random features and full covariance). Rubin, Thayer, "EM algorithms for ML
    factor analysis", Psychometrika 47, 1982 (a noise of its own for each feature); here the loadings are the principal
    components, and the noise follows from the variances without iterating. Dawid, "Present position and potential
    developments: the prequential approach", JRSS A 147, 1984. Vovk, Gammerman, Shafer, "Algorithmic learning in a
    random world", 2005 (conformal p-values).

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
        "noise_shrinkage": [Interval(Real, 0, 1, closed="both")],
        "covariance": [StrOptions({"low_rank", "full"})],
        "n_random_features": [Interval(Integral, 1, None, closed="left"), None],
        "ridge": FullCovariance._parameter_constraints["ridge"],
        "random_state": ["random_state"],
        "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
        "calibration": [StrOptions({"prequential"}), Interval(Real, 0, 0.5, closed="right")],
        "pixel_contamination": [StrOptions({"image"}), Interval(Real, 0, 0.5, closed="right")],
        "image_score": [StrOptions({"max", "mean"}), Interval(Real, 0, 1, closed="right")],
        "smoothing": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        n_components: int | None = 16,
        *,
        step_size: int | None = 16,
        score: str = "factor_analysis",
        noise_shrinkage: float = 0.5,
        centering: str = "incremental",
        n_oversamples: int = 0,
        forgetting_factor: float = 1.0,
        solver: str = "auto",
        svd_driver: str | None = None,
        dtype: Any = None,
        device: Any = None,
        contamination: Any = "auto",
        calibration: Any = "prequential",
        pixel_contamination: Any = "image",
        image_score: Any = "max",
        smoothing: float = 0.0,
        covariance: str = "low_rank",
        n_random_features: int | None = None,
        ridge: float = 0.01,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.step_size = step_size
        self.score = score
        self.noise_shrinkage = noise_shrinkage
        self.centering = centering
        self.n_oversamples = n_oversamples
        self.forgetting_factor = forgetting_factor
        self.solver = solver
        self.svd_driver = svd_driver
        self.dtype = dtype
        self.device = device
        self.contamination = contamination
        self.calibration = calibration
        self.pixel_contamination = pixel_contamination
        self.image_score = image_score
        self.smoothing = smoothing
        self.covariance = covariance
        self.n_random_features = n_random_features
        self.ridge = ridge
        self.random_state = random_state

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
        samples = check_samples(self, X, reset=True)
        columns = self._choose_features(samples.n_features)
        return self._learn(samples, columns, self._new_pca(), no_calibration(samples.n_patches))

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any = None) -> PatchGaussianDetector:
        """Go on learning from any number of normal images >= 1; parameters, result and errors as in `fit`.

        If anything goes wrong the detector stays as it was before the call.
        """
        if not hasattr(self, "pca_"):
            return self.fit(X)
        pca = copy.copy(self.pca_).set_params(**self._pca_params())
        return self._learn(check_samples(self, X, reset=False), self._columns(), pca, self._calibration)

    def _pca_params(self) -> dict[str, Any]:
        mine = self.get_params()
        return {name: mine[name] for name in (_FULL_PARAMETERS if self.covariance == "full" else _PCA_PARAMETERS)}

    def _new_pca(self) -> BatchedIncrementalPCA:
        if self.covariance == "low_rank":
            return BatchedIncrementalPCA(**self._pca_params())
        if self._distance != "mahalanobis":
            raise ValueError(
                f"covariance='full' leaves no residual, so score={self._distance!r} cannot be had; set "
                "score='mahalanobis'"
            )
        return FullCovariance(**self._pca_params())

    def _columns(self) -> np.ndarray | None:
        return getattr(self, "feature_indices_", None)

    def _choose_features(self, n_features: int) -> np.ndarray | None:
        if self.n_random_features is None:
            return None
        if self.n_random_features > n_features:
            raise ValueError(f"n_random_features={self.n_random_features} of n_features={n_features}: lower it")
        rng = check_random_state(self.random_state)
        return np.sort(rng.choice(n_features, self.n_random_features, replace=False))

    def _learn(
        self, samples: Samples, columns: np.ndarray | None, pca: BatchedIncrementalPCA, calibration: Calibration
    ) -> PatchGaussianDetector:
        """Let the PCA take all steps, score images before they are learnt, and store the result when all is done."""
        if self.smoothing > 0 and len(samples.patch_shape) != 2:
            raise ValueError(
                f"smoothing={self.smoothing} needs X of shape (n, H, W, m), not patches of shape {samples.patch_shape}"
            )
        chosen = samples.take(columns)
        # Tensors stay where they are until the end: the host need not wait for a GPU at every step.
        seen: list[Tensor] = []
        if self.calibration == "prequential":
            self._learn_prequentially(chosen, pca, seen)
        else:
            n_held_out = min(max(1, round(self.calibration * chosen.n_samples)), chosen.n_samples - 1)
            learnt, held_out = chosen.split(chosen.n_samples - n_held_out)
            pca._learn(learnt, getattr(pca, "_model", None))
            for step in held_out.steps(self.step_size) if n_held_out else ():
                seen.append(self._summarize(pca._model, step, chosen.patch_shape, pca._model.state.weight))
        self.pca_ = pca
        if columns is not None:
            self.feature_indices_ = columns
        elif hasattr(self, "feature_indices_"):
            del self.feature_indices_
        samples.set_features_in(self)
        self.patch_shape_ = pca.patch_shape_
        self._set_thresholds(calibration.extended(part.cpu().numpy() for part in seen))
        return self

    def _learn_prequentially(self, samples: Samples, pca: BatchedIncrementalPCA, seen: list[Tensor]) -> None:
        """Learn all samples, and add to `seen` what each step was like before it was learnt."""
        n_before = getattr(pca, "n_samples_seen_", 0)
        total = n_before + samples.n_samples
        first_needed = total - window(total, total)

        def calibrate(model: Model | None, step: Tensor) -> None:
            n_learnt = model.state.count if model is not None else 0
            if n_learnt + len(step) <= first_needed and not samples.may_skip:
                return  # more than that will have come after it
            del seen[:-MAX_IMAGES]
            if model is not None:
                seen.append(self._summarize(model, step, samples.patch_shape, model.state.weight))
            elif len(step) > 1:
                # Nothing is known before the first step: each half of it is scored by what the other half teaches.
                # Its scores are the first to be dropped when more come. They count as scores by a model of the whole
                # step: a model of 8 images is too poor to extrapolate from.
                halves = step.tensor_split(2)
                for learnt, scored in (halves, halves[::-1]):
                    half = clone(pca)
                    half.partial_fit(learnt.unflatten(1, samples.patch_shape) if samples.patch_shape else learnt[:, 0])
                    seen.append(self._summarize(half._model, scored, samples.patch_shape, len(step)))

        pca._learn(samples, getattr(pca, "_model", None), calibrate)

    def _set_thresholds(self, calibration: Calibration) -> None:
        """Set the thresholds from images that the model had not learnt from when it scored them."""
        state = self.pca_._model.state
        prequential = self.calibration == "prequential"
        self._calibration = calibration.latest(window(state.count, state.weight) if prequential else MAX_IMAGES)
        self._reference = self._calibration.seen_by(state.weight)
        if not len(self._reference.scores):
            warnings.warn(
                "one image is too few for a threshold: predict calls everything normal until more are learnt",
                UserWarning,
                stacklevel=4,
            )
        self.offset_ = self._reference.offset(self.contamination)
        self.map_threshold_ = self._reference.map_threshold(self.contamination, self.pixel_contamination)

    @property
    def calibration_scores_(self) -> np.ndarray:
        """Scores of unseen normal images."""
        check_is_fitted(self)
        return self._reference.scores

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
            Fitted with the same parameters on features of the same shape; not changed.

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
        for name in ("score", "noise_shrinkage", "image_score", "smoothing", "covariance", "ridge"):
            if mine[name] != theirs[name]:
                raise ValueError(
                    f"cannot merge detectors of different {name} {mine[name]!r} and {theirs[name]!r}: fit both alike"
                )
        if not np.array_equal(np.asarray(self._columns()), np.asarray(other._columns())):
            raise ValueError(
                "cannot merge detectors that learnt from different random features: fit both with the same integer "
                "random_state"
            )
        self.pca_.merge(other.pca_)
        self._set_thresholds(other._calibration.extended([self._calibration.summaries]))
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
            NaN for images that could not be read (`on_error="skip"` of PatchFeatureExtractor).

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
        """Return +1 for normal and -1 for anomalous images. Parameters and errors as `score_samples`.

        Images that could not be read (`on_error="skip"`) are -1: someone should look.
        """
        decision = self.decision_function(X)
        if isinstance(decision, Tensor):
            return torch.where(decision >= 0, 1, -1)
        return np.where(decision >= 0, 1, -1)

    def predict_masks(self, X: Any) -> Any:
        """Return which patches are anomalous: `transform(X) > map_threshold_`.

        Parameters and errors as `transform`.

        Returns
        -------
        array or tensor of bool, shape (n, H, W), (n, P) or (n, 1)
        """
        return self.transform(X) > self.map_threshold_

    def score_maps(self, maps: Any) -> Any:
        """Return the scores of images from their maps, where both are wanted: the features are read once.

        Parameters
        ----------
        maps : array or tensor of shape (n, H, W), (n, P) or (n, 1)
            As from `transform`.

        Returns
        -------
        array or tensor of shape (n,)
            `score_maps(transform(X))` equals `score_samples(X)`.

        Raises
        ------
        ValueError
            Maps of other shapes than `transform` gives.
        """
        check_is_fitted(self)
        shape = self.patch_shape_ or (1,)
        if tuple(maps.shape[1:]) != shape:
            raise ValueError(f"maps of shape {tuple(maps.shape)}; expected (n, {', '.join(map(str, shape))})")
        if isinstance(maps, Tensor):
            return -image_scores(maps, self.image_score)
        return -image_scores(torch.from_numpy(np.ascontiguousarray(maps)), self.image_score).numpy()

    def p_values(self, X: Any = None, *, scores: Any = None) -> np.ndarray:
        """Return the p-value of each image: how often a normal image scores as low.

        Calling images with p <= a anomalous calls a share a of normal images so, at most, for every a at once.

        Parameters
        ----------
        X : PatchFeatures, array-like or tensor of shape (n, H, W, m), (n, P, m) or (n, m)
            Features of the shape that was learnt. None where `scores` are given.
        scores : array-like or tensor of shape (n,), default=None
            What `score_samples(X)` is, where it is known already.

        Returns
        -------
        ndarray of float64, shape (n,)
            (1 + number of calibration images that score as low or lower) / (1 + number of calibration images), so
            never below that. Valid in finite samples (conformal: Vovk et al., 2005) if the images of X and of one
            `fit` with `calibration` a number are exchangeable; with `"prequential"`, whose scores come from models
            that had seen less, about so.

        Raises
        ------
        NotFittedError, ValueError
            As `transform`.
        """
        if (X is None) == (scores is None):
            raise ValueError("p_values takes either X or scores=")
        check_is_fitted(self)
        scores = self.score_samples(X) if scores is None else scores
        return self._reference.p_values(scores.cpu().numpy() if isinstance(scores, Tensor) else np.asarray(scores))

    @MethodAndParameter
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
        likelihoods = np.asarray(self._map_steps(X, self._likelihood_step), dtype=np.float64)
        return float(np.mean(likelihoods[~np.isnan(likelihoods)]))

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
        samples = samples.take(self._columns())
        model = self.pca_._model
        return samples.map_steps(lambda step: function(model, step, samples.patch_shape), self.step_size)

    def _map_step(self, model: Model, step: Tensor, patch_shape: tuple[int, ...]) -> Tensor:
        """Return the maps (b, *patch_shape) of a step (b, P, m), (b, 1) for one PCA."""
        device = resolve_device(self.device, step.device, required=False)
        maps = model.distances(step.to(device), score=self._distance, noise_shrinkage=self.noise_shrinkage)
        maps = maps.unflatten(1, patch_shape or (1,))
        return smooth_maps(maps, self.smoothing) if self.smoothing > 0 else maps

    def _summarize(self, model: Model, step: Tensor, patch_shape: tuple[int, ...], weight: float) -> Tensor:
        """Return what a calibration keeps (b, 2 + q) of a step (b, P, m), by a model of images of this weight."""
        maps = self._map_step(model, step, patch_shape)
        learnt = maps.new_full((len(maps), 1), weight)
        return torch.cat([learnt, -image_scores(maps, self.image_score)[:, None], tails(maps)], dim=1)

    def _score_step(self, model: Model, step: Tensor, patch_shape: tuple[int, ...]) -> Tensor:
        """Return the scores (b,) of a step (b, P, m), higher is more normal."""
        return -image_scores(self._map_step(model, step, patch_shape), self.image_score)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "pca_")
