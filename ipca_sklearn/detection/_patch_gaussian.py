"""PatchGaussianDetector: how far the patches of an image lie from those of normal images at the same position."""

from __future__ import annotations

import copy
from math import prod
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, OutlierMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from ipca_sklearn import linalg
from ipca_sklearn._utils._labels import normal_rows
from ipca_sklearn._utils._output import TableOutputMixin
from ipca_sklearn._utils._sklearn_compat import (
    CallbackSupportMixin,
    Interval,
    StrOptions,
    fit_context,
    validate_parameters,
)
from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn._utils._turns import in_turn, of_one_state, snapshot
from ipca_sklearn._utils._typing import ArrayLike, DeviceLike, DTypeLike
from ipca_sklearn._utils._versions import VersionedMixin
from ipca_sklearn.decomposition._base import BasePCA
from ipca_sklearn.decomposition._batched_ipca import BatchedIncrementalPCA
from ipca_sklearn.decomposition._batches import read_steps
from ipca_sklearn.decomposition._fitted_scatter import pickles_are_exact
from ipca_sklearn.decomposition._memory import MemoryNeed
from ipca_sklearn.detection._bands import in_bands
from ipca_sklearn.detection._calibrator import KnownScores, n_kept
from ipca_sklearn.detection._cells import Cells
from ipca_sklearn.detection._copies import group_size
from ipca_sklearn.detection._gaussians import PCA_PARAMETERS, choose_cells, choose_features, new_pca, pca_parameters
from ipca_sklearn.detection._learning import learn
from ipca_sklearn.detection._map_ops import is_aligned
from ipca_sklearn.detection._merging import check_same_kind, records_of_both, scores_of_both
from ipca_sklearn.detection._suspects import HELD_MODELS, refuse_trim, without_suspects
from ipca_sklearn.detection._thresholds import ThresholdMixin, normal_steps


