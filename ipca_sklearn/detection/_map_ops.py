"""From the distances of patches to what a user reads: smooth maps, a score per image."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from ipca_sklearn import linalg


def smooth_maps(maps: Tensor, sigma: float) -> Tensor:
    """Blur maps (n, H, W) by a Gaussian, as scipy.ndimage.gaussian_filter does, each side mirrored with its edge.

    (A mirror without the edge, torchvision's only one, moves what lies beside a corner into it.)
    """
    rows, columns = (blur(side, sigma).to(maps) for side in maps.shape[1:])
    with linalg.full_precision():
        return rows @ maps @ columns.T


@lru_cache(maxsize=32)
def blur(side: int, sigma: float) -> Tensor:
    """Return the matrix (side, side) that blurs a row of values."""
    return torch.from_numpy(gaussian_filter1d(np.eye(side), sigma, axis=0))


def image_scores(maps: Tensor, how: Any) -> Tensor:
    """Return the largest value (`"max"`), the mean, or the mean of a share of the largest values of each map."""
    values = maps.flatten(1)
    if how == "max":
        return values.amax(1)
    if how == "mean":
        return values.mean(1)
    return values.topk(max(1, round(how * values.shape[1])), dim=1).values.mean(1)
