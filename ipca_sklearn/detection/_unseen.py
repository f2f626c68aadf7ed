"""Scores of the images of a fit in progress, by models that have not learnt them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ipca_sklearn import linalg
from ipca_sklearn._utils._devices import resolve_device
from ipca_sklearn.decomposition._banded import joined
from ipca_sklearn.decomposition._base import BasePCA
from ipca_sklearn.decomposition._batches import StepReader
from ipca_sklearn.decomposition._fitted import Fitted, FittedPCA, independent_samples
from ipca_sklearn.decomposition._fitted_scatter import FittedExactPCA
from ipca_sklearn.detection._calibration import FEW_IMAGES, MAX_IMAGES, Summaries, leave_out
from ipca_sklearn.detection._cells import Cells
from ipca_sklearn.detection._copies import images_of, images_per_step, learn_images
from ipca_sklearn.detection._map_ops import ScoreSettings

# Logarithm by which distances fall from one independent sample to very many, with 96 directions, times that number; and
# by how much those of the model that scores may differ from those of a new one.
_FALL, _LARGEST_FALL = 120, 0.1

# Blocks of few images that are left out in turn, and from how many images on fewer of them may do.
_N_BLOCKS, _FEWEST_IN_LARGE_BLOCKS = 8, 16

# Steps of images with the weight of the model that has scored them: (b, 1 + q) for each of the settings.
_Scored = tuple[float, list[Tensor]]


class ScoringModel:
    """Scores what is learnt next: a model's distance operator for each of the settings, made when first used."""

    def __init__(self, count: int, weight: float, makers: Sequence[Callable[[], linalg.DistanceOperator]] = ()) -> None:
        self.count = count
        self.weight = weight
        self._makers = makers
        self._operators: list[linalg.DistanceOperator] = []

    def outdated(self, count: float, weight: float, per_image: float) -> bool:
        """Return whether a model of so many images, and this weight of them, should score in place of this one."""
        # When distances would be a tenth smaller (the learning curve, linear in 1 / n, with the default directions), or
        # as many images have come as count in this one: it has doubled, unless it forgets.
        fall = _FALL / per_image * (1 / max(self.weight, 1) - 1 / max(weight, 1))
        return fall > _LARGEST_FALL or count - self.count >= self.weight

    def operators(self) -> list[linalg.DistanceOperator]:
        """Return the distance operators of the model."""
        if not self._operators:
            self._operators = [make() for make in self._makers]
            self._makers = ()  # what they hold may be large
        return self._operators

    @property
    def is_made(self) -> bool:
        """Whether the operators are there, whatever becomes of the matrices that they are made of."""
        return bool(self._operators)

    def of_one(self, number: int) -> ScoringModel:
        """Return the model with the operator of one of the settings."""
        model = ScoringModel(self.count, self.weight, [lambda: self.operators()[number]] if self.count else ())
        if self.is_made:
            model.operators()
        return model

    def __deepcopy__(self, memo: Any) -> ScoringModel:
        return self  # it never changes

    def __getstate__(self) -> dict[str, Any]:
        operators = [vars(operator.folded()) for operator in self.operators()] if self.count else []
        arrays = [
            {name: None if tensor is None else tensor.cpu().numpy() for name, tensor in tensors.items()}
            for tensors in operators
        ]
        return {"count": self.count, "weight": self.weight, "operators": arrays}

    def __setstate__(self, stored: dict[str, Any]) -> None:
        self.__init__(  # type: ignore[misc]
            stored["count"], stored["weight"], [partial(_as_operator, arrays) for arrays in stored["operators"]]
        )
        self.operators()


def _as_operator(arrays: dict[str, np.ndarray | None]) -> linalg.DistanceOperator:
    tensors: Any = {name: None if array is None else torch.from_numpy(array) for name, array in arrays.items()}
    return linalg.DistanceOperator(**tensors)


