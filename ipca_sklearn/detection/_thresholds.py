"""Thresholds from the scores of unseen normal images, and what follows from them: labels, masks, p-values."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ipca_sklearn._utils._estimators import set_learnt
from ipca_sklearn._utils._labels import check_labels, normal_rows
from ipca_sklearn._utils._precision import above, below, difference
from ipca_sklearn._utils._sklearn_compat import validate_parameters
from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn._utils._turns import in_turn, of_one_state
from ipca_sklearn._utils._typing import ArrayLike
from ipca_sklearn.decomposition._base import BasePCA
from ipca_sklearn.decomposition._batches import StepReader, read_steps
from ipca_sklearn.decomposition._fitted import Fitted
from ipca_sklearn.decomposition._fitted_scatter import FittedExactPCA
from ipca_sklearn.detection._calibration import (
    FEW_IMAGES,
    Calibration,
    LearningCurve,
    ReferenceScores,
)
from ipca_sklearn.detection._calibrator import KnownScores, ScoringModel
from ipca_sklearn.detection._chosen import (
    ChosenThreshold,
    ErrorRate,
    check_wishes,
    offset_for,
    warn_of_few_normal_images,
)
from ipca_sklearn.detection._few_images import what_few_images_do
from ipca_sklearn.detection._map_ops import MapScorer
from ipca_sklearn.detection._merging import RECORDS
from ipca_sklearn.detection._regions import Defect, predict_regions
from ipca_sklearn.detection._scoring import MapScoringMixin
from ipca_sklearn.exceptions import FewImagesWarning

_Self = TypeVar("_Self", bound="ThresholdMixin")

# Thresholds are of no use for scores that are computed in another way.
_SCORE_PARAMETERS = ("n_components", "distance", "noise_shrinkage", "ridge", "image_score", "smoothing")


class ThresholdMixin(MapScoringMixin):
    """Thresholds, labels and p-values from `_reference`, the scores of unseen normal images."""

    covariance: str
    false_positive_rate: float | str
    pixel_false_positive_rate: float | str
    _calibration: Calibration  # each image by a model of earlier ones, or as `calibrate` was given
    _left_out: Calibration  # each of few images by a model of the others
    _reference: ReferenceScores  # the better ones of them, brought to the model of now
    _scored_by: dict[str, Any]
    _scoring: ScoringModel | None
    chosen_threshold_: ChosenThreshold | None

    @property
    @of_one_state
    @own_surroundings()
    def offset_(self) -> float:
        """Images with a lower score are anomalous."""
        learnt, chosen = self._thresholds(), self._chosen()
        return learnt.offset(self.false_positive_rate) if chosen is None else chosen.offset

    @property
    @of_one_state
    @own_surroundings()
    def map_threshold_(self) -> float:
        """Patches with a larger value of the map are anomalous."""
        learnt, chosen = self._thresholds(), self._chosen()
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
        return self._reference.scores

    @property
    def calibration_maxima_(self) -> np.ndarray:
        """Largest values of the maps of the same images."""
        check_is_fitted(self)
        return self._reference.maxima

    @property
    @of_one_state
    def calibration_medians_(self) -> np.ndarray:
        """About the medians of the maps of the same images: how far their patches lie from the model as a rule."""
        return self._thresholds().medians(self._calibration.n_patches)

    def set_params(self: _Self, **params: Any) -> _Self:
        """Set parameters; those of the threshold take effect at once, and a warning says if scores are too few."""
        super().set_params(**params)  # type: ignore[misc]
        rate = params.get("false_positive_rate")
        if isinstance(rate, float) and 0 < rate < 1 and hasattr(self, "pca_"):  # else it is refused when it is used
            self._warn_of_few_images(self.pca_.fitted_, self._reference)
        return self

    def _thresholds(self) -> ReferenceScores:
        """Return the scores that thresholds are made from, if they are scores of the kind that is computed now."""
        check_is_fitted(self)
        validate_parameters(self)
        changed = self._changed_since()
        if changed:
            raise ValueError(
                f"the thresholds are for scores with {changed}: fit again, or call calibrate with normal images that "
                "were not learnt"
            )
        return self._reference

    def _changed_since(self) -> str:
        """Return which parameters of the scores have changed since the scores that set the threshold were computed."""
        now = self._score_parameters()
        changed = [name for name, value in self._scored_by.items() if now[name] != value]
        return ", ".join(f"{name}={self._scored_by[name]!r}, now {now[name]!r}" for name in changed)

    def _known_scores(self) -> KnownScores:
        """Return what `partial_fit` goes on from: nothing, with a warning, if scores are computed differently now."""
        changed = self._changed_since()
        if not changed:
            return KnownScores(self._calibration, self._left_out, self._scoring, self._chosen())
        warnings.warn(
            f"the scores that set the threshold were computed with {changed}: only the images of this call set it now. "
            "Call calibrate with normal images that were not learnt to set it from more",
            UserWarning,
            stacklevel=5,
        )
        return KnownScores.none(self._calibration.n_patches)

    def _score_parameters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SCORE_PARAMETERS}

    @of_one_state
    @own_surroundings()
    def decision_function(self, X: ArrayLike) -> Any:
        """Return `score_samples(X) - offset_`: negative is anomalous. Parameters and errors as `score_samples`.

        Images that could not be read (`on_error="skip"`) get the lowest finite number: `predict` says that someone
        should look, and scikit-learn's scorers take no NaN. `model_selection.ReadableScorer` leaves them out.
        """
        decision = difference(self.score_samples(X), self.offset_)
        if isinstance(decision, Tensor):
            return torch.where(decision.isnan(), torch.finfo(decision.dtype).min, decision)
        return np.where(np.isnan(decision), np.finfo(decision.dtype).min, decision)

    @of_one_state
    def predict(self, X: ArrayLike) -> Any:
        """Return +1 for normal and -1 for anomalous images. Parameters and errors as `score_samples`.

        Images that could not be read (`on_error="skip"`) are -1: someone should look.
        """
        decision = self.decision_function(X)
        if isinstance(decision, Tensor):
            return torch.where(decision >= 0, 1, -1)
        return np.where(decision >= 0, 1, -1)

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
    @own_surroundings()
    def predict_regions(
        self, X: ArrayLike, *, min_area: float = 0, merge_distance: float = 0, image_sizes: Any = None
    ) -> list[list[Defect] | None]:
        """Return the defects of each image: the connected regions of `predict_masks`, in pixels of the original image.

        Parameters
        ----------
        X : PatchFeatures, array-like or tensor of shape (n, H, W, m)
            Features of the shape that was learnt. PatchFeatures know the sizes of their images, and which part the
            patches cover (resizing, crop).
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
        return predict_regions(self, X, min_area, merge_distance, image_sizes)

    @of_one_state
    @own_surroundings()
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
        reference = self._thresholds()
        scores = self.score_samples(X) if scores is None else scores
        return reference.p_values(scores.cpu().numpy() if isinstance(scores, Tensor) else np.asarray(scores))

    @in_turn
    def calibrate(self: _Self, X: ArrayLike, y: Any = None) -> _Self:
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
        check_is_fitted(self)
        validate_parameters(self)
        steps = normal_steps(read_steps(self, X, reset=False), y).take(self._columns())
        with own_surroundings():
            scores = Calibration.empty(steps.n_patches)
            if steps.n_samples and self.pca_.fitted_.weight >= 2:  # else no variance is known
                summaries = self._as_scored(steps, lambda scorer, step, weight: scorer.summaries(step, weight))
                read = ~np.isnan(summaries).any(axis=1)
                if not read.any():
                    raise steps.unreadable()
                summaries = summaries[read].astype(np.float64)
                summaries[:, 0] = self.pca_.fitted_.weight  # not rounded: these scores need no correction
                scores = scores.extended([summaries])
            shape = self._learnt_shape() | {"n_calibrated_": len(scores)}
            self._store(shape, self.pca_, scores, left_out=scores)
        return self

    @in_turn
    def set_threshold(
        self: _Self,
        X: ArrayLike | None = None,
        y: Any = None,
        *,
        false_alarms: float | None = None,
        recall: float | None = None,
        score: float | None = None,
        confidence: float = 0.95,
        source: str = "",
    ) -> _Self:
        """Choose the threshold of images and patches, instead of the one that the fit has learnt.

        Parameters
        ----------
        X : PatchFeatures, array-like or tensor of shape (n, H, W, m), (n, P, m) or (n, m), default=None
            Images that the model has not learnt. May be left out with `score`.
        y : array-like of shape (n,), default=None
            +1 for normal and -1 for anomalous images; None: all are normal.
        false_alarms : float in (0, 1), default=None
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
            `false_alarms` takes more normal images; the message says how many, and what they will be.

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
        >>> detector = PatchGaussianDetector(2).fit(X[:200]).set_threshold(X[200:], false_alarms=0.1)
        >>> print(detector.chosen_threshold_)
        false_alarms=0.1: false alarms 29 of 300 images (6.6% to 13.6%), missed not known: no images, at 95%
        """
        self._thresholds()  # checks that scores are still computed as they were
        check_wishes(X, false_alarms, recall, score, confidence)
        normal, anomalous = (np.empty((0, 2)),) * 2
        if X is not None:
            steps = read_steps(self, X, reset=False).take(self._columns())
            labels = np.ones(steps.n_samples) if y is None else check_labels(y)
            if len(labels) != steps.n_samples:
                raise ValueError(f"y has {len(labels)} labels and X has {steps.n_samples} samples: give one for each")
            summaries = self._as_scored(steps, lambda scorer, step, weight: scorer.summaries(step, weight)[:, 1:3])
            read = ~np.isnan(summaries).any(axis=1)
            # Scores, and the negative maxima of the maps: lower is more anomalous.
            normal, anomalous = (
                summaries[read & (labels == kind)] * np.array([1, -1], summaries.dtype) for kind in (1, -1)
            )
        if score is None:
            offset, of_maps = (offset_for(normal[:, part], anomalous[:, part], false_alarms, recall) for part in (0, 1))
            map_threshold: float | None = -of_maps
            if false_alarms is not None:
                warn_of_few_normal_images(false_alarms, len(normal))
        else:
            offset = float(score)
            map_threshold = -offset if self.image_score == "max" else None
        wishes = {"false_alarms": false_alarms, "recall": recall, "score": score}
        self.chosen_threshold_ = ChosenThreshold(
            offset,
            map_threshold,
            "".join(f"{name}={value}" for name, value in wishes.items() if value is not None),
            ErrorRate.of(below(normal[:, 0], offset), confidence),
            ErrorRate.of(~below(anomalous[:, 0], offset), confidence),
            confidence,
            source,
            self.pca_.fitted_.weight,
            self._rates(),
        )
        return self

    def _as_scored(self, steps: StepReader, function: Callable[[MapScorer, Tensor, float], Tensor]) -> np.ndarray:
        """Return `function(scorer, step, weight)` of all steps, for images that are scored as `score_samples` does.

        That is in the same steps, because the last digits depend on what an image is computed with, and in the dtype of
        X. Images that could not be read are NaN.
        """
        fitted, cells = self._fitted_now(), self._cells()

        def result_of(step: Tensor) -> Tensor:
            scorer = self._scorer(self._operator(fitted, step.device), steps, cells)
            return function(scorer, step, fitted.weight)

        values = steps.map_steps(result_of, self.step_size)
        return values.cpu().numpy() if isinstance(values, Tensor) else values

    def _store(
        self,
        shape: dict[str, Any],
        pca: BasePCA,
        calibration: Calibration,
        left_out: Calibration,
        chosen: ChosenThreshold | None = None,
        scoring: ScoringModel | None = None,
    ) -> None:
        """Set the thresholds from images that were not learnt when they were scored, and store everything at once.

        `left_out` are the better scores of few images; they count only as long as there are no more. `chosen` is a
        threshold of the model before, that is kept. `scoring` is the model that the next images are scored by.
        """
        fitted = pca.fitted_
        left_out = left_out.kept(fitted.count, fitted.weight)
        renewed = not isinstance(fitted, FittedExactPCA)
        calibration = calibration.kept(fitted.count, fitted.weight, renewed=renewed)
        if fitted.count > FEW_IMAGES:
            left_out = Calibration.empty(left_out.n_patches)
        curve = LearningCurve.of_model(self.distance, self.covariance, fitted)
        reference = (left_out if len(left_out) else calibration).corrected_to(fitted.weight, curve)
        learnt = {
            **shape,
            "pca_": pca,
            "chosen_threshold_": None if chosen is None else chosen.carried_to(fitted.weight, curve),
            "_calibration": calibration,
            "_left_out": left_out,
            "_reference": reference,
            "_scoring": scoring,
            "_scored_by": self._score_parameters(),
        }
        self._warn_of_few_images(fitted, reference)
        set_learnt(self, learnt)

    def few_images_warning(self) -> str:
        """Return what a fit warns of where images are few for the thresholds as they are now, or nothing.

        :meta private:
        """
        check_is_fitted(self)
        return self._of_few_images(self.pca_.fitted_, self._reference)

    def _of_few_images(self, fitted: Fitted, reference: ReferenceScores) -> str:
        what = what_few_images_do(fitted, reference, self.distance, self.false_positive_rate)
        return f"{fitted.count} images are few: {'; '.join(what)}" if what else ""

    def _warn_of_few_images(self, fitted: Fitted, reference: ReferenceScores) -> None:
        text = self._of_few_images(fitted, reference)
        if text:
            warnings.warn(text, FewImagesWarning, stacklevel=7)

    def _learnt_shape(self) -> dict[str, Any]:
        """Return what stays when more is learnt: the shape of X, its suspects, and records of the images."""
        shape = ("patch_shape_", "region_", "cells_", "feature_indices_", "aligned_")
        names = (*shape, "suspects_", "n_calibrated_", *RECORDS)
        return {name: value for name, value in vars(self).items() if name.endswith("_in_") or name in names}


def normal_steps(steps: StepReader, y: Any) -> StepReader:
    """Leave out the samples that are labelled anomalous."""
    rows = normal_rows(y, steps.n_samples, is_table=steps.patch_shape == ())
    return steps if rows is None else steps.keep(rows)
