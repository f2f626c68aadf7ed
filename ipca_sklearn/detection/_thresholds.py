"""Thresholds from the scores of unseen normal images, and what follows from them: labels, masks, p-values."""

from __future__ import annotations

import warnings
from math import ceil
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.stats import beta
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ipca_sklearn._utils._estimators import set_learnt
from ipca_sklearn._utils._labels import normal_rows
from ipca_sklearn._utils._sklearn_compat import validate_parameters
from ipca_sklearn._utils._typing import ArrayLike
from ipca_sklearn.decomposition._base import BasePCA, Learning
from ipca_sklearn.decomposition._batches import StepReader, read_steps
from ipca_sklearn.decomposition._fitted import Fitted
from ipca_sklearn.detection._calibration import FEW_IMAGES, Calibration, LearningCurve, ReferenceScores, leave_out
from ipca_sklearn.detection._scoring import MapScoringMixin
from ipca_sklearn.exceptions import FewImagesWarning

_Self = TypeVar("_Self", bound="ThresholdMixin")

# Thresholds are of no use for scores that are computed in another way.
_SCORE_PARAMETERS = ("distance", "noise_shrinkage", "ridge", "image_score", "smoothing")

# Scores that were corrected by more than this, because their models had learnt far fewer images, are a guess.
_LARGEST_CORRECTION = 0.2

# Scores from which a median absolute deviation makes a threshold that is worth the name.
_ENOUGH_FOR_AUTO = 20

# Scores below a threshold from which the share of new scores below it is known to about a factor 2.
_ENOUGH_TIMES_RATE = 3


