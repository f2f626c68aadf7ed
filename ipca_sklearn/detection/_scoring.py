"""What a fitted detector computes: maps, image scores, labels, p-values."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ipca_sklearn import linalg
from ipca_sklearn._utils._devices import resolve_device
from ipca_sklearn._utils._sklearn_compat import validate_parameters
from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn._utils._turns import of_one_state
from ipca_sklearn._utils._typing import ArrayLike, DeviceLike
from ipca_sklearn.decomposition._base import BasePCA
from ipca_sklearn.decomposition._batches import StepReader, read_steps
from ipca_sklearn.decomposition._fitted import Fitted
from ipca_sklearn.decomposition._fitted_scatter import FittedCovariance, FittedExactPCA
from ipca_sklearn.detection._cells import Cells, on_patches
from ipca_sklearn.detection._map_ops import MapScorer, image_scores, inspected, on_images


class MapScoringMixin:
    """Maps and scores from Gaussians (`pca_`)."""

    distance: str
    noise_shrinkage: float
    smoothing: float
    image_score: float | str
    ridge: float
    step_size: int | None
    device: DeviceLike
    n_components: Any
    pca_: BasePCA
    patch_shape_: tuple[int, ...]
    region_: np.ndarray | None
    cells_: np.ndarray | None
    aligned_: bool

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
        return on_images(self._map_steps(X, lambda scorer, step: scorer.maps(step)), X)

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
        return self._map_steps(X, lambda scorer, step: scorer.scores(step))

    @of_one_state
    @own_surroundings()
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
        tensor = maps if isinstance(maps, Tensor) else torch.from_numpy(np.ascontiguousarray(maps))
        n_inspected = None if self.region_ is None else int(self.region_.sum())
        scores = -image_scores(inspected(tensor, self.map_region_), self.image_score, n_inspected)
        return scores if isinstance(maps, Tensor) else scores.numpy()

    @of_one_state
    @own_surroundings()
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
        check_is_fitted(self)
        validate_parameters(self)
        steps = read_steps(self, X, reset=False).take(self._columns())

        cells = self._cells()
        fitted = self._fitted_now()

        def likelihoods_of(step: Tensor) -> Tensor:
            device = resolve_device(self.device, step.device, required=False)
            basis = fitted.scoring_basis(device)
            return on_patches(cells, step.to(device), partial(linalg.log_likelihood, basis)).mean(1)

        step_size = 1 if steps.has_bands else self.step_size
        likelihoods = steps.map_steps(likelihoods_of, step_size)
        likelihoods = likelihoods.cpu().numpy() if isinstance(likelihoods, Tensor) else likelihoods
        return float(np.nanmean(likelihoods, dtype=np.float64))

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
        check_is_fitted(self)
        validate_parameters(self)
        fitted = self._fitted_now()
        return self._operator(fitted, fitted.state.mean.device if device is None else torch.device(device))

    def _fitted_now(self) -> Fitted:
        """Return what is learnt, with the number of components that is set now, where they are computed when read."""
        fitted = self.pca_.fitted_
        if self.n_components in (None, "auto") or not isinstance(fitted, FittedExactPCA):
            return fitted
        return fitted.with_components(self.n_components)

    def _operator(self, fitted: Fitted, device: torch.device) -> linalg.DistanceOperator:
        device = resolve_device(self.device, device, required=False)
        how: dict[str, Any] = {"distance": self.distance, "noise_shrinkage": self.noise_shrinkage}
        if isinstance(fitted, FittedCovariance):
            self._check_full_distance()
            how = {"ridge": self.ridge}
        return fitted.distance_operator(device, **how)

    def _cells(self) -> Cells | None:
        return Cells.of(self.cells_)

    def _scorer(self, operator: linalg.DistanceOperator, steps: StepReader, cells: Cells | None) -> MapScorer:
        """Return what scores steps by a model."""
        return MapScorer(operator, steps.patch_shape, self.smoothing, self.image_score, steps.region, cells)

    def _check_full_distance(self) -> None:
        if self.distance != "mahalanobis":
            raise ValueError(
                f"covariance='full' leaves no residual, so distance={self.distance!r} does not exist; set "
                "distance='mahalanobis'"
            )

    def _columns(self) -> np.ndarray | None:
        return getattr(self, "feature_indices_", None)

    @own_surroundings()
    def _map_steps(self, X: Any, function: Any) -> Any:
        """Return `function(scorer, step)` of all steps of X, joined."""
        check_is_fitted(self)
        validate_parameters(self)  # they may have been set after `fit`
        steps = read_steps(self, X, reset=False).take(self._columns())

        cells = self._cells()
        steps = steps.in_bands(cells is not None)
        fitted = self._fitted_now()

        def result_of(step: Tensor) -> Tensor:
            return function(self._scorer(self._operator(fitted, step.device), steps, cells), step)

        return steps.map_steps(result_of, self.step_size)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "pca_")
