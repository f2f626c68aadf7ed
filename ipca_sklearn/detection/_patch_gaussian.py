"""PatchGaussianDetector: how far the patches of an image lie from those of normal images at the same position."""

from __future__ import annotations

import copy
import warnings
from math import prod
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import OutlierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ipca_sklearn import linalg
from ipca_sklearn._utils._arrays import as_tensor
from ipca_sklearn._utils._estimators import PatchTransformer, set_learnt
from ipca_sklearn._utils._labels import check_labels
from ipca_sklearn._utils._precision import above, below, difference
from ipca_sklearn._utils._sklearn_compat import Interval, StrOptions, fit_context, validate_parameters
from ipca_sklearn._utils._turns import in_turn, of_one_state, snapshot
from ipca_sklearn._utils._typing import ArrayLike, DeviceLike, DTypeLike
from ipca_sklearn.decomposition._base import BasePCA, MemoryNeed, memory_needed
from ipca_sklearn.decomposition._batched_ipca import BatchedIncrementalPCA
from ipca_sklearn.decomposition._batches import read_steps
from ipca_sklearn.decomposition._fitted import Fitted
from ipca_sklearn.detection._calibration import LearningCurve, ReferenceScores, Summaries
from ipca_sklearn.detection._calibrator import Calibrator
from ipca_sklearn.detection._cells import Cells, in_bands
from ipca_sklearn.detection._chosen import ChosenThreshold, LabelledScores, ThresholdRule
from ipca_sklearn.detection._copies import group_size
from ipca_sklearn.detection._few_images import what_few_images_do
from ipca_sklearn.detection._learning import (
    PCA_PARAMETERS,
    Pass,
    begin,
    check_covariance,
    choose_features,
    learn,
    new_pca,
    normal_steps,
    pca_parameters,
)
from ipca_sklearn.detection._map_ops import MapScorer, ScoreSettings, image_scores, inspected, on_images
from ipca_sklearn.detection._merging import RECORDS, check_same_kind, records_of_both
from ipca_sklearn.detection._regions import Defect, predict_regions
from ipca_sklearn.detection._scoring import ImageScorer, on_host
from ipca_sklearn.detection._suspects import HELD_MODELS, refuse_trim, without_suspects
from ipca_sklearn.detection._unseen import n_kept
from ipca_sklearn.exceptions import FewImagesWarning