class PatchGaussianDetector(
    VersionedMixin,
    ThresholdMixin,
    CallbackSupportMixin,
    OutlierMixin,
    TableOutputMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Anomaly detector with truncated Gaussians of image patches, learnt from normal images in one pass.

    Parameters
    ----------
    n_components : int, float in (0, 1), "auto" or None, default="auto"
        Directions kept per Gaussian, k; a share of the variance or None as in :class:`BatchedIncrementalPCA`. `"auto"`
        is 96 where patches share a Gaussian and 16 where each has its own (the paper), and at most m / 2. Where the
        scatter matrices are kept (`solver`), another number on a fitted detector takes effect at once.
    n_gaussians : int or None, default=256
        Number of Gaussians, at most. Neighbouring patches share one: the inspected patches are divided into so many
        cells of equal size, or of sizes that differ by one. None is a Gaussian for each patch (the paper, PaDiM), and
        so is any number that is not smaller than that of the patches. 1 is one for the whole image, which suits
        textures and the tokens of large transformers (SubspaceAD).
    step_size : int or None, default=16
        Images per update, and per step of scoring.
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
    covariance : {"low_rank", "full"}, default="low_rank"
        `"full"` keeps the whole covariance matrix of each patch, P m^2 numbers, and adds `ridge` to its diagonal. With
        `n_random_features=100` this is PaDiM, the baseline. It needs `distance="mahalanobis"` and ignores
        `n_components`, `centering`, `n_oversamples`, `solver` and `svd_driver`.
    n_random_features : int or None, default=None
        Number of randomly chosen features of X that are learnt; None is all.
    ridge : float, default=0.01
        For `covariance="full"`, in the units of the squared features.
    random_state : int, RandomState or None, default=None
        For `n_random_features`.
    verbose : int, default=0
        1 prints a line when images have been learnt. With scikit-learn's callbacks (`set_callbacks`, from 1.9 on) these
        are told of each step instead: `sklearn.callback.ProgressBar` draws a bar, in notebooks too.
    centering : {"incremental", "deferred"}, default="incremental"
        As in :class:`BatchedIncrementalPCA`; `"deferred"` with `distance="mahalanobis"` is the paper.
    n_oversamples, forgetting_factor, solver, svd_driver, dtype, device
        As in :class:`BatchedIncrementalPCA`. With `forgetting_factor` the threshold follows the latest images too.
    false_positive_rate : "auto" or float in (0, 0.5], default="auto"
        Fraction of *new normal* images that `predict` may call anomalous. (scikit-learn's `contamination` is another
        thing: the share of outliers in the training data.) `"auto"` puts the threshold three robust standard
        deviations (1.4826 times the median absolute deviation) below the median of the scores of normal images; it
        needs fewer images than a small quantile. Measured on four materials, 1.5 to 4.1 % of new normal images are
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
    image_score : {"max", "mean"} or float in (0, 1], default=0.005
        Score of an image from its map: the largest value, the mean, or the mean of this share of the largest values (at
        least one of them).
    smoothing : float, default=0.0
        Standard deviation in patches of a Gaussian blur of the maps (for `(n, H, W, m)` input) before the image score.
        PaDiM uses 1 (4 pixels). It improves the outlines of large defects and weakens defects of a single patch.
    trim : "auto" or float in [0, 0.5), default=0
        Share of the images that `fit` leaves out: those farthest from the others, scored by models that have not learnt
        them, in at most 10 rounds until they stay the same. No more bad images than this share can be left out: the
        breakdown point. `"auto"` leaves out what has a q-value of at most 0.05, so it misses many that are bad alike.
        Thresholds come from the same scores, of all images with a larger q-value. X is read about three times in each
        round. `partial_fit` and `merge`, which do not see all images, take `trim=0`.

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
        The patches that were learnt, if the features have a region of interest; None is all.
    map_region_ : ndarray of bool, shape (H, W), or None
        The patches of maps that are inspected: `region_`, but None where images were aligned, so that it moves.
    aligned_ : bool
        True; only if it was fitted to features of images that were aligned (`align` of PatchFeatureExtractor).
    cells_ : ndarray of int, shape `patch_shape_`, or None
        The Gaussian of each patch, and -1 outside of the region; None is one for each patch. The Gaussian of a cell
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
        steps = read_steps(self, X, reset=True)
        rows = normal_rows(y, steps.n_samples, is_table=steps.patch_shape == ())
        steps = steps if rows is None else steps.keep(rows)
        columns = choose_features(self.n_random_features, self.random_state, steps.n_features)
        cells = choose_cells(self.n_gaussians, steps)
        shape = {
            "patch_shape_": steps.patch_shape,
            "region_": steps.region,
            "cells_": cells,
            **steps.features_in,
            **({} if columns is None else {"feature_indices_": columns}),
            **({"aligned_": True} if is_aligned(X) else {}),
        }
        group = group_size(Cells.of(cells), steps.n_copies)
        pca = self._new_pca(steps.n_features, group)
        with own_surroundings():
            known = KnownScores.none(steps.n_patches)
            if self.trim:
                steps, shape["suspects_"], known = without_suspects(self, pca, steps, shape, rows)
            return learn(self, steps, shape, pca, known, (X, y))

    @in_turn
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: Any = None) -> PatchGaussianDetector:
        """Go on learning from >= 1 normal images, as `fit`; a call that fails leaves the detector as it was."""
        refuse_trim(self.trim, "partial_fit")
        if not hasattr(self, "pca_"):
            return self.fit(X, y)
        steps = normal_steps(read_steps(self, X, reset=False), y)
        group = group_size(self._cells(), steps.n_copies)
        pca = copy.copy(self.pca_).set_params(**pca_parameters(self.get_params(), steps.n_features, group))
        with own_surroundings():
            return learn(self, steps, self._learnt_shape(), pca, self._known_scores(), (X, y))

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
        pca = self._new_pca(taken.n_features, group)
        need = pca.need(in_bands(taken, pca, None, group), n_kept=kept, n_gaussians=n_gaussians)
        return MemoryNeed(need.model, need.learning + HELD_MODELS * need.model) if self.trim else need

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
        with own_surroundings():
            return without_suspects(self, self.pca_, steps, self._learnt_shape(), None)[1]

    def _new_pca(self, n_features: int, group: int) -> BasePCA:
        if self.covariance == "full":
            self._check_full_distance()
        return new_pca(self.get_params(), n_features, group)

    transform = ThresholdMixin.transform  # scikit-learn's set_output takes the methods of the class itself

    @property
    def _n_features_out(self) -> int:
        return prod(self.patch_shape_)

    __copy__ = snapshot  # a pickle lacks the model that scores the next images

    def __deepcopy__(self, memo: dict[int, Any]) -> PatchGaussianDetector:
        memo[id(self)] = copied = snapshot(self)
        copied.__dict__ = copy.deepcopy(copied.__dict__, memo)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "_scoring" in state and not pickles_are_exact():
            state["_scoring"] = None  # as large as the components; the next images are then scored by what is stored
        cells = state.get("cells_")
        if cells is not None:  # of a large picture they are megabytes
            kinds = (np.min_scalar_type(value) for value in (cells.min(), cells.max()))
            state["cells_"] = cells.astype(np.result_type(*kinds))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        cells = state.get("cells_")
        super().__setstate__(state if cells is None else {**state, "cells_": cells.astype(np.int32)})

    @in_turn
    @own_surroundings()
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
        other = snapshot(other)
        check_same_kind(self, other)
        self._thresholds(), other._thresholds()  # both are scores of the kind that is computed now
        pca = copy.copy(self.pca_).merge(other.pca_)
        shape = self._learnt_shape() | records_of_both(self, other)
        self._store(shape, pca, *scores_of_both(self, other), chosen=self._chosen())
        return self
