"""Maps of layers, of any sizes, to one grid of patches: resized, averaged over neighbours, channels last.

Resizing along an axis is linear, so a matrix does it, with the average over neighbours in the same product. The matrix
serves the extractor and the exported module alike.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@lru_cache(maxsize=64)
def resize_matrix(side: int, new_side: int, interpolation: str, pooling_size: int, device: torch.device) -> Tensor:
    """Return the matrix (new_side, side) that resizes a row of values and averages each with its neighbours."""
    values = torch.eye(side)[:, None]
    if interpolation == "nearest":
        values = F.interpolate(values, new_side, mode="nearest-exact")
    else:
        values = F.interpolate(values, new_side, mode="linear", align_corners=False)
    values = F.avg_pool1d(values, pooling_size, 1, pooling_size // 2, count_include_pad=False)
    return values[:, 0].T.contiguous().to(device)


def on_grid(layer: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return maps (n, C, h, w) on the grid (n, H, W, C), with matrices (H, h) for the rows and (W, w) for the columns.

    Both products are of one matrix and long contiguous rows.
    """
    maps = layer.permute(0, 2, 3, 1)
    resized = torch.matmul(rows, maps.float().flatten(2))  # (n, H, w * C)
    return torch.matmul(columns, resized.unflatten(2, (layer.shape[-1], -1)))


def write_on_grid(layer: Tensor, out: Tensor, *, interpolation: str, pooling_size: int) -> None:
    """Write maps (n, C, h, w) to their columns (n, H, W, C) of the features."""
    if layer.shape[2:] == out.shape[1:3] and pooling_size == 1:
        out.copy_(layer.permute(0, 2, 3, 1))
        return
    rows, columns = (
        resize_matrix(side, new_side, interpolation, pooling_size, out.device)
        for side, new_side in zip(layer.shape[2:], out.shape[1:3], strict=True)
    )
    out.copy_(on_grid(layer, rows, columns))
