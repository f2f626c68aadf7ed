"""Scores of the images of a fit in progress, by models that have not learnt them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ipca_sklearn import linalg
from ipca_sklearn.decomposition._banded import joined
from ipca_sklearn.decomposition._base import BasePCA, Learning
from ipca_sklearn.decomposition._batches import StepReader
from ipca_sklearn.decomposition._fitted import Fitted, independent_samples
from ipca_sklearn.decomposition._fitted_scatter import FittedExactPCA
from ipca_sklearn.detection._calibration import (
    FEW_IMAGES,
    MAX_IMAGES,
    N_BLOCKS,
    Calibration,
    first_scored_image,
    leave_out,
)
from ipca_sklearn.detection._cells import Cells
from ipca_sklearn.detection._chosen import ChosenThreshold
from ipca_sklearn.detection._copies import group_size, images_of, images_per_step, samples_of
from ipca_sklearn.detection._map_ops import MapScorer

# Logarithm by which distances fall from one independent sample to very many, with 96 directions, times that number; and
# by how much those of the model that scores may differ from those of a new one.
_FALL, _LARGEST_FALL = 120, 0.1

_OPERATOR_TENSORS = ("mean", "rows", "transform", "scale", "precision")


class ScoringModel:
    """What scores images that are learnt next: the distance operator of a model, made when it is first used.

    Parameters
    ----------
    count, weight : int, float
        Number and weight of the images that the model has learnt; 0 if there is none yet.
    make_operator : callable or None
        Returns the operator.
    """

    def __init__(self, count: int, weight: float, make_operator: Callable[[], linalg.DistanceOperator] | None) -> None:
        self.count = count
        self.weight = weight
        self._make_operator = make_operator

    def outdated(self, count: float, weight: float, per_image: float) -> bool:
        """Return whether a model of so many images, and this weight of them, should score in place of this one.

        When distances by a new model would be a tenth smaller (the learning curve, linear in 1 / n, of as many
        directions as are kept by default), the weight has doubled, or, with forgetting, as many images as count in this
        one have come. `per_image` is the number of independent samples that a Gaussian gets of an image.
        """
        fall = _FALL / per_image * (1 / max(self.weight, 1) - 1 / max(weight, 1))
        return fall > _LARGEST_FALL or weight >= 2 * self.weight or count - self.count >= self.weight

    @cached_property
    def operator(self) -> linalg.DistanceOperator:
        """The distance operator of the model."""
        assert self._make_operator is not None, "nothing is learnt yet"
        operator, self._make_operator = self._make_operator(), None
        return operator

    def __deepcopy__(self, memo: Any) -> ScoringModel:
        return self  # it never changes

    def __getstate__(self) -> dict[str, Any]:
        operator = self.operator.folded() if self.count else None  # of no image there is none
        tensors = {name: getattr(operator, name, None) for name in _OPERATOR_TENSORS}
        arrays = {name: None if tensor is None else tensor.cpu().numpy() for name, tensor in tensors.items()}
        return {"count": self.count, "weight": self.weight, **arrays}

    def __setstate__(self, stored: dict[str, Any]) -> None:
        self.count, self.weight, self._make_operator = stored["count"], stored["weight"], None
        if not self.count:
            return
        arrays = (stored[name] for name in _OPERATOR_TENSORS)
        self.operator = linalg.DistanceOperator(
            *(None if array is None else torch.from_numpy(array) for array in arrays)  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class KnownScores:
    """What an earlier call knows of the scores of normal images.

    Parameters
    ----------
    earlier, left_out : Calibration
        Scores by models of earlier images, and those of few images by models of the others.
    model : ScoringModel or None
        What scored the last images.
    chosen : ChosenThreshold or None
        The threshold that was set.
    """

    earlier: Calibration
    left_out: Calibration
    model: ScoringModel | None = None
    chosen: ChosenThreshold | None = None

    @classmethod
    def none(cls, n_patches: int) -> KnownScores:
        """Return what is known before the first call."""
        return cls(Calibration.empty(n_patches), Calibration.empty(n_patches))


class Calibrator:
    """Scores each step of a fit before it is learnt; few images are kept, and scored by models of the others.

    Parameters
    ----------
    pca : BasePCA
        Says how a step is learnt.
    start : Fitted or None
        What is known before the first step.
    model : ScoringModel or None
        What scored the images before; None: what is known.
    steps : StepReader
        The images to learn.
    cells : Cells or None
        The patches that share a Gaussian.
    operator_of : callable
        `operator_of(fitted)` returns the distance operator of a model.
    scorer_of : callable
        `scorer_of(operator)` returns what makes summaries of steps.
    prequential : bool
        Whether steps are scored before they are learnt.

    Attributes
    ----------
    model : ScoringModel
        What scored the last step.
    """

    def __init__(
        self,
        pca: BasePCA,
        start: Fitted | None,
        model: ScoringModel | None,
        steps: StepReader,
        cells: Cells | None,
        *,
        operator_of: Callable[[Fitted], linalg.DistanceOperator],
        scorer_of: Callable[[linalg.DistanceOperator], MapScorer],
        prequential: bool,
    ) -> None:
        self._pca = pca
        self._start = start
        self._steps = steps
        self._cells = cells
        self._operator_of = operator_of
        self._scorer_of = scorer_of
        self._prequential = prequential
        n_before = 0 if start is None else start.count
        self._first_scored = first_scored_image(n_before, steps)
        self.n_kept = n_kept(n_before, steps, prequential=prequential)
        self.model = model or self._model_of(start)
        # Tensors stay on their device until the end, so that the host does not wait for a GPU at every step.
        self._summaries: deque[Tensor] = deque(maxlen=MAX_IMAGES)
        self._left_out: list[Tensor] = []
        self._images: list[Tensor] = []

    def see(self, step: Tensor, fitted: Fitted | None) -> None:
        """Score a step that is learnt next, by what is known so far."""
        if self.n_kept:
            self._images.append(step.clone())
        if not self._prequential:
            return
        first_scored = self._first_scored - len(step)
        self._renew(fitted, first_scored)
        if (0 if fitted is None else fitted.count) > first_scored:
            if self.model.weight:
                self._summaries.extend(self._scores(step, self.model))
            else:  # each half of the first step is scored by a model of the other half
                self._summaries.extend(self._by_models_of_the_others(step, None, n_blocks=2))

    def finish(self, fitted: Fitted, held_out: StepReader | None) -> None:
        """Score the images that are held out, and few images by models of the others."""
        if self._prequential and not self.n_kept and fitted.count <= FEW_IMAGES:  # most images were skipped
            step_size = images_per_step(self._pca.step_size, self._steps.n_copies)
            self._images = [step.clone() for step in self._steps.read(step_size, copies=True)]
        if self._images:
            self._left_out = self._by_models_of_the_others(joined(self._images), self._start, N_BLOCKS)
        if held_out is not None:
            self.model = self._model_of(fitted)
            for step in held_out.read(self._pca.step_size):
                self._summaries.extend(self._scores(step, self.model))

    @property
    def summaries(self) -> list[np.ndarray]:
        """Summaries of images, in their order, by models of earlier ones or of all that were learnt."""
        return _on_host(self._summaries)

    @property
    def left_out(self) -> list[np.ndarray]:
        """Summaries of few images, by models of the others."""
        return _on_host(self._left_out)

    def _renew(self, fitted: Fitted | None, first_scored: float) -> None:
        """Take what is learnt so far as the model that scores, or keep one that has learnt at least half of it.

        Scatter matrices are decomposed again when it makes a difference (`ScoringModel.outdated`): each time costs as
        much as learning a hundred images. When that is does not depend on how images are divided among calls: a loop
        of `partial_fit` gives the scores of `fit`.
        """
        if not isinstance(fitted, FittedExactPCA):
            self.model = self._model_of(fitted)
            return
        per_image = independent_samples(fitted.group)
        if self.model.outdated(fitted.count, fitted.weight, per_image):
            self.model = self._model_of(fitted)
            if not self.model.outdated(first_scored, first_scored, per_image):  # else it is renewed before it scores
                _ = self.model.operator  # at once: learning overwrites the matrices

    def _model_of(self, fitted: Fitted | None) -> ScoringModel:
        if fitted is None:
            return ScoringModel(0, 0, None)
        return ScoringModel(fitted.count, fitted.weight, lambda: self._operator_of(fitted))

    def _scores(self, step: Tensor, model: ScoringModel) -> list[Tensor]:
        if model.weight < 2:  # no variance is known
            return []
        return [self._scorer_of(model.operator).summaries(images_of(step), model.weight)]

    def _by_models_of_the_others(self, images: Tensor, start: Fitted | None, n_blocks: int) -> list[Tensor]:
        """Return the summaries of images, each by a model of all others but some. `start` has learnt none of them."""
        if start is None and len(images) < 2:
            return []
        summaries = []
        for fitted, block in leave_out(self._learn, start, images, n_blocks):
            summaries += self._scores(block, self._model_of(fitted))
        return summaries

    def _learn(self, fitted: Fitted | None, images: Tensor) -> Fitted:
        n_copies = self._steps.n_copies
        learning = Learning(self._pca, fitted, group_size(self._cells, n_copies))
        for step in images.split(images_per_step(self._pca.step_size, n_copies) or len(images)):
            learning.advance(samples_of(step, self._cells))
        return learning.fitted


def _on_host(parts: Collection[Tensor]) -> list[np.ndarray]:
    """Return all parts as one array: a GPU is waited for once, not for each step."""
    return [torch.cat(list(parts)).cpu().numpy()] if parts else []


def n_kept(n_before: int, steps: StepReader, *, prequential: bool) -> int:
    """Return how many images are kept until the end, because few images are scored by models of the others."""
    return steps.n_samples if prequential and n_before + steps.n_samples <= FEW_IMAGES else 0
