"""Thresholds and p-values of a fitted detector, from the scores of normal images that it had not learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ipca_sklearn.decomposition._fitted import Fitted
from ipca_sklearn.decomposition._fitted_scatter import FittedExactPCA, pickles_are_exact
from ipca_sklearn.detection._calibration import FEW_IMAGES, MAX_IMAGES, LearningCurve, ReferenceScores, Summaries
from ipca_sklearn.detection._map_ops import ScoreSettings
from ipca_sklearn.detection._unseen import ScoringModel


@dataclass(frozen=True)
class Calibrator:
    """Scores of normal images that were not learnt, and the reference that thresholds and p-values are made from."""

    settings: ScoreSettings  # what the scores were computed with
    unseen: Summaries  # of each image by a model of earlier ones, or as `calibrate` was given
    left_out: Summaries  # of each of few images by a model of the others; empty as soon as there are more
    reference: ReferenceScores  # the better ones of them, brought to the model of now
    model: ScoringModel | None = None  # scores the next images; None: what is learnt does

    @classmethod
    def of(
        cls,
        settings: ScoreSettings,
        fitted: Fitted,
        unseen: Summaries,
        left_out: Summaries,
        model: ScoringModel | None = None,
    ) -> Calibrator:
        """Return the calibrator of a model, from all scores that are known."""
        unseen = unseen.kept(fitted.count, fitted.weight, renewed=not isinstance(fitted, FittedExactPCA))
        if fitted.count > FEW_IMAGES:
            left_out = Summaries.empty(left_out.n_patches)
        left_out = left_out.kept(fitted.count, fitted.weight)
        best = left_out if len(left_out) else unseen
        reference = best.corrected_to(fitted.weight, LearningCurve.of_model(settings.distance, fitted))
        return cls(settings, unseen, left_out, reference, model)

    @classmethod
    def of_given(cls, settings: ScoreSettings, fitted: Fitted, scores: Summaries) -> Calibrator:
        """Return the calibrator of scores by the model of now: all count, also where the model forgets its past."""
        scores = scores.take(slice(-MAX_IMAGES, None))
        left_out = scores if fitted.count <= FEW_IMAGES else Summaries.empty(scores.n_patches)
        reference = scores.corrected_to(fitted.weight, LearningCurve.of_model(settings.distance, fitted))
        return cls(settings, scores, left_out, reference)

    def with_scores_of(self, other: Calibrator) -> tuple[Summaries, Summaries]:
        """Return `unseen` and `left_out` of two models together: of `other` first."""
        theirs, mine = (each.left_out if len(each.left_out) else each.unseen for each in (other, self))
        return theirs.extended(mine), other.left_out.extended(self.left_out)

    def __deepcopy__(self, memo: Any) -> Calibrator:
        return self  # it never changes

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) if pickles_are_exact() else {**vars(self), "model": None}
