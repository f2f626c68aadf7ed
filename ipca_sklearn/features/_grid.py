"""Maps of layers, of any sizes, to one grid of patches: resized, averaged over neighbours, channels last.

Resizing along an axis is linear, so a matrix does it, with the average over neighbours in the same product. The matrix
serves the extractor and the exported module alike.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@lru_cache(maxsize=32)
def resize_matrix(side: int, grid_size: int, interpolation: str, pooling_size: int, device: torch.device) -> Tensor:
    """Return the matrix (grid_size, side) that resizes a row of values and averages each with its neighbours."""
    values = torch.eye(side)[:, None]
    if interpolation == "nearest":
        values = F.interpolate(values, grid_size, mode="nearest-exact")
    else:
        values = F.interpolate(values, grid_size, mode="linear", align_corners=False)
    values = F.avg_pool1d(values, pooling_size, 1, pooling_size // 2, count_include_pad=False)
    return values[:, 0].T.contiguous().to(device)


def on_grid(layer: Tensor, matrix: Tensor) -> Tensor:
    """Return maps (n, C, S, S) on the grid (n, H, W, C), with the same matrix (H, S) for rows and columns."""
    maps = layer.permute(0, 2, 3, 1)
    rows = torch.matmul(matrix, maps.float().flatten(2))  # (n, H, S * C)
    return torch.matmul(matrix, rows.unflatten(2, (layer.shape[-1], -1)))


def write_on_grid(layer: Tensor, out: Tensor, *, interpolation: str, pooling_size: int) -> None:
    """Write maps (n, C, S, S) to their columns (n, H, W, C) of the features."""
    side, grid_size = layer.shape[-1], out.shape[1]
    if side == grid_size and pooling_size == 1:
        out.copy_(layer.permute(0, 2, 3, 1))
    else:
        out.copy_(on_grid(layer, resize_matrix(side, grid_size, interpolation, pooling_size, out.device)))
