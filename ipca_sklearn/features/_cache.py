"""Features kept on disk, one file per image, so that many fits on the same images run the network once."""

from __future__ import annotations

import io
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ipca_sklearn._utils._digests import content, describe, hex_digest
from ipca_sklearn._utils._files import printable, replacing, status_of
from ipca_sklearn._utils._typing import Image as ImageLike
from ipca_sklearn._utils._typing import PathLike
from ipca_sklearn.exceptions import ImageReadError
from ipca_sklearn.images._decode import to_rgb

# Files written before the folder is measured again, because other processes may write to it too.
_FILES_PER_MEASUREMENT = 32
_BAND = "-band"  # before the number of a band, in the name of a file that holds one
_N_CHECKSUM = 4  # bytes of CRC-32 at the end of a file: found cheaper than other checksums
# Folders that cannot be written, which this process has warned of.
_warned_of: set[str] = set()


class FeatureCache:
    """Features of images on disk: the `cache` of an extractor, so that each image passes through the network once.

    Features are stored image by image when they are first read, in a fit or a score, in any fold of a search.
    Later readers map them from the disk. (The `memory` of a scikit-learn pipeline stores what `fit_transform` returns.
    Here that is features yet to be computed, and images that are only scored are never stored.)

    Parameters
    ----------
    location : str or path-like
        Folder; made when it is needed. Any number of processes may share it, at the same time and later.
    max_bytes : int, default=20_000_000_000
        Once the files have this size, no more are written, a warning says so, and missing features are computed each
        time. Processes that write at the same time may exceed it by 32 images each.

    See Also
    --------
    PatchFeatureExtractor : Its parameter `cache` takes a folder, or a FeatureCache for another `max_bytes`.

    Notes
    -----
    An image needs 4 H W m bytes (EfficientNet-Lite0: 3.2 MB). Large pictures (`tile_size`) have a file for each row of
    tiles, so that no more than a row is in memory. A file is named after everything that its features
    depend on: the settings and weights of the network, the versions of torch and torchvision, and the image. An image
    file counts by its path, size and time of change, any other image by its content. A network of your own counts by
    its printed structure and its weights: `clear` the cache when you change its code.

    A damaged file is computed and written anew. Where nothing can be written (a full or read-only disk), a warning says
    so once. Stored features agree with new ones up to rounding, which differs with the size of batches. Features of
    augmented images differ in every fit and are not stored.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from sklearn.pipeline import Pipeline
    >>> from ipca_sklearn import FeatureCache, PatchFeatureExtractor, PatchGaussianDetector
    >>> images = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), dtype=np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = FeatureCache(folder)
    ...     extractor = PatchFeatureExtractor(
    ...         "resnet18", weights=None, random_state=0, image_size=64, crop_size=64, grid_size=4, cache=cache
    ...     )
    ...     pipe = Pipeline([("features", extractor), ("detector", PatchGaussianDetector(2))])
    ...     scores = pipe.fit(images[:4]).score_samples(images)
    ...     cache.n_images, cache.n_bytes
    (6, 172824)
    """

    def __init__(self, location: PathLike, *, max_bytes: int = 20_000_000_000) -> None:
        self.location = os.fspath(location)
        self.max_bytes = max_bytes
        self._n_bytes: int | None = None  # at the last measurement, and written since
        self._n_written = 0

    @property
    def n_images(self) -> int:
        """Images stored."""
        return len({(file.parent, file.stem.partition(_BAND)[0]) for file in self._files()})

    @property
    def n_bytes(self) -> int:
        """Size of all files, in bytes."""
        total = 0
        for file in self._files():
            with suppress(FileNotFoundError):  # removed by another process since
                total += file.stat().st_size
        return total

    def _files(self) -> Iterator[Path]:
        return Path(self.location).glob("features-*/*/*.npy")

    def clear(self) -> None:
        """Remove all features, and nothing else that may be in the folder."""
        for folder in Path(self.location).glob("features-*"):
            shutil.rmtree(folder, ignore_errors=True)
        self._n_bytes = None

    def _has_room(self, n_bytes: int) -> bool:
        """Reserve room for a file; without room, warn and return False."""
        if self._n_bytes is None or self._n_written >= _FILES_PER_MEASUREMENT:
            self._n_bytes, self._n_written = self.n_bytes, 0
        if self._n_bytes + n_bytes <= self.max_bytes:
            self._n_bytes += n_bytes
            self._n_written += 1
            return True
        warnings.warn(
            f"the feature cache at {printable(self.location)} is full: {self.n_images} images of "
            f"{n_bytes / 1e6:.1f} MB are stored, max_bytes={self.max_bytes}. The features of the others are computed "
            "whenever they are needed; raise max_bytes, or clear() the cache",
            UserWarning,
            stacklevel=2,
        )
        return False

    def _warn_once(self, error: OSError) -> None:
        if self.location in _warned_of:
            return
        _warned_of.add(self.location)
        warnings.warn(
            f"the feature cache at {printable(self.location)} cannot be written ({printable(error)}): features that it "
            "lacks are computed whenever they are needed. Free space, or name another folder",
            UserWarning,
            stacklevel=2,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_n_bytes": None, "_n_written": 0}  # a copy measures the folder itself

    def __repr__(self) -> str:
        return f"FeatureCache({self.location!r}, max_bytes={self.max_bytes})"


class StoredFeatures:
    """The files of the images of one pass, of which arrays of `shape` are kept: (H, W, m), or (P, m) of a region."""

    def __init__(
        self, cache: FeatureCache, images: Any, indices: np.ndarray, settings_digest: str, shape: tuple[int, ...]
    ) -> None:
        folder = Path(cache.location, f"features-{settings_digest}")
        self._cache = cache
        self._paths = {int(index): _path(folder, images[index]) for index in indices}
        self._stopped = False
        self._set_shape(shape)

    def _set_shape(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        header = io.BytesIO()
        form = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, form)
        self._header = header.getvalue()
        self._n_bytes = len(self._header) + 4 * int(np.prod(shape)) + _N_CHECKSUM

    def band(self, number: int, shape: tuple[int, ...]) -> StoredFeatures:
        """Return the files of one band of each image, for images that are not kept as a whole."""
        files = copy(self)
        files._paths = {
            index: None if path is None else path.with_stem(f"{path.stem}{_BAND}{number}")
            for index, path in self._paths.items()
        }
        files._set_shape(shape)
        return files

    def missing(self, indices: np.ndarray) -> np.ndarray:
        """Return the positions, among some indices, of the images without a file."""
        paths = (self._paths[int(index)] for index in indices)
        return np.flatnonzero([path is None or not os.path.exists(path) for path in paths])

    def read(self, index: int, out: np.ndarray) -> bool:
        """Fill a contiguous float32 array with the features of an image; False if the file is gone or damaged."""
        path = self._paths[int(index)]
        if path is None:
            return False
        try:
            with open(path, "rb") as file:
                return (
                    os.fstat(file.fileno()).st_size == self._n_bytes
                    and file.read(len(self._header)) == self._header
                    and file.readinto(out.data.cast("B")) == out.nbytes
                    and file.read(_N_CHECKSUM) == self._checksum(out)
                )
        except OSError:
            return False

    def write(self, index: int, features: Tensor) -> None:
        """Store the features of an image, if there is room."""
        path = self._paths[int(index)]
        if path is None or self._stopped:
            return
        values = np.ascontiguousarray(features.cpu().numpy(), dtype="<f4")
        try:
            if not self._cache._has_room(self._n_bytes):
                self._stopped = True
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, durable=False) as file:  # readers see all of it or nothing
                file.write(self._header)
                file.write(values.data)
                file.write(self._checksum(values))
        except OSError as error:
            self._stopped = True
            self._cache._warn_once(error)

    def _checksum(self, values: np.ndarray) -> bytes:
        return zlib.crc32(values.data, zlib.crc32(self._header)).to_bytes(_N_CHECKSUM, "little")


def _path(folder: Path, image: ImageLike) -> Path | None:
    """Return the file of an image; None if the image cannot be told from others."""
    digest = _image_digest(image)
    return None if digest is None else folder / digest[:2] / f"{digest[2:]}.npy"


def _image_digest(image: ImageLike) -> str | None:
    """Return a digest that tells an image from others; None if it cannot be read."""
    if isinstance(image, (str, os.PathLike)):
        status = status_of(image)
        if status is None:
            return None
        # Names need not be UTF-8.
        return hex_digest(os.fsencode(os.path.abspath(image)), f"\n{status[0]}\n{status[1]}".encode())
    if isinstance(image, bytes):
        return hex_digest(b"bytes ", image)
    if isinstance(image, Image.Image):
        try:
            image = to_rgb(image, "image")
        except ImageReadError:
            return None
    # Channels come first in a tensor and last in an array.
    return hex_digest(b"tensor " if isinstance(image, Tensor) else b"array ", describe(image), content(image))
