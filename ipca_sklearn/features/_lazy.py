"""PatchFeatures: the features of images, computed when they are read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ipca_sklearn.exceptions import SkippedImagesWarning
from ipca_sklearn.features._cache import FeatureCache
from ipca_sklearn.features._grid import write_on_grid
from ipca_sklearn.features._loader import read_batches
from ipca_sklearn.features._settings import FeatureSettings
from ipca_sklearn.linalg import full_precision


class PatchFeatures:
    """Features of images, computed when they are read: the result of `PatchFeatureExtractor.transform`.

    Behaves like an array of shape `(n, H, W, m)` that is not there yet: it has `shape`, `dtype` and `len`, slices and
    index arrays give another one, an integer gives the array of one image, `numpy.asarray` gives the whole array.
    Iterating runs the network, one batch of images at a time, as often as wanted, with the same result. Pickles.
    With `on_error="skip"` the features of images that cannot be read are NaN, and `skipped` says why.

    Attributes
    ----------
    skipped : dict of int to str
        Positions, in the images given to `transform`, of those that could not be read when they were read last, and
        the reasons.

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

    def __init__(
        self,
        images: Any,
        indices: np.ndarray,
        settings: FeatureSettings,
        cache: FeatureCache | None = None,
        skipped: dict[int, str] | None = None,
    ) -> None:
        self._images = images
        self._indices = indices
        self._settings = settings
        self._cache = cache
        self.skipped = {} if skipped is None else skipped

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, H, W, m): images, rows and columns of patches, features."""
        side = self._settings.grid_size
        return (len(self._indices), side, side, self._settings.n_features)

    @property
    def device(self) -> torch.device:
        """Where the features are computed, and stay."""
        return self._settings.images.device

    @property
    def may_skip(self) -> bool:
        """Whether images that cannot be read are skipped."""
        return self._settings.images.on_error == "skip"

    def __len__(self) -> int:
        return len(self._indices)

    def __repr__(self) -> str:
        return f"PatchFeatures(shape={self.shape}, backbone={self._settings.backbone._label()}, device='{self.device}')"

    def __getitem__(self, key: Any) -> PatchFeatures | np.ndarray:
        chosen = self._indices[key]
        if np.ndim(chosen) > 1:
            raise IndexError("PatchFeatures are indexed by images alone: an integer, a slice, or one row of indices")
        if np.ndim(chosen) == 0:
            return np.asarray(self._at(np.array([chosen])))[0]
        return self._at(chosen)

    def _at(self, indices: np.ndarray) -> PatchFeatures:
        return PatchFeatures(self._images, indices, self._settings, self._cache, self.skipped)

    def cached_in(self, cache: FeatureCache | None) -> PatchFeatures:
        """Return the same features, which are looked up in a cache before the network is asked."""
        return PatchFeatures(self._images, self._indices, self._settings, cache, self.skipped)

    def skipped_rows(self, start: int, stop: int) -> list[int]:
        """Return which of `range(start, stop)` could not be read when they were read last, counted from `start`."""
        if not self.skipped:
            return []
        return [row for row, index in enumerate(self._indices[start:stop]) if int(index) in self.skipped]

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
        for index in self._indices:  # it may be readable by now
            self.skipped.pop(int(index), None)
        files = None if self._cache is None else self._cache.files(self._images, self._indices, settings)
        # Rows of each block that the network has to make, as many at once as it may take.
        to_make: list[list[np.ndarray]] = []
        for indices in blocks:
            rows = np.arange(len(indices)) if files is None else files.missing(indices)
            to_make.append([rows[start : start + limit] for start in range(0, len(rows), limit)])
        groups = [indices[rows] for indices, parts in zip(blocks, to_make, strict=True) for rows in parts]
        with closing(read_batches(self._images, groups, settings.images, self.skipped)) as images:
            memory = None
            for number, (indices, parts) in enumerate(zip(blocks, to_make, strict=True)):
                if memory is None or not in_place:
                    memory = torch.empty(len(indices), *self.shape[1:], device=device)
                features = memory[: len(indices)]
                for rows in parts:
                    self._make_rows((next(images) - mean) / std, features, rows, indices, files)
                if files is not None:
                    for row in np.setdiff1d(np.arange(len(indices)), np.concatenate([*parts, []])):
                        if not files.read(indices[row], features[row]):  # gone since, or broken
                            features[row] = torch.from_numpy(np.asarray(self._at(indices[[row]]).cached_in(None))[0])
                for offset in range(0, len(indices), size):
                    yield number * block + offset, features[offset : offset + size]
        self._report_skipped()

    def _make_rows(self, images: Tensor, features: Tensor, rows: np.ndarray, indices: np.ndarray, files: Any) -> None:
        """Let the network fill some rows of `features`, and the cache keep them."""
        together = rows[-1] - rows[0] + 1 == len(rows)
        made = features[rows[0] : rows[-1] + 1] if together else features.new_empty(len(rows), *features.shape[1:])
        _describe(images, made, self._settings)
        for row, index, one in zip(rows, indices[rows], made, strict=True):
            if int(index) in self.skipped:
                one.fill_(torch.nan)
            elif files is not None:
                files.write(index, one)
            if not together:
                features[row] = one

    def _report_skipped(self) -> None:
        reasons = [self.skipped[int(index)] for index in self._indices if int(index) in self.skipped]
        if reasons:
            told = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
            warnings.warn(
                f"{len(reasons)} of {len(self)} images could not be read: {told}. They are not learnt from, and their "
                "scores are NaN",
                SkippedImagesWarning,
                stacklevel=2,
            )


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
            write_on_grid(
                layer[: len(features)],
                features[..., start:stop],
                interpolation=settings.map_interpolation,
                pooling_size=settings.pooling_size,
            )
            start = stop
