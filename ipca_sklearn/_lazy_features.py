"""PatchFeatures: the features of images, computed when they are read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from ipca_sklearn._backbones import Backbone
from ipca_sklearn._images import load_batch, resize_and_crop, to_rgb


@dataclass(frozen=True)
class FeatureSettings:
    """What turns images into features; all of it is plain data but the network."""

    backbone: Backbone
    grid_size: int
    n_features: int
    image_size: int
    crop_size: int
    interpolation: str
    augment: Any
    seed: int
    batch_size: int
    n_threads: int
    amp: bool
    device: torch.device


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
        return self._settings.device

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
        for start, batch in self._numbered_batches(self._settings.batch_size):
            array[start : start + len(batch)] = batch.cpu().numpy()
        return array

    def __iter__(self) -> Iterator[Tensor]:
        return self.batches()

    def batches(self, size: int | None = None) -> Iterator[Tensor]:
        """Yield the features as new float32 tensors (b, H, W, m) on `device`, of `size` images, the last one fewer.

        Parameters
        ----------
        size : int or None, default=None
            Images per tensor; None is the extractor's `batch_size`. The network takes at most `batch_size` images at
            a time, while threads decode the next ones.

        Yields
        ------
        Tensor of shape (b, H, W, m)

        Raises
        ------
        FileNotFoundError, ImageReadError
            When the turn comes of an image that cannot be read; the message names it.
        """
        if size is not None and size < 1:
            raise ValueError(f"size={size} images per batch; it is at least 1")
        for _, batch in self._numbered_batches(size or self._settings.batch_size):
            yield batch

    def _numbered_batches(self, size: int) -> Iterator[tuple[int, Tensor]]:
        settings = self._settings
        settings.backbone.module.to(settings.device)  # it may have been elsewhere since, or come from a pickle
        images = self._prepared_images()
        for start in range(0, len(self), size):
            features = torch.empty(min(size, len(self) - start), *self.shape[1:], device=settings.device)
            for part in features.split(settings.batch_size):
                _describe(load_batch(list(islice(images, len(part)))), part, settings)
            yield start, features

    def _prepared_images(self) -> Iterator[Tensor]:
        """Yield the images resized and cropped, decoded ahead by threads; at most two batches wait."""
        waiting: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(self._settings.n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for index in self._indices:
                    waiting.append(pool.submit(self._prepare, int(index)))
                    if len(waiting) > 2 * self._settings.batch_size:
                        yield self._augmented(waiting.popleft())
                while waiting:
                    yield self._augmented(waiting.popleft())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, index: int) -> tuple[int, Tensor]:
        settings = self._settings
        image = to_rgb(self._images[index], f"X[{index}]")
        crop_size = settings.crop_size if settings.augment is None else settings.image_size
        return index, resize_and_crop(image, settings.image_size, crop_size, settings.interpolation)

    def _augmented(self, prepared: Any) -> Tensor:
        """Augment in the reader's thread: the random numbers of torch belong to the whole process."""
        settings = self._settings
        index, image = prepared.result()
        if settings.augment is None:
            return image
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((settings.seed, index)) % 2**63)
            return v2.functional.center_crop(settings.augment(image), [settings.crop_size, settings.crop_size])


def _describe(images: Tensor, features: Tensor, settings: FeatureSettings) -> None:
    """Write the features (n, H, W, m) of images (n, 3, S, S) in [0, 1]: all layers on the grid, side by side."""
    backbone, device = settings.backbone, settings.device
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    with torch.inference_mode(), torch.autocast(device.type, enabled=settings.amp):
        maps = backbone.maps(((images.to(device) - mean) / std).contiguous(memory_format=torch.channels_last))
        start = 0
        for layer in maps:
            if layer.shape[-1] != settings.grid_size:
                size = (settings.grid_size, settings.grid_size)
                layer = F.interpolate(layer.float(), size, mode="nearest-exact")
            features[..., start : start + layer.shape[1]] = layer.permute(0, 2, 3, 1)
            start += layer.shape[1]
