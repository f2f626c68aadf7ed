"""PatchFeatures: the features of images, computed when they are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ipca_sklearn._backbones import Backbone
from ipca_sklearn._image_batches import ImageSettings, read_batches
from ipca_sklearn.linalg import full_precision


@dataclass(frozen=True)
class FeatureSettings:
    """What turns images into features; all of it is plain data but the network and what the user brings."""

    backbone: Backbone
    mean: tuple[float, ...]
    std: tuple[float, ...]
    map_interpolation: str
    pooling_size: int
    grid_size: int
    n_features: int
    images: ImageSettings
    amp_dtype: torch.dtype | None
    compile: bool


class PatchFeatures:
    """Features of images, computed when they are read: the result of `PatchFeatureExtractor.transform`.

    Behaves like an array of shape `(n, H, W, m)` that is not there yet: it has `shape`, `dtype` and `len`, slices and
    index arrays give another one, an integer gives the array of one image, `numpy.asarray` gives the whole array.
    Iterating runs the network, one batch of images at a time, as often as wanted, with the same result. Pickles.

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn import PatchFeatureExtractor
    >>> images = np.zeros((3, 64, 64, 3), dtype=np.uint8)
    >>> extractor = PatchFeatureExtractor("resnet18", weights=None, image_size=64, crop_size=64)
    >>> features = extractor.fit(images).transform(images)
    >>> features.shape, features[1:].shape, np.asarray(features[:2]).shape
    ((3, 16, 16, 448), (2, 16, 16, 448), (2, 16, 16, 448))
    >>> [tuple(batch.shape) for batch in features.batches(2)]
    [(2, 16, 16, 448), (1, 16, 16, 448)]
    """

    ndim = 4
    dtype = np.dtype(np.float32)

    def __init__(self, images: Any, indices: np.ndarray, settings: FeatureSettings) -> None:
        self._images = images
        self._indices = indices
        self._settings = settings

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, H, W, m): images, rows and columns of patches, features."""
        side = self._settings.grid_size
        return (len(self._indices), side, side, self._settings.n_features)

    @property
    def device(self) -> torch.device:
        """Where the features are computed, and stay."""
        return self._settings.images.device

    def __len__(self) -> int:
        return len(self._indices)

    def __repr__(self) -> str:
        return f"PatchFeatures(shape={self.shape}, backbone={self._settings.backbone._label()}, device='{self.device}')"

    def __getitem__(self, key: Any) -> PatchFeatures | np.ndarray:
        chosen = self._indices[key]
        if np.ndim(chosen) > 1:
            raise IndexError("PatchFeatures are indexed by images alone: an integer, a slice, or one row of indices")
        if np.ndim(chosen) == 0:
            return np.asarray(PatchFeatures(self._images, np.array([chosen]), self._settings))[0]
        return PatchFeatures(self._images, chosen, self._settings)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("PatchFeatures are computed, so an array of them is always new; copy=False cannot be had")
        array = np.empty(self.shape, dtype=dtype or self.dtype)
        for start, batch in self._numbered_batches(self._settings.images.batch_size):
            array[start : start + len(batch)] = batch.cpu().numpy()
        return array

    def __iter__(self) -> Iterator[Tensor]:
        return self.batches()

    def batches(self, size: int | None = None) -> Iterator[Tensor]:
        """Yield the features as new float32 tensors (b, H, W, m) on `device`, of `size` images, the last one fewer.

        Parameters
        ----------
        size : int or None, default=None
            Images per tensor; None is the extractor's `batch_size`. The network takes `batch_size` images at a time,
            or fewer where that is no multiple of `size`, while the next ones are decoded; memory is for whichever is
            more.

        Yields
        ------
        Tensor of shape (b, H, W, m)

        Raises
        ------
        FileNotFoundError, ImageReadError
            When the turn comes of an image that cannot be read; the message names it. Floats in a tensor on a GPU
            are checked all at once, when reading begins.
        RuntimeError
            If the network cannot be compiled and `compile=True`.
        """
        if size is not None and size < 1:
            raise ValueError(f"size={size} images per batch; it is at least 1")
        for _, batch in self._numbered_batches(size or self._settings.images.batch_size):
            yield batch

    def batches_in_place(self, size: int) -> Iterator[Tensor]:
        """Yield as `batches` does, but a tensor may overwrite those before it: for a reader that keeps none of them.

        On a CPU new memory of this size is paid for in page faults, every step again.
        """
        for _, batch in self._numbered_batches(size, in_place=True):
            yield batch

    def _numbered_batches(self, size: int, *, in_place: bool = False) -> Iterator[tuple[int, Tensor]]:
        settings, device = self._settings, self.device
        backbone, limit = settings.backbone, settings.images.batch_size
        backbone.module.to(device)  # it may have been elsewhere since, or come from a pickle
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (settings.mean, settings.std))
        block = size * max(1, limit // size)  # whole batches of `size` that the network takes at once
        blocks = [self._indices[start : start + block] for start in range(0, len(self), block)]
        groups = [part[start : start + limit] for part in blocks for start in range(0, len(part), limit)]
        with closing(read_batches(self._images, groups, settings.images)) as images:
            memory = None
            for number, indices in enumerate(blocks):
                if memory is None or not in_place:
                    memory = torch.empty(len(indices), *self.shape[1:], device=device)
                features = memory[: len(indices)]
                for part in features.split(limit):
                    _describe((next(images) - mean) / std, part, settings)
                for offset in range(0, len(indices), size):
                    yield number * block + offset, features[offset : offset + size]


def _describe(images: Tensor, features: Tensor, settings: FeatureSettings) -> None:
    """Write the features (n, H, W, m) of normalised images (n, 3, S, S): all layers on the grid, side by side."""
    n_missing = settings.images.batch_size - len(images) if settings.compile else 0
    if n_missing > 0:  # a batch of another size would be compiled anew
        images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, n_missing))
    amp_dtype = settings.amp_dtype
    with torch.inference_mode(), full_precision():
        with torch.autocast(images.device.type, amp_dtype, enabled=amp_dtype is not None):
            layers = settings.backbone.maps(images, compiled=settings.compile)
        start = 0
        for layer in layers:
            stop = start + layer.shape[1]
            _write_on_grid(layer[: len(features)], features[..., start:stop], settings)
            start = stop