class UnseenScores:
    """Scores each step of a fit by each of the `settings`, if `prequential` before it is learnt.

    Few images are kept, and scored by models of the others. `start` is what is known before the first step, `model`
    what scored the last one, at first that of an earlier call.
    """

    def __init__(
        self,
        settings: Sequence[ScoreSettings],
        pca: BasePCA,
        start: Fitted | None,
        model: ScoringModel | None,
        steps: StepReader,
        cells: Cells | None,
        *,
        prequential: bool,
    ) -> None:
        self._settings = settings
        self._pca = pca
        self._start = start
        self._steps = steps
        self._cells = cells
        self._prequential = prequential
        n_before = 0 if start is None else start.count
        total = n_before + steps.n_samples
        # Scores of earlier images would be dropped in the end; of a total that is not known all are kept.
        self._first_scored = 0 if steps.may_skip else total - total // 2
        self.n_kept = n_kept(n_before, steps, prequential=prequential)
        self.model = model or self._model_of(start)
        # Tensors stay on their device until the end, so that the host does not wait for a GPU at every step.
        self._scored: deque[_Scored] = deque(maxlen=MAX_IMAGES)
        self._falls: list[tuple[_Scored, _Scored]] = []  # the same images by two models
        self._left_out: list[_Scored] = []
        self._images: list[Tensor] = []

    def see(self, step: Tensor, fitted: Fitted | None) -> None:
        """Score a step that is learnt next, by what is known so far."""
        if self.n_kept:
            self._images.append(step.clone())
        if not self._prequential:
            return
        first_scored = self._first_scored - len(step)
        is_scored = (0 if fitted is None else fitted.count) > first_scored
        earlier: list[_Scored] = []
        if not isinstance(fitted, FittedExactPCA):
            self.model = self._model_of(fitted)
        elif self.model.outdated(fitted.count, fitted.weight, independent_samples(fitted.group)):
            if is_scored and self.model.is_made:  # before the new model is made, as each takes room
                earlier = self._by(self.model, step)
            self.model = self._model_of(fitted)
            grows = fitted.weight == fitted.count  # what forgets may keep its weight, and so its model, for long
            weight = first_scored if grows else fitted.weight
            # Made at once, as learning overwrites the matrices, unless it is renewed before it scores: in `fit` and
            # `partial_fit` after the same images.
            if not self.model.outdated(first_scored, weight, independent_samples(fitted.group)):
                self.model.operators()
        if is_scored:
            if self.model.weight:
                scored = self._by(self.model, step)
                self._scored.extend(scored)
                if earlier:
                    self._falls.append((earlier[0], scored[0]))
            else:  # each half of the first step is scored by a model of the other half
                self._scored.extend(self._by_models_of_the_others(step, None, n_blocks=2))

    def finish(self, fitted: Fitted, held_out: StepReader | None) -> None:
        """Score the images that are held out, and few images by models of the others."""
        if self._prequential and not self.n_kept and fitted.count <= FEW_IMAGES:  # most images were skipped
            step_size = images_per_step(self._pca.step_size, self._steps.n_copies)
            self._images = [step.clone() for step in self._steps.read(step_size, copies=True)]
        if self._images:
            images = joined(self._images)
            self._left_out += self._by_models_of_the_others(images, self._start, _n_blocks(fitted, len(images)))
        if held_out is not None:
            self.model = self._model_of(fitted)
            for step in held_out.read(self._pca.step_size):
                self._scored.extend(self._by(self.model, step))

    def summaries(self, number: int) -> tuple[Summaries, Summaries]:
        """Return the scores by one of the settings: of images in order, and of few images by models of the others."""
        in_pairs = [each for pair in self._falls for each in pair]
        known = self._on_host([*self._scored, *in_pairs], number)
        scored = known.take(slice(len(known) - sum(len(columns[number]) for _, columns in in_pairs)))
        start = len(scored)
        for earlier, _ in self._falls:
            middle, end = (start + times * len(earlier[1][number]) for times in (1, 2))
            scored = scored.with_fall(known.take(slice(start, middle)), known.take(slice(middle, end)))
            start = end
        return scored, self._on_host(self._left_out, number)

    def _on_host(self, scored: Sequence[_Scored], number: int) -> Summaries:
        """Return all steps as one: a GPU is waited for once, not for each step."""
        if not scored:
            return Summaries.empty(self._steps.n_patches)
        columns = torch.cat([of_settings[number] for _, of_settings in scored]).cpu().numpy()
        weights = np.concatenate([np.full(len(of_settings[number]), weight) for weight, of_settings in scored])
        return Summaries.of(columns, weights, self._steps.n_patches)

    def _model_of(self, fitted: Fitted | None) -> ScoringModel:
        if fitted is None:
            return ScoringModel(0, 0)
        device = resolve_device(self._pca.device, fitted.state.mean.device, required=False)
        # All are cut before the first is decomposed, with as many components as any of them takes.
        several = len(self._settings) > 1
        cut = [cut_to(fitted, settings.n_components) if several else fitted for settings in self._settings]
        makers = [
            partial(each.distance_operator, device, settings)
            for settings, each in zip(self._settings, cut, strict=True)
        ]
        return ScoringModel(fitted.count, fitted.weight, makers)

    def _by(self, model: ScoringModel, step: Tensor) -> list[_Scored]:
        """Return the scores of a step by a model; none if that knows no variance."""
        if model.weight < 2:
            return []
        images = images_of(step)
        scorers = (
            settings.scorer(operator, self._steps, self._cells)
            for settings, operator in zip(self._settings, model.operators(), strict=True)
        )
        return [(model.weight, [scorer.summaries(images) for scorer in scorers])]

    def _by_models_of_the_others(self, images: Tensor, start: Fitted | None, n_blocks: int) -> list[_Scored]:
        """Return the scores of images, each by a model of all others but some. `start` has learnt none of them."""
        if start is None and len(images) < 2:
            return []
        blocks = leave_out(self._learn, start, images, n_blocks)
        return [scored for fitted, block in blocks for scored in self._by(self._model_of(fitted), block)]

    def _learn(self, fitted: Fitted | None, images: Tensor) -> Fitted:
        n_copies, n_images = self._steps.n_copies, len(images)
        return learn_images(self._pca, fitted, self._cells, n_copies, lambda size: images.split(size or n_images))