class ThresholdMixin(MapScoringMixin):
    """Thresholds, labels and p-values from `_reference`, the scores of unseen normal images."""

    covariance: str
    false_positive_rate: float | str
    pixel_false_positive_rate: float | str
    _calibration: Calibration  # each image by a model of earlier ones, or as `calibrate` was given
    _left_out: Calibration  # each of few images by a model of the others
    _reference: ReferenceScores  # the better ones of them, brought to the model of now
    _scored_by: dict[str, Any]

    @property
    def offset_(self) -> float:
        """Images with a lower score are anomalous."""
        return self._thresholds().offset(self.false_positive_rate)

    @property
    def map_threshold_(self) -> float:
        """Patches with a larger value of the map are anomalous."""
        return self._thresholds().map_threshold(self.false_positive_rate, self.pixel_false_positive_rate)

    @property
    def calibration_scores_(self) -> np.ndarray:
        """Scores of unseen normal images."""
        check_is_fitted(self)
        return self._reference.scores

    def _thresholds(self) -> ReferenceScores:
        """Return the scores that thresholds are made from, if they are scores of the kind that is computed now."""
        check_is_fitted(self)
        validate_parameters(self)
        now = self._score_parameters()
        changed = [name for name, value in self._scored_by.items() if now[name] != value]
        if changed:
            listed = ", ".join(f"{name}={self._scored_by[name]!r}, now {now[name]!r}" for name in changed)
            raise ValueError(
                f"the thresholds are for scores with {listed}: fit again, or call calibrate with normal images that "
                "were not learnt"
            )
        return self._reference

    def _score_parameters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SCORE_PARAMETERS}

    def decision_function(self, X: ArrayLike) -> Any:
        """Return `score_samples(X) - offset_`: negative is anomalous. Parameters and errors as `score_samples`."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> Any:
        """Return +1 for normal and -1 for anomalous images. Parameters and errors as `score_samples`.

        Images that could not be read (`on_error="skip"`) are -1: someone should look.
        """
        decision = self.decision_function(X)
        if isinstance(decision, Tensor):
            return torch.where(decision >= 0, 1, -1)
        return np.where(decision >= 0, 1, -1)

    def predict_masks(self, X: ArrayLike) -> Any:
        """Return which patches are anomalous: `transform(X) > map_threshold_`.

        Parameters and errors as `transform`.

        Returns
        -------
        array or tensor of bool, shape (n, H, W), (n, P) or (n, 1)
        """
        return self.transform(X) > self.map_threshold_

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
        summaries: list[Tensor] = []
        for step in steps.read(self.step_size):
            summaries.extend(self._summaries(step, self.pca_.fitted_, self.pca_, steps))
        if not summaries and steps.may_skip:
            raise steps.unreadable()
        scores = Calibration.empty(steps.n_patches).extended(part.cpu().numpy() for part in summaries)
        self._store(self._features_in(), self._columns(), self.pca_, scores, left_out=scores)
        return self

    def _summaries(self, step: Tensor, fitted: Fitted | None, pca: BasePCA, steps: StepReader) -> list[Tensor]:
        """Return the summaries of images that are not learnt yet, for the calibration.

        Nothing is known before the first step. Each half of that step is then scored by a model of the other half.
        """
        if fitted is None:
            return self._leave_out(step, None, pca, steps, n_blocks=2)
        if fitted.state.weight < 2:  # no variance is known
            return []
        return [self._scorer(fitted, step, steps).summaries(step, fitted.state.weight)]

    def _leave_out(
        self, images: Tensor, start: Fitted | None, pca: BasePCA, steps: StepReader, n_blocks: int
    ) -> list[Tensor]:
        """Return the summaries of images, each by a model of all others but some. `start` has learnt none of them."""

        def learn(fitted: Fitted | None, others: Tensor) -> Fitted:
            learning = Learning(pca, fitted)
            for step in others.split(self.step_size or len(others)):
                learning.advance(step)
            return learning.fitted

        if start is None and len(images) < 2:
            return []
        summaries: list[Tensor] = []
        for fitted, block in leave_out(learn, start, images, n_blocks):
            summaries += self._summaries(block, fitted, pca, steps)
        return summaries

    def _store(
        self,
        features_in: dict[str, Any],
        columns: np.ndarray | None,
        pca: BasePCA,
        calibration: Calibration,
        left_out: Calibration,
    ) -> None:
        """Set the thresholds from images that were not learnt when they were scored, and store everything at once.

        `left_out` are the better scores of few images; they count only as long as there are no more.
        """
        state = pca.fitted_.state
        calibration, left_out = (scores.kept(state.count, state.weight) for scores in (calibration, left_out))
        if state.count > FEW_IMAGES:
            left_out = Calibration.empty(left_out.n_patches)
        curve = LearningCurve.of(self.distance, self.covariance, pca.n_components_)
        reference = (left_out if len(left_out) else calibration).corrected_to(state.weight, curve)
        learnt = {
            "pca_": pca,
            "patch_shape_": pca.patch_shape_,
            "_calibration": calibration,
            "_left_out": left_out,
            "_reference": reference,
            "_scored_by": self._score_parameters(),
            **features_in,
            **({} if columns is None else {"feature_indices_": columns}),
        }
        self._warn_of_few_images(pca.fitted_, reference)
        set_learnt(self, learnt)

    def _warn_of_few_images(self, fitted: Fitted, reference: ReferenceScores) -> None:
        """Say what few images do to the scores and to the thresholds."""
        n_images, n_scores = fitted.state.count, len(reference.scores)
        what = []
        if fitted.n_scoring_components < fitted.n_components and self.distance in ("ppca", "factor_analysis"):
            what.append(
                f"distances use {fitted.n_scoring_components} of {fitted.n_components} components, because the noise "
                f"is not known otherwise: {2 * fitted.n_components + 1} images make all of them useful"
            )
        if n_scores == 0:
            what.append("there is no threshold, so predict calls everything normal")
        elif self.false_positive_rate == "auto":
            if n_scores < _ENOUGH_FOR_AUTO:
                what.append(f"the threshold comes from {n_scores} scores, and {_ENOUGH_FOR_AUTO} make it reliable")
        elif n_scores < (needed := ceil(_ENOUGH_TIMES_RATE / float(self.false_positive_rate))):
            low, high = _realised_rates(float(self.false_positive_rate), n_scores)
            what.append(
                f"false_positive_rate={self.false_positive_rate} takes the scores of {needed} images to be met, and "
                f"there are {n_scores}: {low:.1%} to {high:.1%} of normal images will be called anomalous"
            )
        if reference.correction > _LARGEST_CORRECTION:
            what.append(
                "the thresholds are from scores of models that had learnt far fewer images; call calibrate with normal "
                "images that were not learnt"
            )
        if what:
            warnings.warn(f"{n_images} images are few: {'; '.join(what)}", FewImagesWarning, stacklevel=6)

    def _features_in(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name.endswith("_in_")}


def normal_steps(steps: StepReader, y: Any) -> StepReader:
    """Leave out the samples that are labelled anomalous."""
    rows = normal_rows(y, steps.n_samples)
    return steps if rows is None else steps.keep(rows)


def _realised_rates(rate: float, n_scores: int) -> tuple[float, float]:
    """Return the middle 80 % of the shares of new scores below a threshold: a beta distribution, for any scores."""
    rank = max(1.0, rate * (n_scores + 1))  # fewer scores than 1 / rate: the threshold is the lowest one
    low, high = beta.ppf([0.1, 0.9], rank, n_scores + 1 - rank)
    return float(low), float(high)
