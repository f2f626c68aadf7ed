"""Which images a model has learnt: learnt images look more normal than new ones, wherever their files are now.

An image is known by its pixels: a copy, another name, another time of change, other metadata and a file that was saved
again without loss (PNG as TIFF) are the same image. Pixels that differ make another one, under the same name too, and
so does a lossy copy (JPEG). Files are compared first, because that takes no decoding.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import effective_n_jobs
from sklearn.pipeline import Pipeline
from torch import Tensor

from ipca_sklearn._utils._digests import content, describe, new_digest
from ipca_sklearn._utils._threads import single_threaded_workers
from ipca_sklearn._utils._typing import PathLike
from ipca_sklearn.cli._text import warn
from ipca_sklearn.features._decode import decode, telling

# Digests of files and of pixels: with 10 million of them two are equal by chance once in 400,000 models.
_N_BYTES = 8
# Of this process. A command asks for the same images several times, and decoding is most of the work.
_pixels_of: dict[tuple[Path, tuple[int, ...]], int] = {}


def same_file(path: Path) -> str:
    """Return what all names of a file have in common, links among them."""
    return os.path.realpath(path)


def remember(pipe: Pipeline, paths: Sequence[Path]) -> None:
    """Keep with a model that it has learnt these images: 16 bytes each, of their files and their pixels."""
    before = getattr(pipe, "learnt_images_", np.empty(0, np.uint64))
    digests = [digest for of_path in (_files, pixels) for digest in of_path(pipe, paths) if digest is not None]
    pipe.learnt_images_ = np.union1d(before, np.array(digests, np.uint64))


def not_learnt(pipe: Pipeline, paths: Sequence[Path]) -> list[Path]:
    """Return the images that `fit` and `update` of a model have not learnt."""
    if not hasattr(pipe, "learnt_images_"):
        warn("the model was not written by `ipca-sklearn fit` and does not know its images: none can be left out")
    known = {int(digest) for digest in getattr(pipe, "learnt_images_", ())}
    new = [path for path, digest in zip(paths, _files(pipe, paths), strict=True) if digest not in known]
    return [path for path, digest in zip(new, pixels(pipe, new), strict=True) if digest not in known]


def unseen(pipe: Pipeline, good: Sequence[Path]) -> list[Path]:
    """Return the good images without those that a model has learnt; a warning tells of these."""
    new = not_learnt(pipe, good)
    n_learnt = len(good) - len(new)
    if n_learnt:
        warn(
            f"{n_learnt} of {len(good)} good images were learnt by the model: they are left out, as learnt images look "
            "more normal than new ones"
        )
    return new


def pixels(pipe: Pipeline, paths: Iterable[Path]) -> list[int | None]:
    """Return a number for the pixels of each image, as the extractor of a model decodes it.

    It is that of the file if this is no image, and None if there is no file.
    """
    return _in_threads(pipe, partial(_pixels, max_pixels=pipe[0].max_pixels), paths)


@contextmanager
def noting_pixels() -> Iterator[None]:
    """Note the digests of the images that are decoded meanwhile: those that are learnt are not decoded again."""

    def note(path: PathLike, image: Tensor) -> None:
        path = Path(os.fsdecode(path))
        with suppress(OSError):
            _pixels_of[path, _status(path)] = _digest(image)

    with telling(note):
        yield


def _files(pipe: Pipeline, paths: Iterable[Path]) -> list[int | None]:
    return _in_threads(pipe, _file, paths)


def _in_threads(pipe: Pipeline, digest: Callable[[Path], int], paths: Iterable[Path]) -> list[int | None]:
    def of_path(path: Path) -> int | None:
        try:
            return digest(path)
        except (OSError, ValueError):  # it has gone, or cannot be read: who reads it next tells why
            return None

    with single_threaded_workers(effective_n_jobs(pipe[0].n_jobs)) as pool:
        return list(pool.map(of_path, paths))


def _file(path: Path) -> int:
    if not path.is_file():  # reading a pipe or a device may never end
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        return _number(hashlib.file_digest(file, new_digest))


def _pixels(path: Path, *, max_pixels: int) -> int:
    key = path, _status(path)
    if key not in _pixels_of:
        of_file = _file(path)
        try:
            _pixels_of[key] = _digest(decode(path, str(path), max_pixels)[0])
        except Exception:  # decoders raise whatever they like: who reads it next tells why
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
