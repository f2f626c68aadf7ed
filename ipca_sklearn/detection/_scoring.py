"""How a fitted detector scores images: its model, its settings, and the steps of X."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ipca_sklearn import linalg
from ipca_sklearn._utils._devices import resolve_device
from ipca_sklearn._utils._sklearn_compat import validate_parameters
from ipca_sklearn.decomposition._batches import StepReader, read_steps
from ipca_sklearn.decomposition._fitted import Fitted
from ipca_sklearn.detection._cells import Cells
from ipca_sklearn.detection._learning import check_covariance
from ipca_sklearn.detection._map_ops import MapScorer, ScoreSettings
from ipca_sklearn.detection._unseen import cut_to


@dataclass(frozen=True)
class ImageScorer:
    """Scores images with what a detector has learnt, in steps and with the parameters that are set now."""

    detector: Any
    settings: ScoreSettings
    fitted: Fitted  # with the number of components that is set now
    cells: Cells | None  # the patches that share a Gaussian

    @classmethod
    def of(cls, detector: Any) -> ImageScorer:
        """Return the scorer of a detector: a NotFittedError before it is fitted, a ValueError for its parameters."""
        check_is_fitted(detector)
        validate_parameters(detector)  # they may have been set after `fit`
        check_covariance(detector)
        fitted = cut_to(detector.pca_.fitted_, detector.n_components)
        return cls(detector, ScoreSettings.of(detector), fitted, Cells.of(detector.cells_))

    def read(self, X: Any) -> StepReader:
        """Return the steps of X, with the features that were learnt."""
        return read_steps(self.detector, X, reset=False).take(getattr(self.detector, "feature_indices_", None))

    def operator(self, device: torch.device) -> linalg.DistanceOperator:
        """Return the distance operator on the device of the detector, or else on this one."""
        device = resolve_device(self.detector.device, device, required=False)
        return self.fitted.distance_operator(device, self.settings)

    def scorer(self, steps: StepReader) -> MapScorer:
        """Return what scores the steps of X."""
        return self.settings.scorer(self.operator(steps.device), steps, self.cells)

    def map_images(self, X: Any, function: Callable[[MapScorer, Tensor], Tensor]) -> Any:
        """Return `function(scorer, step)` of all images of X as its kind of array, by bands where they are large."""
        steps = self.read(X).in_bands(self.cells is not None)
        return steps.map_steps(partial(function, self.scorer(steps)), self.detector.step_size)

    def summaries(self, steps: StepReader) -> np.ndarray:
        """Return the columns (n, 1 + q) of `Summaries`; images that could not be read are NaN."""
        # In the steps and the dtype of `score_samples`: the last digits depend on what an image is computed with.
        return on_host(steps.map_steps(self.scorer(steps).summaries, self.detector.step_size))

    def log_likelihood(self, X: Any) -> float:
        """Return the mean log-likelihood of the patches of images."""
        steps = self.read(X)

        def likelihoods_of(step: Tensor) -> Tensor:
            device = resolve_device(self.detector.device, step.device, required=False)
            basis, step = self.fitted.scoring_basis(device), step.to(device)
            if self.cells is None:
                return linalg.log_likelihood(basis, step).mean(1)
            return self.cells.on_patches(linalg.log_likelihood(basis, self.cells.samples(step))).mean(1)

        likelihoods = steps.map_steps(likelihoods_of, 1 if steps.has_bands else self.detector.step_size)
        return float(np.nanmean(on_host(likelihoods), dtype=np.float64))


def on_host(values: Any) -> np.ndarray:
    """Return an array, or a tensor of any device, as an array."""
    return values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