def _write_on_grid(layer: Tensor, out: Tensor, settings: FeatureSettings) -> None:
    """Resize maps (n, C, S, S) to the grid, average the neighbours and write the result to (n, H, W, C)."""
    side = layer.shape[-1]
    if side == settings.grid_size and settings.pooling_size == 1:
        out.copy_(layer.permute(0, 2, 3, 1))
    else:
        matrix = resizing(side, settings.grid_size, settings.map_interpolation, settings.pooling_size, out.device)
        out.copy_(on_grid(layer, matrix))


def on_grid(layer: Tensor, matrix: Tensor) -> Tensor:
    """Return maps (n, C, S, S) on the grid (n, H, W, C): rows and columns by the same matrix (H, S)."""
    maps = layer.permute(0, 2, 3, 1)
    rows = torch.matmul(matrix, maps.float().flatten(2))  # (n, H, S * C)
    return torch.matmul(matrix, rows.unflatten(2, (layer.shape[-1], -1)))


@lru_cache(maxsize=32)
def resizing(side: int, grid_size: int, interpolation: str, pooling_size: int, device: torch.device) -> Tensor:
    """Return the matrix (grid_size, side) that resizes a row of values, and averages each with its neighbours."""
    values = torch.eye(side)[:, None]
    if interpolation == "nearest":
        values = F.interpolate(values, grid_size, mode="nearest-exact")
    else:
        values = F.interpolate(values, grid_size, mode="linear", align_corners=False)
    values = F.avg_pool1d(values, pooling_size, 1, pooling_size // 2, count_include_pad=False)
    return values[:, 0].T.contiguous().to(device)