class PatchGaussianDetector(OutlierMixin, PatchTransformer):
    """Anomaly detector with truncated Gaussians of image patches, learnt from normal images in one pass.

    The parameters are listed by what they are about: what is learnt (`n_components` to `trim`), how it is scored
    (`distance` to `smoothing`), and the thresholds. The first, `n_gaussians` and `false_positive_rate` are the ones to
    try.

    Parameters
    ----------
    n_components : int, float in (0, 1), "auto" or None, default="auto"
        Directions kept per Gaussian, k; a share of the variance or None as in :class:`BatchedIncrementalPCA`. `"auto"`
        is 96 where patches share a Gaussian and 16 where each has its own (the paper), and at most m / 2. Where the
        scatter matrices are kept (`solver`), another number on a fitted detector takes effect at once; elsewhere it
        takes another fit, and scores are refused until then.
    n_gaussians : int or None, default=256
        Number of Gaussians, at most. Neighbouring patches share one: the inspected patches are divided into so many
        cells of equal size, or of sizes that differ by one. None is a Gaussian for each patch (the paper, PaDiM), and
        so is any number that is not smaller than that of the patches. 1 is one for the whole image, which suits
        textures and the tokens of large transformers (SubspaceAD).
    step_size : int or None, default=16
        Images per update, and per step of scoring.
    covariance : {"low_rank", "full"}, default="low_rank"
        `"full"` keeps the whole covariance matrix of each patch, P m^2 numbers, and adds `ridge` to its diagonal. With
        `n_random_features=100` this is PaDiM, the baseline. It needs `distance="mahalanobis"` and ignores
        `n_components`, `centering`, `n_oversamples`, `solver` and `svd_driver`.
    n_random_features : int or None, default=None
        Number of randomly chosen features of X that are learnt; None for all.
    random_state : int, RandomState or None, default=None
        For `n_random_features`.
    centering : {"incremental", "deferred"}, default="incremental"
        As in :class:`BatchedIncrementalPCA`; `"deferred"` with `distance="mahalanobis"` is the paper.
    n_oversamples, forgetting_factor, solver, svd_driver, dtype, device
        As in :class:`BatchedIncrementalPCA`. With `forgetting_factor` the threshold follows the latest images too.
    trim : "auto" or float in [0, 0.5), default=0
        Share of the images that `fit` leaves out: those farthest from the others, scored by models that have not learnt
        them, in at most 10 rounds until they stay the same. No more bad images than this share can be left out: the
        breakdown point. `"auto"` leaves out what has a q-value of at most 0.05, so it misses many that are bad alike.
        Thresholds come from the same scores, of all images with a larger q-value. X is read about three times in each
        round. `partial_fit` and `merge`, which do not see all images, take `trim=0`.
    distance : {"factor_analysis", "residual", "mahalanobis", "ppca"}, default="factor_analysis"
        Distance of a patch from its Gaussian. z is the projection divided by the standard deviations, r is what the
        projection leaves. `"mahalanobis"` is the norm of z (paper, Eq. 3). `"residual"` is the norm of r (feature
        reconstruction error). `"ppca"` is `sqrt(|z|^2 + |r|^2 / noise_variance_)`. `"factor_analysis"` is
        `sqrt(|z|^2 + sum_j r_j^2 / noise_j)`, with a noise variance for each feature j of each patch. All of them read
        the same model: `set_params(distance=...)` on a fitted detector changes the scores, but not `offset_`, which is
        set by learning.
    noise_shrinkage : float in [0, 1], default=0.5
        For `distance="factor_analysis"`: shrinks the noise of a patch from its own estimate (0) towards the mean of
        all patches (1). With few images the estimate of one patch is poor, and patches with little training variance
        would raise false alarms (objects that move). At the edge of an image and in strong texture the noise really is
        larger. 0.5 is near the best on aligned and on unaligned images (docs/accuracy.md).
    ridge : float, default=0.01
        For `covariance="full"`, in the units of the squared features.
    image_score : {"max", "mean"} or float in (0, 1], default=0.005
        Score of an image from its map: the largest value, the mean, or the mean of this share of the largest values (at
        least one of them).
    smoothing : float, default=0.0
        Standard deviation in patches of a Gaussian blur of the maps (for `(n, H, W, m)` input) before the image score.
        PaDiM uses 1 (4 pixels). It improves the outlines of large defects and weakens defects of a single patch.
    false_positive_rate : "auto" or float in (0, 0.5], default="auto"
        Fraction of *new normal* images that `predict` may call anomalous. (scikit-learn's `contamination` is another
        thing: the share of outliers in the training data.) `"auto"` puts the threshold three robust standard
        deviations (1.4826 times the median absolute deviation) below the median of the scores of normal images; it
        needs fewer images than a small quantile. Measured on three materials, 1.2 to 3.4 % of new normal images are
        below it: their scores have a longer tail than a normal distribution.
    calibration : "prequential" or float in (0, 0.5], default="prequential"
        Source of the scores of unseen normal images, from which thresholds and p-values are made without a second
        pass. `"prequential"`: each step of training images is scored before it is learnt; all images are learnt, and
        the later half of the scores is kept. A number: this last fraction of the images of each call is scored at its
        end and not learnt. This costs images; p-values are then valid for any number of images, if the images of one
        `fit` come in random order.
    pixel_false_positive_rate : "image" or float in (0, 0.5], default="image"
        Fraction of the patches of normal images that `predict_masks` may mark. With `"image"`, a fraction
        `false_positive_rate` of normal images contains at least one marked patch.
    verbose : int, default=0
        1 prints a line when images have been learnt. With scikit-learn's callbacks (`set_callbacks`, from 1.9 on) these
        get each step instead: `sklearn.callback.ProgressBar` draws a bar, in notebooks too.

    Attributes
    ----------
    pca_ : BatchedIncrementalPCA
        The Gaussians: `pca_.components_`, `pca_.mean_`, `pca_.noise_variance_`, ... Its samples are patches: those of a
        cell, where patches share a Gaussian. With `covariance="full"` it is a
        :class:`~ipca_sklearn.decomposition.FullCovariance`: all directions are components, and `pca_.covariance_` is
        the covariance.
    offset_ : float
        `decision_function(X) = score_samples(X) - offset_`; minus infinity until two images have been seen.
    map_threshold_ : float
        Patches with larger values of the map are anomalous; infinity until two images have been seen.
    calibration_scores_ : ndarray of shape (n_calibration,)
        Scores of unseen normal images, from which `offset_` was made, in the order of the images.
    calibration_maxima_ : ndarray of shape (n_calibration,)
        Largest values of their maps: the reference of the p-values of regions.
    calibration_medians_ : ndarray of shape (n_calibration,)
        Medians of their maps, about (a neighbouring order statistic).
    n_samples_seen_ : int
        Number of images learnt.
    n_features_in_ : int
        m.
    feature_names_in_ : ndarray of shape (m,)
        Names of the columns, where X had string names.
    feature_indices_ : ndarray of shape (n_random_features,)
        The features that are used, ascending; only with `n_random_features`.
    patch_shape_ : tuple of int
        `(H, W)`, `(P,)` or `()`.
    region_ : ndarray of bool, shape (H, W), or None
        The patches that were learnt, if the features have a region of interest; None for all.
    map_region_ : ndarray of bool, shape (H, W), or None
        The patches of maps that are inspected: `region_`, but None where images were aligned, so that it moves.
    aligned_ : bool
        True; only if it was fitted to features of images that were aligned (`align` of PatchFeatureExtractor).
    cells_ : ndarray of int, shape `patch_shape_`, or None
        The Gaussian of each patch, and -1 outside of the region; None if each patch has its own. The Gaussian of a cell
        that has one patch fewer than others learns from the nearest patch of another cell, too.
    n_gaussians_ : int
        Number of Gaussians, C.
    suspects_ : ndarray of shape (n,), with named fields
        The images of a `fit` with `trim`, the most suspicious first: `index` in X, `score` by models that have not
        learnt it (higher is more normal), `p_value`, `q_value` (Benjamini-Hochberg: the share of false ones among the
        images up to this one), `trimmed`, and `near_duplicate_of`, the index of an earlier image or -1.
    n_calibrated_ : int
        Number of scores that `calibrate` has set the thresholds from; only after it.
    learnt_from_, learnt_images_ : list of dict, ndarray of uint64
        Records of the images, and their digests; only with :func:`ipca_sklearn.persistence.record_training`.

    See Also
    --------
    BatchedIncrementalPCA : The model without the scores.
    PatchFeatureExtractor : Images to features, the step before this one in a pipeline.

    Notes
    -----
    Signs are scikit-learn's: `score_samples` and `decision_function` are higher for more normal images, `predict` is
    +1 for normal and -1 for anomalous. Only the maps of `transform` are larger where the image is more anomalous.

    Cost per image and patch: 4 m k for a score. Learning: m (m + 64) / 2 where scatter matrices are kept, and m^3 per
    Gaussian when they are decomposed, for the first scores after learning and, for those that set the threshold, each
    time when the number of images has doubled; else that of :class:`BatchedIncrementalPCA`. Memory: C m^2 numbers and C
    k m for scores, or C (k + 4) m, twice that during an update; and one step of features. It does not depend on the
    number of images. Files: 2.5 bytes for each of the C m (m - 1) / 2 correlations, or 4 C k m.
    `covariance="full"` costs m^2 per image and patch, and m^3 per Gaussian for the scores of each step.

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
        **{name: BatchedIncrementalPCA._parameter_constraints[name] for name in sorted(PCA_PARAMETERS)},
        "n_components": [*BatchedIncrementalPCA._parameter_constraints["n_components"], StrOptions({"auto"})],
        "n_gaussians": [Interval(Integral, 1, None, closed="left"), None],
        "distance": [StrOptions(set(linalg.DISTANCES))],
        "noise_shrinkage": [Interval(Real, 0, 1, closed="both")],
        "covariance": [StrOptions({"low_rank", "full"})],
        "n_random_features": [Interval(Integral, 1, None, closed="left"), None],
        "ridge": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "false_positive_rate": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
        "calibration": [StrOptions({"prequential"}), Interval(Real, 0, 0.5, closed="right")],
        "pixel_false_positive_rate": [StrOptions({"image"}), Interval(Real, 0, 0.5, closed="right")],
        "image_score": [StrOptions({"max", "mean"}), Interval(Real, 0, 1, closed="right")],
        "smoothing": [Interval(Real, 0, None, closed="left")],
        "trim": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="left")],
    }

    def __init__(
        self,
        n_components: int | float | str | None = "auto",
        *,
        n_gaussians: int | None = 256,
        step_size: int | None = 16,
        distance: str = "factor_analysis",
        noise_shrinkage: float = 0.5,
        centering: str = "incremental",
        n_oversamples: int = 0,
        forgetting_factor: float = 1.0,
        solver: str = "auto",
        svd_driver: str | None = None,
        dtype: DTypeLike = None,
        device: DeviceLike = None,
        false_positive_rate: float | str = "auto",
        calibration: float | str = "prequential",
        pixel_false_positive_rate: float | str = "image",
        image_score: float | str = 0.005,
        smoothing: float = 0.0,
        trim: float | str = 0.0,
        covariance: str = "low_rank",
        n_random_features: int | None = None,
        ridge: float = 0.01,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.n_gaussians = n_gaussians
        self.step_size = step_size
        self.distance = distance
        self.noise_shrinkage = noise_shrinkage
        self.centering = centering
        self.n_oversamples = n_oversamples
        self.forgetting_factor = forgetting_factor
        self.solver = solver
        self.svd_driver = svd_driver
        self.dtype = dtype
        self.device = device
        self.false_positive_rate = false_positive_rate
        self.calibration = calibration
        self.pixel_false_positive_rate = pixel_false_positive_rate
        self.image_score = image_score
        self.smoothing = smoothing
        self.trim = trim
        self.covariance = covariance
        self.n_random_features = n_random_features
        self.ridge = ridge
        self.random_state = random_state
        self.verbose = verbose

    @in_turn
    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: Any = None) -> PatchGaussianDetector:
        """Learn from the features of normal images, forgetting what was learnt before.

        Parameters
        ----------
        X : PatchFeatures, array-like or tensor of shape (n, H, W, m), (n, P, m) or (n, m)
            Finite. Read one step at a time.
        y : array-like of shape (n,), default=None
            +1 for normal images; those labelled -1 are not learnt, as a warning says. Other labels are refused. Only
            for (n, m), where scikit-learn's tools pass any y, 1 beside 0 is -1, and others are ignored with a warning.

        Returns
        -------
        PatchGaussianDetector
            This estimator.

        Raises
        ------
        ValueError
            NaN or infinity, a shape that is not 2-D to 4-D, `n_components` larger than m, a device that is not there,
            other labels, or not one for each image, no normal image.
        """
        steps, rows, shape, pca = begin(self, X, y)
        settings = ScoreSettings.of(self)
        scores = None
        if self.trim:
            steps, shape["suspects_"], scores = without_suspects(self, pca, steps, shape, rows)
        done = learn(self, [settings], steps, shape, pca, None, (X, y))
        return self._store_pass(done, settings, shape, pca, scores)

    @in_turn
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: Any = None) -> PatchGaussianDetector:
        """Go on learning from >= 1 normal images, as `fit`; a call that fails leaves the detector as it was."""
        validate_parameters(self)  # fit_context does it before the first call only
        refuse_trim(self.trim, "partial_fit")
        if not hasattr(self, "pca_"):
            return self.fit(X, y)
        check_covariance(self)
        steps, _ = normal_steps(read_steps(self, X, reset=False), y)
        group = group_size(Cells.of(self.cells_), steps.n_copies)
        pca = copy.copy(self.pca_).set_params(**pca_parameters(self.get_params(), steps.n_features, group))
        settings, known, shape = ScoreSettings.of(self), self._calibrator, self._learnt_shape()
        changed = settings.differences(known.settings)
        if changed:
            warnings.warn(
                f"the scores that set the threshold were computed with {changed}: only the images of this call set it "
                "now. Call calibrate with normal images that were not learnt to set it from more",
                UserWarning,
                stacklevel=4,
            )
        earlier = () if changed else (known.unseen, known.left_out, self._chosen())
        done = learn(self, [settings], steps, shape, pca, None if changed else known.model, (X, y))
        return self._store_pass(done, settings, shape, pca, *earlier)

    def _store_pass(
        self,
        done: Pass,
        settings: ScoreSettings,
        shape: dict[str, Any],
        pca: BasePCA,
        unseen: Summaries | None = None,
        left_out: Summaries | None = None,
        chosen: ChosenThreshold | None = None,
    ) -> PatchGaussianDetector:
        new_unseen, new_left_out = done.scores.summaries(0)
        unseen = new_unseen if unseen is None else unseen.extended(new_unseen)
        left_out = new_left_out if left_out is None else left_out.extended(new_left_out)
        self._store(shape, pca, Calibrator.of(settings, pca.fitted_, unseen, left_out, done.model), chosen)
        done.progress.end()
        if self.verbose and not done.progress.is_watched:
            count = self.n_samples_seen_
            print(f"[PatchGaussianDetector] {count} images learnt, the last ones in {done.seconds:.1f} s")
        return self

    @of_one_state
    def transform(self, X: ArrayLike) -> Any:
        """Return the anomaly maps of images: larger where a patch is more anomalous.

        Parameters
        ----------
        X : PatchFeatures, array-like or tensor of shape (n, H, W, m), (n, P, m) or (n, m)
            Features of the shape that was learnt.

        Returns
        -------
        array or tensor of shape (n, H, W), (n, P) or (n, 1)
            Distances >= 0 in X's kind, floating dtype and device (numpy for PatchFeatures). Maps of PatchFeatures of
            images that were aligned are those of the images as they were.

        Raises
        ------
        NotFittedError
            Before `fit` or `partial_fit`.
        ValueError
            Other shapes than learnt, NaN or infinity.
        """
        return on_images(ImageScorer.of(self).map_images(X, MapScorer.maps), X)

    @of_one_state
    def score_samples(self, X: ArrayLike) -> Any:
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
        return ImageScorer.of(self).map_images(X, MapScorer.scores)

    @of_one_state
    def score_maps(self, maps: Any) -> Any:
        """Return the scores of images from their maps, where both are wanted: the features are read once.

        Parameters
        ----------
        maps : array or tensor of shape (n, H, W), (n, P) or (n, 1)
            As from `transform`.

        Returns
        -------
        array or tensor of shape (n,)
            `score_maps(transform(X))` equals `score_samples(X)`; where images were turned or moved (`align`), nearly,
            because maps are brought back to them.

        Raises
        ------
        ValueError
            Maps of other shapes than `transform` gives.
        """
        check_is_fitted(self)
        validate_parameters(self)
        shape = self.patch_shape_ or (1,)
        if tuple(maps.shape[1:]) != shape:
            raise ValueError(f"maps of shape {tuple(maps.shape)}; expected (n, {', '.join(map(str, shape))})")
        tensor = maps if isinstance(maps, Tensor) else as_tensor(np.ascontiguousarray(maps))
        n_inspected = None if self.region_ is None else int(self.region_.sum())
        scores = -image_scores(inspected(tensor, self.map_region_), self.image_score, n_inspected)
        return scores if isinstance(maps, Tensor) else scores.numpy()

    @of_one_state
    def score(self, X: ArrayLike, y: Any = None) -> float:
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
        return ImageScorer.of(self).log_likelihood(X)

    @of_one_state
    def distance_operator(self, device: DeviceLike = None) -> linalg.DistanceOperator:
        """Return the matrices that give the distance of every patch from its features, to compute maps elsewhere.

        Parameters
        ----------
        device : str, torch.device or None, default=None
            Where its tensors are; None is where the model is.

        Returns
        -------
        linalg.DistanceOperator
            Of `n_gaussians_` Gaussians, those of `cells_` where patches share them, for the features at
            `feature_indices_` where there are some. `linalg.patch_distances` applies it.

        Raises
        ------
        NotFittedError
            Before `fit` or `partial_fit`.
        """
        scorer = ImageScorer.of(self)
        return scorer.operator(scorer.fitted.state.mean.device if device is None else torch.device(device))

    @of_one_state
    def decision_function(self, X: ArrayLike) -> Any:
        """Return `score_samples(X) - offset_`: negative is anomalous. Parameters and errors as `score_samples`.

        Images that could not be read (`on_error="skip"`) get the lowest finite number: `predict` says that someone
        should look, and scikit-learn's scorers take no NaN. `model_selection.ReadableScorer` leaves them out.
        """
        decision = difference(self.score_samples(X), self.offset_)
        xp: Any = torch if isinstance(decision, Tensor) else np
        return xp.where(xp.isnan(decision), xp.finfo(decision.dtype).min, decision)

    @of_one_state
    def predict(self, X: ArrayLike) -> Any:
        """Return +1 for normal and -1 for anomalous images. Parameters and errors as `score_samples`.

        Images that could not be read (`on_error="skip"`) are -1: someone should look.
        """
        decision = self.decision_function(X)
        return (torch if isinstance(decision, Tensor) else np).where(decision >= 0, 1, -1)

    @of_one_state
    def predict_masks(self, X: ArrayLike) -> Any:
        """Return which patches are anomalous: `transform(X) > map_threshold_`, compared without rounding.

        Parameters and errors as `transform`.

        Returns
        -------
        array or tensor of bool, shape (n, H, W), (n, P) or (n, 1)
        """
        return above(self.transform(X), self.map_threshold_)

    @of_one_state
    def predict_regions(
        self,
        X: ArrayLike,
        *,
        maps: Any = None,
        min_area: float = 0,
        merge_distance: float = 0,
        image_sizes: Any = None,
    ) -> list[list[Defect] | None]:
        """Return the defects of each image: the connected regions of `predict_masks`, in pixels of the original image.

        Parameters
        ----------
        X : PatchFeatures, array-like or tensor of shape (n, H, W, m)
            Features of the shape that was learnt. PatchFeatures know the sizes of their images, and which part the
            patches cover (resizing, crop).
        maps : array or tensor of shape (n, H, W), default=None
            What `transform(X)` is, where it is known already: the network does not run again.
        min_area, merge_distance : float, default=0
            In pixels of the image; see :func:`~ipca_sklearn.detection.find_defects`.
        image_sizes : (int, int), sequence of (int, int), or None, default=None
            Height and width of the images. None: those of PatchFeatures; of arrays, a pixel is a patch.

        Returns
        -------
        list of (list of Defect, or None)
            The defect of the largest value first, and None for an image that could not be read. The p-value of a defect
            is how often the map of an unseen normal image has so large a value anywhere.

        Raises
        ------
        NotFittedError, ValueError
            As `transform`, also for features without a grid, and as `find_defects`.
        """
        return predict_regions(self, X, maps, min_area, merge_distance, image_sizes)

    @of_one_state
    def inspect(
        self, X: ArrayLike, *, min_area: float = 0, merge_distance: float = 0, image_sizes: Any = None
    ) -> list[dict[str, Any]]:
        """Return all that is known of each image, from one pass over the features, as a service answers it.

        Parameters
        ----------
        X, min_area, merge_distance, image_sizes
            As `predict_regions`.

        Returns
        -------
        list of dict
            Of Python's own numbers, as JSON has them: `label` (+1 or -1), `score`, `p_value`, and `defects`, a list of
            dicts (`Defect.as_dict`). An image that could not be read has the label -1 and None for the others.

        Raises
        ------
        NotFittedError, ValueError
            As `predict_regions`.
        """
        maps = self.transform(X)
        scores = on_host(self.score_maps(maps))
        columns = (np.where(below(scores, self.offset_), -1, 1), scores, self.p_values(scores=scores))
        found = predict_regions(self, X, maps, min_area, merge_distance, image_sizes)
        return [
            {"label": label, "score": score, "p_value": p_value, "defects": [defect.as_dict() for defect in defects]}
            if defects is not None
            else {"label": -1, "score": None, "p_value": None, "defects": None}
            for label, score, p_value, defects in zip(*(column.tolist() for column in columns), found, strict=True)
        ]

    @of_one_state
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
        reference = self._checked_calibrator().reference
        return reference.p_values(on_host(self.score_samples(X) if scores is None else scores))

    @in_turn
    def calibrate(self, X: ArrayLike, y: Any = None) -> PatchGaussianDetector:
        """Make thresholds and p-values from the scores of other normal images; nothing is learnt.

        Parameters
        ----------
        X : PatchFeatures, array-like or tensor of shape (n, H, W, m), (n, P, m) or (n, m)
            Normal images that were not learnt, of the shape that was. In scores of images that were learnt nothing
            looks anomalous, and the thresholds would call every new image so.
        y : array-like of shape (n,), default=None
            Labels, as in `fit`.

        Returns
        -------
        PatchGaussianDetector
            This estimator.

        Raises
        ------
        NotFittedError
            Before `fit` or `partial_fit`.
        ValueError
            As `transform`.

        Examples
        --------
        >>> import numpy as np
        >>> from ipca_sklearn import PatchGaussianDetector
        >>> X = np.random.default_rng(0).normal(size=(300, 5, 8))
        >>> detector = PatchGaussianDetector(2, false_positive_rate=0.1).fit(X[:100]).calibrate(X[100:200])
        >>> len(detector.calibration_scores_), bool(np.mean(detector.predict(X[200:]) == -1) < 0.2)
        (100, True)
        """
        scorer = ImageScorer.of(self)
        steps, _ = normal_steps(scorer.read(X), y)
        fitted = self.pca_.fitted_
        scores = Summaries.empty(steps.n_patches)
        if steps.n_samples and fitted.weight >= 2:  # else no variance is known
            columns = scorer.summaries(steps)
            read = ~np.isnan(columns).any(axis=1)
            if not read.any():
                raise steps.unreadable()
            scores = Summaries.of(columns[read], fitted.weight, steps.n_patches)
        calibrator = Calibrator.of_given(scorer.settings, fitted, scores)
        shape = self._learnt_shape() | {"n_calibrated_": len(calibrator.reference.scores)}
        self._store(shape, self.pca_, calibrator)
        return self

    @in_turn
    def set_threshold(
        self,
        X: ArrayLike | None = None,
        y: Any = None,
        *,
        false_positive_rate: float | None = None,
        recall: float | None = None,
        score: float | None = None,
        confidence: float = 0.95,
        source: str = "",
    ) -> PatchGaussianDetector:
        """Choose the threshold of images and patches, instead of the one that the fit has learnt.

        Parameters
        ----------
        X : PatchFeatures, array-like or tensor of shape (n, H, W, m), (n, P, m) or (n, m), default=None
            Images that the model has not learnt. May be left out with `score`.
        y : array-like of shape (n,), default=None
            +1 for normal and -1 for anomalous images; None if all are normal.
        false_positive_rate : float in (0, 1), default=None
            Share of new normal images that may be called anomalous, on average.
        recall : float in (0, 1], default=None
            Share of the anomalous images that must be found.
        score : float, default=None
            Images whose `score_samples` is lower are anomalous. Exactly one of these three is given.
        confidence : float in (0, 1), default=0.95
            Of the intervals of both errors.
        source : str, default=""
            Where the images came from, for the record.

        Returns
        -------
        PatchGaussianDetector
            This estimator. `chosen_threshold_` has the record: errors among these images with Clopper-Pearson
            intervals, and the source.

        Raises
        ------
        NotFittedError
            Before `fit` or `partial_fit`.
        ValueError
            None or several of the three, a number outside of its range, labels other than +1 and -1, no image of the
            kind that is asked for, other shapes than learnt.

        Warns
        -----
        FewImagesWarning
            `false_positive_rate` takes more normal images; the message says how many, and what they will be.

        Notes
        -----
        The same rule for the largest values of the maps gives `map_threshold_`, so that masks mark something in that
        share of normal images. With `score` it is `-score`, where the score of an image is the maximum of its map, and
        else the learnt one.

        `partial_fit` and `merge` keep the threshold, brought to the model that has learnt more by its learning curve,
        and warn if that changes it by more than a fifth. `fit`, `calibrate` and another `false_positive_rate` or
        `pixel_false_positive_rate` replace it.

        Examples
        --------
        >>> import numpy as np
        >>> from ipca_sklearn import PatchGaussianDetector
        >>> X = np.random.default_rng(0).normal(size=(500, 5, 8))
        >>> detector = PatchGaussianDetector(2).fit(X[:200]).set_threshold(X[200:], false_positive_rate=0.1)
        >>> print(detector.chosen_threshold_)
        false_positive_rate=0.1: false alarms 29 of 300 images (6.6% to 13.6%), missed not known: no images, at 95%
        """
        self._checked_calibrator()
        rule = ThresholdRule(false_positive_rate, recall, score)
        rule.check(X, confidence)
        if X is None:
            images = LabelledScores.of(np.empty((0, 2)), np.empty(0))
        else:
            scorer = ImageScorer.of(self)
            steps = scorer.read(X)
            labels = np.ones(steps.n_samples) if y is None else check_labels(y)
            if len(labels) != steps.n_samples:
                raise ValueError(f"y has {len(labels)} labels and X has {steps.n_samples} samples: give one for each")
            images = LabelledScores.of(scorer.summaries(steps), labels)
        self.chosen_threshold_ = ChosenThreshold.by(
            rule,
            images,
            score_is_maximum=self.image_score == "max",
            confidence=confidence,
            source=source,
            weight=self.pca_.fitted_.weight,
            rates=self._rates(),
        )
        return self

    def _store(
        self, shape: dict[str, Any], pca: BasePCA, calibrator: Calibrator, chosen: ChosenThreshold | None = None
    ) -> None:
        """Store what is learnt at once; `chosen` is a threshold of the model before, that is kept."""
        fitted = pca.fitted_
        if chosen is not None:
            curve = LearningCurve.of_model(self.distance, fitted)
            chosen = chosen.carried_to(fitted.weight, curve, calibrator.unseen.falls_of(0))
        self._warn_of_few_images(fitted, calibrator.reference)
        set_learnt(self, {**shape, "pca_": pca, "chosen_threshold_": chosen, "_calibrator": calibrator})

    @in_turn
    def merge(self, other: PatchGaussianDetector) -> PatchGaussianDetector:
        """Take in what another detector learnt from other images, as if this one had seen them too.

        The threshold is set from the scores that both have seen, corrected to the merged model.

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
        other = snapshot(other)
        check_same_kind(self, other)
        mine, theirs = self._checked_calibrator(), other._checked_calibrator()  # scores of the kind of now
        pca = copy.copy(self.pca_).merge(other.pca_)
        calibrator = Calibrator.of(mine.settings, pca.fitted_, *mine.with_scores_of(theirs))
        self._store(self._learnt_shape() | records_of_both(self, other), pca, calibrator, self._chosen())
        return self

    @of_one_state
    def find_suspects(self, X: ArrayLike) -> np.ndarray:
        """Rank images by how far each lies from the others, to find those that should not be learnt; learn nothing.

        Parameters
        ----------
        X : PatchFeatures, array-like or tensor of shape (n, H, W, m), (n, P, m) or (n, m)
            At least 8 images, such as those of the fit; read three or four times, and with `trim` in each round.

        Returns
        -------
        ndarray of shape (n,), with named fields
            As `suspects_`. `pandas.DataFrame` makes a table of it.

        Raises
        ------
        NotFittedError, ValueError
            As `transform`, and for fewer images.

        Examples
        --------
        >>> import numpy as np
        >>> from ipca_sklearn import PatchGaussianDetector
        >>> X = np.random.default_rng(0).normal(size=(100, 6, 8))
        >>> X[7, 2] += 9
        >>> suspects = PatchGaussianDetector(2).fit(X).find_suspects(X)
        >>> suspects["index"][suspects["q_value"] < 0.05]
        array([7])
        """
        check_is_fitted(self)
        validate_parameters(self)
        steps = read_steps(self, X, reset=False)
        return without_suspects(self, self.pca_, steps, self._learnt_shape(), None)[1]

    def memory_needed(self, X: ArrayLike) -> MemoryNeed:
        """Return about how much memory `fit` takes for X, of which only shape and dtype count.

        Parameters
        ----------
        X : PatchFeatures, array-like or tensor of shape (n, H, W, m), (n, P, m) or (n, m)
            Nothing is computed from it. For `PatchFeatures` the network and its images are counted too.

        Returns
        -------
        MemoryNeed
            `model` and `learning`, in bytes. A fit that needs more than the machine has raises a MemoryError before
            its first step.

        Examples
        --------
        >>> import numpy as np
        >>> from ipca_sklearn import PatchGaussianDetector
        >>> need = PatchGaussianDetector(n_components=16).memory_needed(np.zeros((100, 8, 8, 32), dtype=np.float32))
        >>> need.model  # 8 x 8 patches of 32 features: 16 numbers of 4 bytes and two of 8 for each
        163840
        """
        validate_parameters(self)
        steps = read_steps(self, X, reset=True)
        n_gaussians = min(self.n_gaussians or steps.n_patches, steps.n_patches)
        taken = steps.take(choose_features(self.n_random_features, self.random_state, steps.n_features))
        kept = n_kept(0, steps, prequential=self.calibration == "prequential" and not self.trim)
        group = -(-steps.n_patches // n_gaussians)
        pca = new_pca(self.get_params(), taken.n_features, group)
        need = memory_needed(pca, in_bands(taken, pca, None, group), n_kept=kept, n_gaussians=n_gaussians)
        return MemoryNeed(need.model, need.learning + HELD_MODELS * need.model) if self.trim else need

    @property
    def n_samples_seen_(self) -> int:
        """Number of images learnt."""
        return self.pca_.fitted_.count

    @property
    def n_gaussians_(self) -> int:
        """Number of Gaussians."""
        return len(self.pca_.fitted_.state.mean)

    @property
    def map_region_(self) -> np.ndarray | None:
        """The patches of maps that are inspected: `region_`, but None where the region moves with aligned parts."""
        return None if getattr(self, "aligned_", False) else self.region_

    @property
    @of_one_state
    def offset_(self) -> float:
        """Images with a lower score are anomalous."""
        learnt, chosen = self._checked_calibrator().reference, self._chosen()
        return learnt.offset(self.false_positive_rate) if chosen is None else chosen.offset

    @property
    @of_one_state
    def map_threshold_(self) -> float:
        """Patches with a larger value of the map are anomalous."""
        learnt, chosen = self._checked_calibrator().reference, self._chosen()
        if chosen is None or chosen.map_threshold is None:
            return learnt.map_threshold(self.false_positive_rate, self.pixel_false_positive_rate)
        return chosen.map_threshold

    def _chosen(self) -> ChosenThreshold | None:
        """Return the threshold that was set, unless a rate was set to another value after it."""
        chosen = self.chosen_threshold_
        return chosen if chosen is not None and chosen.rates == self._rates() else None

    def _rates(self) -> tuple[Any, ...]:
        return self.false_positive_rate, self.pixel_false_positive_rate

    @property
    def calibration_scores_(self) -> np.ndarray:
        """Scores of unseen normal images."""
        check_is_fitted(self)
        return self._calibrator.reference.scores

    @property
    def calibration_maxima_(self) -> np.ndarray:
        """Largest values of the maps of the same images."""
        check_is_fitted(self)
        return self._calibrator.reference.maxima

    @property
    @of_one_state
    def calibration_medians_(self) -> np.ndarray:
        """About the medians of the maps of the same images: how far their patches lie from the model as a rule."""
        calibrator = self._checked_calibrator()
        return calibrator.reference.medians(calibrator.unseen.n_patches)

    def set_params(self, **params: Any) -> PatchGaussianDetector:
        """Set parameters; those of the threshold take effect at once, and a warning says if scores are too few."""
        super().set_params(**params)
        rate = params.get("false_positive_rate")
        if isinstance(rate, float) and 0 < rate < 1 and hasattr(self, "pca_"):  # else it is refused when it is used
            self._warn_of_few_images(self.pca_.fitted_, self._calibrator.reference)
        return self

    def _checked_calibrator(self) -> Calibrator:
        """Return the calibrator, if it is one of scores of the kind that is computed now."""
        check_is_fitted(self)
        validate_parameters(self)
        changed = ScoreSettings.of(self).differences(self._calibrator.settings)
        if changed:
            raise ValueError(
                f"the thresholds are for scores with {changed}: fit again, or calibrate with normal images that were "
                "not learnt"
            )
        return self._calibrator

    def _warn_of_few_images(self, fitted: Fitted, reference: ReferenceScores) -> None:
        text = what_few_images_do(fitted, reference, self.distance, self.false_positive_rate)
        if text:
            warnings.warn(text, FewImagesWarning, stacklevel=7)

    def _learnt_shape(self) -> dict[str, Any]:
        """Return what stays when more is learnt: the shape of X, its suspects, and records of the images."""
        shape = ("patch_shape_", "region_", "cells_", "feature_indices_", "aligned_")
        names = (*shape, "suspects_", "n_calibrated_", *RECORDS)
        return {name: value for name, value in vars(self).items() if name.endswith("_in_") or name in names}

    @property
    def _n_features_out(self) -> int:
        return prod(self.patch_shape_)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "pca_")

    __copy__ = snapshot  # a pickle lacks the model that scores the next images

    def __deepcopy__(self, memo: dict[int, Any]) -> PatchGaussianDetector:
        memo[id(self)] = copied = snapshot(self)
        copied.__dict__ = copy.deepcopy(copied.__dict__, memo)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        cells = state.get("cells_")
        if cells is not None:  # of a large picture they are megabytes
            kinds = (np.min_scalar_type(value) for value in (cells.min(), cells.max()))
            state["cells_"] = cells.astype(np.result_type(*kinds))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        cells = state.get("cells_")
        super().__setstate__(state if cells is None else {**state, "cells_": cells.astype(np.int32)})