def _n_blocks(fitted: Fitted, n_images: int) -> int:
    """Return how many blocks of few images are left out in turn: each takes a decomposition of all Gaussians."""
    # Where patches share Gaussians, as few as leave enough images to models that, as `fitted`, borrow nothing.
    if isinstance(fitted, FittedExactPCA) and fitted.group > 1 and n_images >= _FEWEST_IN_LARGE_BLOCKS:
        enough = fitted.fewest_samples / independent_samples(fitted.group)
        for n_blocks in (2, 4):
            if n_images - -(-n_images // n_blocks) >= enough:
                return n_blocks
    return _N_BLOCKS


def cut_to(fitted: Fitted, n_components: Any) -> Fitted:
    """Return what is learnt with another number of components, where they are computed when they are read."""
    if n_components in (None, "auto") or not isinstance(fitted, FittedPCA):
        return fitted
    if isinstance(fitted, FittedExactPCA):
        return fitted.with_components(n_components)
    if n_components != fitted.wanted:
        raise ValueError(
            f"n_components={n_components} was set after the fit, which has kept {fitted.wanted} directions of each "
            "Gaussian: fit again. Scatter matrices, as of shared Gaussians, give any number without a fit"
        )
    return fitted


def n_kept(n_before: int, steps: StepReader, *, prequential: bool) -> int:
    """Return how many images are kept until the end, because few images are scored by models of the others."""
    return steps.n_samples if prequential and n_before + steps.n_samples <= FEW_IMAGES else 0
