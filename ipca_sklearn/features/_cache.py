"""Features kept on disk, one file per image, so that many fits on the same images pay for the network once."""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ipca_sklearn.exceptions import ImageReadError
from ipca_sklearn.features._decode import to_rgb
from ipca_sklearn.features._settings import FeatureSettings

# How many files are written before the folder is measured again, because others may write to it too.
_FILES_PER_MEASUREMENT = 32


class FeatureCache:
    """Features of images on disk, as the `memory` of a pipeline: each image passes through the network once.

    :class:`joblib.Memory` stores what `fit_transform` returns, which are features yet to be computed, and nothing of
    the images that are only scored. This one stores the features themselves, an image at a time, when they are first
    read - in the fit or in a score, in whichever fold of a search - and the next reader maps them from the disk.

    Parameters
    ----------
    location : str or path-like
        Folder; made when it is needed. Any number of processes may share it, at the same time and later.
    max_bytes : int, default=20_000_000_000
        When the files are as large as this, no more are written, a warning says so, and features that are not there
        are computed each time. Processes that write at once may pass it by 32 images each.

    Notes
    -----
    An image needs 4 H W m bytes (EfficientNet-Lite0: 3.2 MB). It is found again by everything its features depend
    on: the settings and weights of the network, the versions of torch and torchvision, and the image: a file by its
    path, size and time of change, anything else by its content. A network of your own counts by its structure as
    printed and its weights: `clear` the cache when you change its code.

    Features agree with those computed anew up to the rounding that batches of other sizes have. `augment` makes
    other features in every fit, which are not stored. Pickling a fitted extractor (so saving it) leaves the cache
    behind.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from sklearn.pipeline import Pipeline
    >>> from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
    >>> from ipca_sklearn.model_selection import FeatureCache
    >>> images = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), dtype=np.uint8)
    >>> extractor = PatchFeatureExtractor(
    ...     "resnet18", weights=None, random_state=0, image_size=64, crop_size=64, grid_size=4
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = FeatureCache(folder)
    ...     pipe = Pipeline([("features", extractor), ("detector", PatchGaussianDetector(2))], memory=cache)
    ...     scores = pipe.fit(images[:4]).score_samples(images)
    ...     cache.n_images, cache.n_bytes
    (6, 172800)
    """

    def __init__(self, location: str | os.PathLike[str], *, max_bytes: int = 20_000_000_000) -> None:
        self.location = os.fspath(location)
        self.max_bytes = max_bytes
        self._n_bytes: int | None = None  # when it was measured last, and what was written since
        self._n_written = 0

    def cache(self, func: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Return `func`, with the features in its result kept in the cache: what a pipeline asks of its `memory`."""

        @wraps(func)
        def fit_transform(*args: Any, **kwargs: Any) -> Any:
            result, fitted = func(*args, **kwargs)
            if hasattr(result, "cached_in"):
                fitted._feature_cache = self
                result = result.cached_in(self)
            return result, fitted

        return fit_transform

    @property
    def n_images(self) -> int:
        """Images stored."""
        return sum(1 for _ in self._files())

    @property
    def n_bytes(self) -> int:
        """Bytes that the files have."""
        total = 0
        for file in self._files():
            with suppress(FileNotFoundError):  # removed by another process since
                total += file.stat().st_size
        return total

    def _files(self) -> Any:
        return Path(self.location).glob("features-*/*/*.npy")

    def clear(self) -> None:
        """Remove all the features, and nothing else that may be in the folder."""
        for folder in Path(self.location).glob("features-*"):
            shutil.rmtree(folder, ignore_errors=True)
        self._n_bytes = None

    def files(self, images: Any, indices: np.ndarray, settings: FeatureSettings) -> _Files | None:
        """Return the files of some images under some settings; None where features are not to be stored."""
        if settings.images.augment is not None:
            warnings.warn(
                "features of augmented images are not kept in the cache, each fit computes them anew",
                UserWarning,
                stacklevel=2,
            )
            return None
        folder = Path(self.location, f"features-{settings.digest()}")
        paths = {}
        for index in indices:
            digest = _image_digest(images[index])
            paths[int(index)] = None if digest is None else folder / digest[:2] / f"{digest[2:]}.npy"
        return _Files(self, paths, (settings.grid_size, settings.grid_size, settings.n_features))

    def _has_room(self, n_bytes: int) -> bool:
        if self._n_bytes is None or self._n_written >= _FILES_PER_MEASUREMENT:
            self._n_bytes, self._n_written = self.n_bytes, 0
        if self._n_bytes + n_bytes <= self.max_bytes:
            self._n_bytes += n_bytes
            self._n_written += 1
            return True
        warnings.warn(
            f"the feature cache at {self.location} is full: {self.n_images} images of {n_bytes / 1e6:.1f} MB are "
            f"stored, max_bytes={self.max_bytes}. The features of the others are computed whenever they are needed; "
            "raise max_bytes, or clear() the cache",
            UserWarning,
            stacklevel=2,
        )
        return False

    def __repr__(self) -> str:
        return f"FeatureCache({self.location!r}, max_bytes={self.max_bytes})"


class _Files:
    """Where the features of each image of one reading are or will be.

    Parameters
    ----------
    cache : FeatureCache
    paths : dict of Path or None
        By index of the image; None for one that cannot be told from others.
    shape : tuple of int
        Of the features of an image.
    """

    def __init__(self, cache: FeatureCache, paths: dict[int, Path | None], shape: tuple[int, int, int]) -> None:
        self._cache = cache
        self._paths = paths
        self._shape = shape
        self._full = False

    def missing(self, indices: np.ndarray) -> np.ndarray:
        """Return the positions of the images that have no file."""
        paths = (self._paths[int(index)] for index in indices)
        return np.flatnonzero([path is None or not path.exists() for path in paths])

    def read(self, index: int, out: Tensor) -> bool:
        """Copy the features of an image to `out`; False if they are not there, or not whole."""
        path = self._paths[int(index)]
        try:
            stored = np.load(path, mmap_mode="c")  # type: ignore[arg-type]
        except (OSError, ValueError, EOFError):
            return False
        if stored.shape != self._shape or stored.dtype != np.float32:
            return False
        out.copy_(torch.from_numpy(stored))
        return True

    def write(self, index: int, features: Tensor) -> None:
        """Store the features of an image, if there is room."""
        path = self._paths[int(index)]
        n_bytes = 128 + 4 * features.numel()
        if path is None or self._full:
            return
        if not self._cache._has_room(n_bytes):
            self._full = True
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_name(f"{uuid4().hex}.tmp")
        try:
            with open(written, "xb") as file:
                np.save(file, features.cpu().numpy())
            os.replace(written, path)  # readers see all of it or nothing
        except BaseException:
            written.unlink(missing_ok=True)
            raise


def _image_digest(image: Any) -> str | None:
    """Return what tells an image from others, as 40 hexadecimal digits; None if it cannot be read."""
    digest = hashlib.blake2b(digest_size=20)
    if isinstance(image, (str, os.PathLike)):
        try:
            status = os.stat(image)
        except OSError:
            return None
        digest.update(f"{os.path.abspath(image)}\n{status.st_size}\n{status.st_mtime_ns}".encode())
        return digest.hexdigest()
    if isinstance(image, Image.Image):
        try:
            image = to_rgb(image, "image")
        except ImageReadError:
            return None
    if isinstance(image, Tensor):
        content = image.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    else:
        content = np.ascontiguousarray(image)
    kind = "tensor" if isinstance(image, Tensor) else "array"  # channels come first in the one and last in the other
    digest.update(f"{kind} {image.dtype} {tuple(image.shape)}\n".encode())
    digest.update(content.data)
    return digest.hexdigest()
