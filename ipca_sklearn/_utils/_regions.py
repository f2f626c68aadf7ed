"""Values of the patches of a region of interest, at their places in the grid."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def at_patches(values: Tensor, region: np.ndarray) -> Tensor:
    """Return values (n, P, ...) of the P patches of a region (H, W) as (n, H, W, ...), with 0 elsewhere."""
    grid = values.new_zeros(len(values), *region.shape, *values.shape[2:])
    grid[:, torch.from_numpy(region).to(values.device)] = values
    return grid
