"""Maps of layers, of any sizes, to one grid of patches: resized, averaged over neighbours, channels last.

Resizing along an axis is linear, so a matrix does it, with the average over neighbours in the same product and without
the margin of the maps. The matrix serves the extractor and the exported module alike; on a CPU with numba the extractor
leaves out its zeros.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn.linalg._execution import numba_works


@lru_cache(maxsize=64)
@own_surroundings()
def resize_matrix(
    side: int, patches: int, interpolation: str, pooling_size: int, margin: int, length: int, device: torch.device
) -> Tensor:
    """Return the matrix (patches, side) that resizes a row of values and averages each patch with its neighbours.

    The values cover `length` pixels, as the patches do, and `margin` pixels at both ends, which count for the average.
    """
    reach = pooling_size // 2
    patch = torch.arange(-reach, patches + reach, device="cpu")
    # One division of integers, so that a position between two values is exactly there.
    above, below = ((2 * patch + 1) * length + 2 * patches * margin) * side, 2 * patches * (length + 2 * margin)
    centre = above.double() / below
    is_there = (above > 0) & (above < side * below)
    if interpolation == "nearest":
        at, share = centre.floor().clamp(0, side - 1).long(), torch.zeros_like(centre)
    else:
        centre = (centre - 0.5).clamp(0, side - 1)
        at = centre.floor().long()
        share = centre - at
    weights = torch.zeros(len(patch), side, dtype=torch.float64, device="cpu")
    weights.scatter_add_(1, at[:, None], (1 - share)[:, None])
    weights.scatter_add_(1, (at + 1).clamp(max=side - 1)[:, None], share[:, None])
    weights *= is_there[:, None]
    n_averaged = is_there.double().unfold(0, pooling_size, 1).sum(-1, keepdim=True)
    averaged = weights.unfold(0, pooling_size, 1).sum(-1) / n_averaged
    return averaged.float().contiguous().to(device)


def on_grid(layer: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return maps (n, C, h, w) on the grid (n, H, W, C), by matrices (H, h) for rows and (W, w) for columns."""
    maps = layer.permute(0, 2, 3, 1)
    resized = torch.matmul(rows, maps.float().flatten(2))  # (n, H, w * C)
    return torch.matmul(columns, resized.unflatten(2, (layer.shape[-1], -1)))


def write_on_grid(
    layer: Tensor, out: Tensor, *, interpolation: str, pooling_size: int, margin: int, length: tuple[int, int]
) -> None:
    """Write maps (n, C, h, w), with a margin around `length` pixels, to their columns (n, H, W, C) of the features."""
    if layer.shape[2:] == out.shape[1:3] and pooling_size == 1 and margin == 0:
        out.copy_(layer.permute(0, 2, 3, 1))
        return
    resizings = [
        (side, patches, interpolation, pooling_size, margin, pixels, out.device)
        for side, patches, pixels in zip(layer.shape[2:], out.shape[1:3], length, strict=True)
    ]
    if out.device.type == "cpu" and numba_works():
        from ipca_sklearn.features._numba_grid import write_maps  # numba is optional

        maps = layer.detach().permute(0, 2, 3, 1).float().contiguous()
        write_maps(maps.numpy(), *_bands(*resizings[0]), *_bands(*resizings[1]), out.detach().numpy())
        return
    out.copy_(on_grid(layer, *(resize_matrix(*each) for each in resizings)))


@lru_cache(maxsize=64)
def _bands(*resizing: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return what is not 0 of a `resize_matrix`."""
    from ipca_sklearn.features._numba_grid import band

    return band(resize_matrix(*resizing).numpy())
