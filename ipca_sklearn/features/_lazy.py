"""PatchFeatures: the features of images, computed when they are read."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from copy import copy
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import DTypeLike
from torch import Tensor

from ipca_sklearn._utils._arrays import at_patches
from ipca_sklearn._utils._surroundings import default_device, own_surroundings
from ipca_sklearn._utils._threads import calling_modules
from ipca_sklearn._utils._typing import Size
from ipca_sklearn.exceptions import ImageReadError
from ipca_sklearn.features import engines
from ipca_sklearn.features._alignment import UNREADABLE, Placement, alignment_table, map_to_image
from ipca_sklearn.features._cache import FeatureCache, StoredFeatures
from ipca_sklearn.features._geometry import covered_box
from ipca_sklearn.features._grid import write_on_grid
from ipca_sklearn.features._loader import read_batches
from ipca_sklearn.features._remarks import Remarks, SkippedImages
from ipca_sklearn.features._settings import FeatureSettings
from ipca_sklearn.images._decode import size_of
from ipca_sklearn.linalg import full_precision

# Of an image that is decoded: as Pillow has it, as bytes and as floats.
_BYTES_PER_PIXEL = 12


class PatchFeatures:
    """Features of images, computed when they are read: the result of `PatchFeatureExtractor.transform`.

    Behaves like an array of shape `(n, H, W, m)` that does not exist yet. It has `shape`, `dtype` and `len`. Slices
    and index arrays give another PatchFeatures, an integer gives the array of one image, `numpy.asarray` gives the
    whole array. Patches outside of a region of interest are 0. Iterating runs the network, one batch of images at a
    time, as often as wanted, with the same result. It can be pickled. With `on_error="skip"` the features of images
    that cannot be read are NaN, and `skipped` gives the reasons.

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
        record: SkippedImages | None = None,
        of_copies: FeatureSettings | None = None,
    ) -> None:
        self._images = images
        self._indices = indices
        self._settings = settings
        self._cache = cache
        self._record = SkippedImages() if record is None else record
        self._of_copies = of_copies  # how augmented copies of training images become features
        self._placements: dict[int, Placement] = {}  # of images that were read; slices share it

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, H, W, m): images, rows and columns of patches, features."""
        return (len(self._indices), *self._settings.shape)

    @property
    def region(self) -> np.ndarray | None:
        """Patches (H, W) that `read` yields, True is inspected; None if all are."""
        return self._settings.region

    @property
    def device(self) -> torch.device:
        """Where the features are computed and stay."""
        return self._settings.images.device

    @property
    def memory_needed(self) -> int:
        """Bytes that computing them takes, about: the network, images in it, ahead of it, and being decoded."""
        images = self._settings.images
        waiting = images.batch_size * 3 * 3 * 4 * math.prod(images.crop_size)
        return self._settings.bytes_of_network(self.device) + waiting + self._bytes_of_decoding()

    def _bytes_of_decoding(self) -> int:
        """Return what decoding takes if all images are as large as the first one."""
        if isinstance(self._images, (np.ndarray, Tensor)) or len(self._indices) == 0:
            return 0
        size = self._size_of(self._indices[0])
        return 0 if size is None else _BYTES_PER_PIXEL * math.prod(size) * self._settings.images.n_jobs

    @property
    def may_skip(self) -> bool:
        """Whether images that cannot be read are skipped.

        :meta private:
        """
        return self._settings.images.on_error == "skip"

    @property
    def n_copies(self) -> int:
        """Augmented copies of each image, which `read_copies` yields besides.

        :meta private:
        """
        return 0 if self._of_copies is None else self._of_copies.images.n_augmented

    @property
    def skipped(self) -> dict[int, str]:
        """Images that the last complete pass over them could not read: positions in X of `transform`, and reasons."""
        return self._record.reasons

    def image_sizes(self) -> list[Size | None]:
        """Return height and width of the upright original images, from their headers; None where one cannot be read."""
        return [self._size_of(index) for index in self._indices]

    def _size_of(self, index: int) -> Size | None:
        try:
            return size_of(self._images[index], self._settings.images.max_pixels)
        except ImageReadError:  # reported when it is read
            return None

    @property
    def is_aligned(self) -> bool:
        """Whether images are brought to the mean training image (`align`), so that maps are not those of the images."""
        return self._settings.images.aligner is not None

    def alignment(self) -> np.ndarray:
        """Return where the part lies in each image: what `align` found.

        Images that have been read are known; others, such as those whose features came from a cache, are read for it.

        Returns
        -------
        ndarray of shape (n,), with named fields
            `angle` in degrees, `down` and `right` in pixels of the resized image: how the part is turned and moved
            against `reference_`; `quality`, the correlation with that; and `aligned`. Where the alignment failed,
            `aligned` is False and nothing moves; `quality` is NaN for images that cannot be read.

        Raises
        ------
        ValueError
            Without `align`.
        ImageReadError
            As `batches`.
        """
        if not self.is_aligned:
            raise ValueError("alignment() tells what align='translation' or 'rigid' found, and align is None")
        return alignment_table(self._placed())

    def maps_to_images(self, maps: np.ndarray) -> np.ndarray:
        """Return maps (n, H, W) of aligned images as maps of the images themselves; others as they are.

        A detector's `transform` does it. Patches that are not inspected are 0.

        Parameters
        ----------
        maps : ndarray of shape (n, H, W)
            A map of each image.

        Returns
        -------
        ndarray of shape (n, H, W)
        """
        if not self.is_aligned:
            return maps
        crop_size, pairs = self._settings.images.crop_size, zip(maps, self._placed(), strict=True)
        return np.stack([map_to_image(values, placement.pose, crop_size) for values, placement in pairs])

    def _placed(self) -> list[Placement]:
        missing = np.array([index for index in self._indices.tolist() if index not in self._placements], dtype=int)
        size = self._settings.images.batch_size
        batches = [missing[start : start + size] for start in range(0, len(missing), size)]
        with closing(read_batches(self._images, batches, self._settings.images)) as loaded:
            for batch in loaded:
                self._placements.update(batch.placements)
        return [self._placements.get(index, UNREADABLE) for index in self._indices.tolist()]

    def covered_box(self, size: Size) -> tuple[float, float, float, float]:
        """Return top, left, height and width of what the patches cover of an image, as the extractor's method."""
        return covered_box(size, self._settings.images.image_size, self._settings.images.crop_size)

    def __len__(self) -> int:
        return len(self._indices)

    def __repr__(self) -> str:
        return f"PatchFeatures(shape={self.shape}, backbone={self._settings.backbone.label()}, device='{self.device}')"

    def __getitem__(self, key: Any) -> PatchFeatures | np.ndarray:
        chosen = self._indices[key]
        if np.ndim(chosen) > 1:
            raise IndexError("PatchFeatures are indexed by images alone: an integer, a slice, or one row of indices")
        part = self._of(np.atleast_1d(chosen))
        return np.asarray(part)[0] if np.ndim(chosen) == 0 else part

    def _of(self, indices: np.ndarray) -> Self:
        """Return the features of some images, which share all that is known of these."""
        part = copy(self)
        part._indices = indices
        return part

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(
                "copy=False is not supported: PatchFeatures are computed, so an array of them is always new"
            )
        array = np.empty(self.shape, dtype=dtype or self.dtype)
        start = 0
        for batch, _ in self.read(self._images_at_once, reuse=True):
            array[start : start + len(batch)] = self._on_grid(batch).cpu().numpy()
            start += len(batch)
        return array

    def __iter__(self) -> Iterator[Tensor]:
        return self.batches()

    def batches(self, size: int | None = None) -> Iterator[Tensor]:
        """Yield the features as new float32 tensors (b, H, W, m) on `device`, of `size` images, the last one fewer.

        Parameters
        ----------
        size : int or None, default=None
            Images per tensor; None is the extractor's `batch_size`. The network takes `batch_size` images at a time,
            or fewer if that is no multiple of `size`, while the next ones are decoded. The larger of the two sizes
            decides the memory.

        Yields
        ------
        Tensor of shape (b, H, W, m)

        Raises
        ------
        ImageReadError
            When the reader comes to an image that cannot be read; the message names it. Floats in a tensor on a GPU
            are checked together, when reading begins.
        RuntimeError
            If the network cannot be compiled and `compile=True`.
        """
        for batch, _ in self.read(self._images_at_once if size is None else size):
            yield self._on_grid(batch)

    @property
    def _images_at_once(self) -> int:
        return self._settings.images.batch_size

    def _on_grid(self, batch: Tensor) -> Tensor:
        """Return the patches of a region (b, P, m) at their places (b, H, W, m); without a region they are there."""
        return batch if self.region is None else at_patches(batch, self.region)

    def read(self, size: int, *, reuse: bool = False) -> Iterator[tuple[Tensor, dict[int, str]]]:
        """Yield the features like `batches`, each with the images in it that could not be read: rows and reasons.

        :meta private:

        What is skipped belongs to this pass: other readers of the same features do not change it. A complete pass
        updates `skipped`, and warns of what it skipped, of files with several pages, and of images that are stretched
        because their proportions are not those of the first image of the fit. Batches have the P patches of a region of
        interest alone, (b, P, m), and NaN for images that could not be read. With `reuse` a tensor may overwrite the
        memory of earlier ones, which avoids page faults on the CPU.
        """
        if size < 1:
            raise ValueError(f"size={size} images per batch; it is at least 1")
        remarks = Remarks()
        return self._with_remarks(self._read(size, reuse, remarks), remarks)

    def read_copies(self, size: int, *, reuse: bool = False) -> Iterator[tuple[Tensor, dict[int, str]]]:
        """Yield, as `read`, the features of each image, followed by those of its copies, for `size` images at a time.

        :meta private:
        """
        assert self._of_copies is not None
        n_copies = self.n_copies
        repeated = PatchFeatures(self._images, np.repeat(self._indices, n_copies), self._of_copies)
        # The pass over the images themselves warns of them.
        reading: Any = repeated._read(size * n_copies, reuse, Remarks())
        with closing(reading) as copies:
            for batch, skipped in self.read(size, reuse=reuse):
                of_copies, unreadable = next(copies)
                together = torch.cat([batch[:, None], of_copies.unflatten(0, (-1, n_copies))], dim=1)
                yield together.flatten(0, 1), {row // n_copies: why for row, why in unreadable.items()} | skipped

    def _with_remarks(self, reading: Iterator[tuple[Any, dict[int, str]]], remarks: Remarks) -> Iterator[Any]:
        reasons: dict[int, str] = {}
        start = 0
        for batch, skipped in reading:
            reasons |= {int(self._indices[start + row]): reason for row, reason in skipped.items()}
            start += len(batch)
            yield batch, skipped
        self._record.replace(self._indices, reasons)
        remarks.warn(
            [reasons[index] for index in self._indices.tolist() if index in reasons], len(self), self._settings
        )

    def _read(self, size: int, reuse: bool, remarks: Remarks) -> Iterator[tuple[Tensor, dict[int, str]]]:
        settings, device, limit = self._settings, self.device, self._settings.images.batch_size
        with own_surroundings():
            settings.backbone.move(device)  # another reader may have moved it, or it comes from a pickle
        # The network takes several whole tensors of `size` at once, if they fit. Such a group shares one memory.
        length = size * max(1, settings.network_batch(device) // size)
        groups = [self._indices[start : start + length] for start in range(0, len(self), length)]
        stored = self._stored()
        missing = [np.arange(len(group)) if stored is None else stored.missing(group) for group in groups]
        batches = [[rows[start : start + limit] for start in range(0, len(rows), limit)] for rows in missing]
        to_load = [group[rows] for group, in_group in zip(groups, batches, strict=True) for rows in in_group]
        memory = None
        with closing(read_batches(self._images, to_load, settings.images)) as loaded:
            for group, rows_missing, in_group in zip(groups, missing, batches, strict=True):
                if memory is None or not reuse:
                    memory = torch.empty(len(group), *settings.kept_shape, dtype=torch.float32, device=device)
                features = memory[: len(group)]
                skipped: dict[int, str] = {}
                for rows in in_group:
                    batch = next(loaded)
                    remarks.add(batch)
                    self._placements.update(batch.placements)
                    _fill(features, rows, batch.images, settings)
                    for number, row in enumerate(rows.tolist()):
                        if number in batch.skipped:
                            features[row] = torch.nan
                            skipped[row] = batch.skipped[number]
                        elif stored is not None:
                            stored.write(group[row], features[row])
                if stored is not None:
                    rows = np.setdiff1d(np.arange(len(group)), rows_missing)
                    skipped |= self._fill_from_files(features, rows, group, stored, remarks)
                for start in range(0, len(group), size):
                    of_these = {row - start: why for row, why in skipped.items() if start <= row < start + size}
                    yield features[start : start + size], of_these

    def _fill_from_files(
        self, features: Tensor, rows: np.ndarray, group: np.ndarray, stored: StoredFeatures, remarks: Remarks
    ) -> dict[int, str]:
        """Read some rows of a group from the cache; return those that could not be read, and the reasons."""
        skipped: dict[int, str] = {}
        if not len(rows):
            return skipped
        on_cpu = features.device.type == "cpu"
        host = features if on_cpu else torch.empty(features.shape, dtype=torch.float32, device="cpu")

        def read(row: int) -> bool:
            return stored.read(group[row], host[row].numpy())

        # As many threads as torch would copy with: half of the time goes into the checksums.
        with ThreadPoolExecutor(min(len(rows), torch.get_num_threads())) as pool:
            are_whole = list(pool.map(read, rows.tolist()))
        for row, is_whole in zip(rows.tolist(), are_whole, strict=True):
            if is_whole:
                if not on_cpu:
                    features[row] = host[row]
                continue
            # The file has gone since, or is damaged: compute and write it anew.
            uncached = self._of(group[[row]])
            uncached._cache = None
            ((alone, unreadable),) = uncached._read(1, False, remarks)
            features[row] = alone[0]
            if unreadable:
                skipped[row] = unreadable[0]
            else:
                stored.write(group[row], features[row])
        return skipped

    def _stored(self) -> StoredFeatures | None:
        """Return the files of the cache, if there is one and these features may be stored."""
        if self._cache is None:
            return None
        if self._settings.images.augment is not None:
            warnings.warn(
                "features of augmented images are not kept in the cache, each fit computes them anew",
                UserWarning,
                stacklevel=2,
            )
            return None
        digest = self._settings.digest(
            engines.choose(self._settings.of_network).label if self._settings.amp_dtype is not None else ""
        )
        return StoredFeatures(self._cache, self._images, self._indices, digest, self._settings.kept_shape)


def _fill(features: Tensor, rows: np.ndarray, images: Tensor, settings: FeatureSettings) -> None:
    """Compute the features of images, and put them into some rows of `features`."""
    if rows[-1] - rows[0] + 1 == len(rows) and settings.region is None:
        _run_network(images, features[rows[0] : rows[-1] + 1], settings)
        return
    computed = features.new_empty(len(rows), *settings.shape)
    _run_network(images, computed, settings)
    if settings.region is not None:
        computed = computed[:, torch.from_numpy(settings.region).to(computed.device)]
    for row, one in zip(rows.tolist(), computed, strict=True):  # one by one: twice as fast as by a list of rows
        features[row] = one


def _run_network(images: Tensor, out: Tensor, settings: FeatureSettings) -> None:
    """Write the features (n, H, W, m) of images (n, 3, *crop_size): all layers on the grid, side by side."""
    start = 0
    for layers in _layers(images, settings):
        part = out[start : start + len(layers[0])]  # of a compiled network it may be shorter
        column = 0
        for layer in layers:
            write_on_grid(
                layer[: len(part)],
                part[..., column : column + layer.shape[1]],
                interpolation=settings.map_interpolation,
                pooling_size=settings.pooling_size,
                margin=settings.margin,
                length=settings.images.crop_size,
            )
            column += layer.shape[1]
        start += len(part)


def _layers(images: Tensor, settings: FeatureSettings) -> Iterator[list[Tensor]]:
    """Yield the layers (n, C, h, w) of one or more images after the other."""
    engine = engines.choose(settings).engine
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (settings.mean, settings.std))
    if engine is not None:
        yield from engine.run(images, mean, std)
        return
    images = (images - torch.from_numpy(mean).to(images.device)) / torch.from_numpy(std).to(images.device)
    n_missing = settings.images.batch_size - len(images) if settings.compile else 0
    if n_missing > 0:  # a batch of another size would be compiled anew
        images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, n_missing))
    amp_dtype = settings.amp_dtype
    for some in images.split(settings.network_batch(images.device)):
        autocast = torch.autocast(images.device.type, amp_dtype, enabled=amp_dtype is not None)
        with torch.inference_mode(), full_precision(), default_device(images.device), calling_modules(), autocast:
            layers = settings.backbone(some, compiled=settings.compile)
        yield layers
