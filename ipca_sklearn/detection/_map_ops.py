"""From the distances of patches to smooth maps and image scores, and the parameters that these depend on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from ipca_sklearn import linalg
from ipca_sklearn._utils._arrays import at_patches
from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn.decomposition._banded import BandedStep
from ipca_sklearn.decomposition._batches import StepReader
from ipca_sklearn.detection._calibration import upper_quantiles
from ipca_sklearn.detection._cells import Cells, banded_distances


@dataclass(frozen=True)
class MapScorer:
    """Steps of features to maps, image scores and what a calibration keeps of them."""

    operator: linalg.DistanceOperator
    patch_shape: tuple[int, ...]
    smoothing: float  # standard deviation of the blur of maps, in patches
    image_score: Any
    region: np.ndarray | None = None  # the patches (H, W) that there are Gaussians of; None for all
    cells: Cells | None = None  # the patches that share a Gaussian; None if each patch has its own

    def maps(self, step: Tensor | BandedStep) -> Tensor:
        """Return the maps (b, *patch_shape) of a step (b, P, m); (b, 1) for one PCA. They are 0 outside of a region."""
        if isinstance(step, BandedStep):
            assert self.cells is not None
            distances = banded_distances(self.operator, step, self.cells)
        else:
            step = step.to(self.operator.mean.device)
            if self.cells is None:
                distances = linalg.patch_distances(self.operator, step)
            else:
                distances = self.cells.on_patches(linalg.patch_distances(self.operator, self.cells.samples(step)))
        if self.region is None:
            maps = distances.unflatten(1, self.patch_shape or (1,))
            return smooth_maps(maps, self.smoothing) if self.smoothing > 0 else maps
        maps = at_patches(distances, self.region)
        if self.smoothing > 0:  # over the patches of the region alone
            region = torch.from_numpy(self.region).to(distances.device)
            weights = smooth_maps(region[None].to(maps), self.smoothing)
            maps = smooth_maps(maps, self.smoothing) / weights.clamp_min_(torch.finfo(maps.dtype).tiny) * region
        return maps

    def scores(self, step: Tensor | BandedStep) -> Tensor:
        """Return the image scores (b,) of a step (b, P, m); higher is more normal."""
        return -image_scores(inspected(self.maps(step), self.region), self.image_score)

    def summaries(self, step: Tensor | BandedStep) -> Tensor:
        """Return the columns (b, 1 + q) of `Summaries` for a step (b, P, m): scores, and quantiles of the maps."""
        maps = inspected(self.maps(step), self.region)
        return torch.cat([-image_scores(maps, self.image_score)[:, None], upper_quantiles(maps)], dim=1)


@dataclass(frozen=True)
class ScoreSettings:
    """Parameters of a detector that its scores depend on: a threshold belongs to scores of the same settings."""

    n_components: Any
    distance: str
    noise_shrinkage: float
    ridge: float
    image_score: Any
    smoothing: float

    @classmethod
    def of(cls, detector: Any) -> ScoreSettings:
        """Return the settings of a detector as they are now."""
        return cls(*(getattr(detector, field.name) for field in fields(cls)))

    def differences(self, earlier: ScoreSettings) -> str:
        """Return which settings were others earlier, in words; nothing if none was."""
        pairs = ((field.name, getattr(earlier, field.name), getattr(self, field.name)) for field in fields(self))
        return ", ".join(f"{name}={then!r}, now {now!r}" for name, then, now in pairs if then != now)

    def scorer(self, operator: linalg.DistanceOperator, steps: StepReader, cells: Cells | None) -> MapScorer:
        """Return what scores steps by a model."""
        return MapScorer(operator, steps.patch_shape, self.smoothing, self.image_score, steps.region, cells)


def check_smoothing(smoothing: float, patch_shape: tuple[int, ...]) -> None:
    """Raise a ValueError if maps are to be blurred that have no rows and columns."""
    if smoothing > 0 and len(patch_shape) != 2:
        raise ValueError(f"smoothing={smoothing} needs X of shape (n, H, W, m), not patches of shape {patch_shape}")


def inspected(maps: Tensor, region: np.ndarray | None) -> Tensor:
    """Return the values (b, P) of maps (b, H, W) that belong to a region of interest; None for all."""
    return maps.flatten(1) if region is None else maps[:, torch.from_numpy(region).to(maps.device)]


def smooth_maps(maps: Tensor, sigma: float) -> Tensor:
    """Blur maps (n, H, W) as scipy.ndimage.gaussian_filter does: mirrored with their edges, unlike torchvision's."""
    rows, columns = (blur_matrix(side, sigma).to(maps) for side in maps.shape[1:])
    with linalg.full_precision():
        return rows @ maps @ columns.T


@lru_cache(maxsize=32)
@own_surroundings()
def blur_matrix(side: int, sigma: float) -> Tensor:
    """Return the matrix (side, side) that blurs a row of values."""
    return torch.from_numpy(gaussian_filter1d(np.eye(side), sigma, axis=0))


def is_aligned(X: Any) -> bool:
    """Return whether X has features of images that were aligned, so that maps have to be brought back to them."""
    return bool(getattr(X, "is_aligned", False))


def on_images(maps: Any, X: Any) -> Any:
    """Return maps of aligned images as maps of the images before they were aligned."""
    return X.maps_to_images(maps) if is_aligned(X) else maps


def image_scores(values: Tensor, image_score: Any, n_inspected: int | None = None) -> Tensor:
    """Return the largest value (`"max"`), mean or mean of the largest share of rows (n, P), 0 where not inspected."""
    n_values = n_inspected or values.shape[1]
    if image_score == "max":
        return values.amax(1)
    if image_score == "mean":
        return values.sum(1) / n_values
    return values.topk(max(1, round(image_score * n_values)), dim=1).values.mean(1)
