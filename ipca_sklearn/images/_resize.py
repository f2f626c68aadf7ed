"""Resizing in float32, whatever the form of an image: the same picture has the same pixels afterwards, to rounding.

torch resizes 8-bit images ten times as fast as floats, but rounds them to whole levels after each axis. A smooth
picture then differs from its own floats by half a level, and a detector that learnt from one form calls the other
anomalous. On a CPU each axis is one product with a matrix that is 0 but for a narrow band, taken block by block: half
the time of torch's kernel for floats, and a large 8-bit image is never held as floats as a whole.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ipca_sklearn._utils._typing import Size
from ipca_sklearn.linalg import full_precision

# Change it with every change of what `resize` or `to_rgb` give for a picture: kept features of other pixels are not
# read then (FeatureSettings.digest).
PIXELS_VERSION = 2

INTERPOLATIONS = ("nearest", "bilinear")


def resize(image: Tensor, size: Size, interpolation: str) -> Tensor:
    """Return images (..., C, H, W) resized: antialiased as float32 in [0, 1], or as they are if no value is new."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    if interpolation == "nearest":
        return _by_torch(image, size, mode="nearest-exact")
    if image.shape[-3] > 1 and image.stride(-3) == 0:  # grey, repeated
        return resize(image[..., :1, :, :], size, interpolation).expand(*image.shape[:-2], *size)
    if image.device.type != "cpu" or image.requires_grad:
        return _by_torch(to_unit_floats(image), size, mode="bilinear", antialias=True)
    with full_precision(), torch.autocast("cpu", enabled=False):
        if image.ndim == 3:
            return _resize_one(image, size)
        alone = [_resize_one(one, size) for one in image.reshape(-1, *image.shape[-3:])]
        return torch.stack(alone).reshape(*image.shape[:-2], *size)


def _by_torch(image: Tensor, size: Size, **options: Any) -> Tensor:
    resized = F.interpolate(image.reshape(-1, *image.shape[-3:]), size, **options)
    return resized.reshape(*image.shape[:-2], *size)


def to_unit_floats(images: Tensor) -> Tensor:
    """Return uint8 as shares of 255, and everything else as it is, in float32.

    torchvision's to_dtype(scale=True) rounds 126 of the 256 values differently. By numpy, because torch's threads would
    look for more work for milliseconds, on the cores that an engine or the distances need next.
    """
    if images.dtype == torch.uint8 and images.device.type == "cpu":
        return torch.from_numpy(np.divide(images.numpy(), np.float32(255), dtype=np.float32))
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def _resize_one(image: Tensor, size: Size) -> Tensor:
    n_channels, height, width = image.shape
    channels_last = image.stride(0) < image.stride(2)
    # Rows first: they are contiguous, and what is left of a large image is small.
    planes = [image.permute(1, 2, 0).reshape(height, -1)] if channels_last else list(image)
    rows = torch.empty(len(planes), size[0], planes[0].shape[1], dtype=torch.float32, device="cpu")
    for plane, out in zip(planes, rows, strict=True):
        for band in _bands(height, size[0], 8):
            torch.mm(band.weights, to_unit_floats(plane[band.first : band.last]), out=out[band.start : band.stop])
    if channels_last:
        rows = rows.view(size[0], width, n_channels).transpose(1, 2)
    if width == size[1]:
        return rows.transpose(0, 1) if channels_last else rows
    lines = rows.reshape(-1, width)
    resized = torch.empty(len(lines), size[1], dtype=torch.float32, device="cpu")
    for band in _bands(width, size[1], 16):
        resized[:, band.start : band.stop] = lines[:, band.first : band.last] @ band.weights.T
    if channels_last:
        return resized.view(size[0], n_channels, size[1]).transpose(0, 1)
    return resized.view(n_channels, *size)


class _Band(NamedTuple):
    """New positions `start` to `stop` are sums of the old ones from `first` to `last`, by weights (new, old)."""

    start: int
    stop: int
    first: int
    last: int
    weights: Tensor


@lru_cache(64)  # sizes of images, of which a line has few
def _bands(side: int, new_side: int, shortest: int) -> list[_Band]:
    """Return torch's bilinear antialiased interpolation as blocks of at least `shortest` rows without their zeros."""
    # More rows where few pixels make one, so that a block is worth a call (measured).
    scale = side / new_side
    reach = max(scale, 1.0)
    length = min(32, max(shortest, round(32 / scale)))
    bands = []
    for start in range(0, new_side, length):
        stop = min(start + length, new_side)
        centres = (np.arange(start, stop) + 0.5) * scale
        first, last = max(0, int(centres[0] - reach)), min(side, int(np.ceil(centres[-1] + reach)))
        weights = (1 - np.abs(np.arange(first, last) + 0.5 - centres[:, None]) / reach).clip(0)
        weights /= weights.sum(1, keepdims=True)
        bands.append(_Band(start, stop, first, last, torch.from_numpy(weights.astype(np.float32))))
    return bands


def sampled(image: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """Return the values of a float image (3, H, W) at places in pixels from its middle; beyond, it is mirrored."""
    height, width = image.shape[1:]
    # grid_sample measures each axis by half of its length.
    places = np.stack([columns * (2 / width), rows * (2 / height)], axis=-1).astype(np.float32)
    grid = torch.from_numpy(places).to(image.device)[None]
    return F.grid_sample(image[None], grid, mode="bilinear", padding_mode="reflection", align_corners=False)[0]
