"""Digests by which images are known, wherever their files are now.

An image is known by its pixels: a copy, another name or other metadata, and a file that was saved again without loss
(PNG as TIFF) are the same image; a lossy copy (JPEG) and other pixels under the same name are another one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import effective_n_jobs
from torch import Tensor

from ipca_sklearn._utils._digests import content, describe, hex_digest, new_digest
from ipca_sklearn._utils._messages import name_of
from ipca_sklearn._utils._threads import single_threaded_workers
from ipca_sklearn._utils._typing import Image, PathLike
from ipca_sklearn.images._decode import check_images, decode, reporting_decoded, to_rgb
from ipca_sklearn.images._formats import MAX_PIXELS

# Digests of files and of pixels: with 10 million of them two are equal by chance once in 400,000 models.
_N_BYTES = 8
# Of this process. A command asks for the same images several times, and decoding is most of the work.
_pixels_of: dict[tuple[Path, tuple[int, ...]], int] = {}


def digest_images(images: Any, *, max_pixels: int = MAX_PIXELS, n_jobs: int | None = None) -> str:
    """Return a digest of a set of images: what the records of a model card have of those that a model has learnt.

    Parameters
    ----------
    images : sequence of images
        As for :class:`ipca_sklearn.PatchFeatureExtractor`. Their order, their names and copies among them do not count.
    max_pixels : int, default=89_478_485
        As of the extractor: a file of more pixels is known by its bytes, and so is one that is no image.
    n_jobs : int or None, default=None
        Threads that decode.

    Returns
    -------
    str
        40 hexadecimal digits: BLAKE2b of the sorted digests (8 bytes) of the pixels in their own size. It tells sets
        apart that differ by chance or by mistake; it is no signature against somebody who makes images for it.

    Raises
    ------
    TypeError, ValueError
        No sequence of images, or none in it.
    FileNotFoundError
        A file is missing, or an image in memory is none.

    Notes
    -----
    Decodes each image: about as long as reading them for a fit.

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn.persistence import digest_images
    >>> images = np.random.default_rng(0).integers(0, 255, (3, 20, 20, 3), dtype=np.uint8)
    >>> digest_images(images) == digest_images(images[[2, 0, 1, 0]])
    True
    """
    checked = check_images(images)
    numbers = pixel_numbers(checked, max_pixels, n_jobs)
    for image, number in zip(checked, numbers, strict=True):
        if number is None:
            name = name_of(image, "one of the images in memory")
            raise FileNotFoundError(f"{name} cannot be read, and the digest is that of all images: leave it out")
    return digest_of_numbers([number for number in numbers if number is not None])


def digest_of_numbers(numbers: Iterable[int]) -> str:
    """Return the digest of a set of images from the numbers of their pixels."""
    return hex_digest(np.unique(np.array(list(numbers), "<u8")).tobytes())


def pixel_numbers(images: Iterable[Image], max_pixels: int = MAX_PIXELS, n_jobs: int | None = None) -> list[int | None]:
    """Return a number for the pixels of each image: copies have the same one, whatever their names and formats.

    Parameters
    ----------
    images : iterable of images
        As for :class:`ipca_sklearn.PatchFeatureExtractor`.
    max_pixels : int, default=89_478_485
        As of the extractor.
    n_jobs : int or None, default=None
        Threads that decode.

    Returns
    -------
    list of int or None
        That of the bytes of the file if this is no image, and None if there is no file.

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn.persistence import pixel_numbers
    >>> images = np.random.default_rng(0).integers(0, 255, (2, 20, 20, 3), dtype=np.uint8)
    >>> len(set(pixel_numbers(images[[0, 1, 0]])))
    2
    """
    return _in_threads(partial(_pixels, max_pixels=max_pixels), images, n_jobs)


def file_numbers(paths: Iterable[PathLike], n_jobs: int | None) -> list[int | None]:
    """Return a number for the bytes of each file; None if there is no such file."""
    return _in_threads(_file, paths, n_jobs)


@contextmanager
def noting_pixels() -> Iterator[None]:
    """Note the pixels of the images that are decoded meanwhile: `record_training` does not decode them again.

    Yields
    ------
    None

    Examples
    --------
    >>> from ipca_sklearn.persistence import noting_pixels, record_training
    >>> with noting_pixels():
    ...     pipe.fit(paths)  # doctest: +SKIP
    >>> record_training(pipe, paths)  # doctest: +SKIP
    """

    def note(path: PathLike, image: Tensor) -> None:
        path = Path(os.fsdecode(path))
        with suppress(OSError):
            _pixels_of[path, _status(path)] = _digest(image)

    with reporting_decoded(note):
        yield


def _in_threads(digest: Callable[[Any], int], images: Iterable[Any], n_jobs: int | None) -> list[int | None]:
    def of_image(image: Any) -> int | None:
        try:
            return digest(image)
        except (OSError, ValueError):  # it has gone, or cannot be read: its next reader reports why
            return None

    with single_threaded_workers(effective_n_jobs(n_jobs)) as pool:
        return list(pool.map(of_image, images))


def _file(path: PathLike) -> int:
    path = Path(os.fsdecode(path))
    if not path.is_file():  # reading a pipe or a device may never end
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        return _number(hashlib.file_digest(file, new_digest))


def _pixels(image: Any, *, max_pixels: int) -> int:
    if not isinstance(image, (str, os.PathLike)):
        return _digest(to_rgb(image, "image"))
    path = Path(image)
    key = path, _status(path)
    if key not in _pixels_of:
        of_file = _file(path)
        try:
            _pixels_of[key] = _digest(decode(path, str(path), max_pixels)[0])
        except Exception:  # decoders raise whatever they like: its next reader reports why
            _pixels_of[key] = of_file
    return _pixels_of[key]


def _status(path: Path) -> tuple[int, ...]:
    """Return numbers of which one changes whenever the content does: the time of change of the status cannot be set."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _digest(image: Tensor) -> int:
    if image.is_floating_point():  # 8 bits that were saved as 16
        levels = (image * 255).round()
        image = levels.to(torch.uint8) if torch.equal(levels / 255, image) else image
    image = image.movedim(0, -1)  # as decoders give it: nothing is copied
    digest = new_digest()
    digest.update(describe(image))
    digest.update(content(image))
    return _number(digest)


def _number(digest: Any) -> int:
    return int.from_bytes(digest.digest()[:_N_BYTES], "little")
