"""Which images a model has learnt: learnt images look more normal than new ones, wherever their files are now.

`persistence.record_training` keeps them with the model. Files are compared first, because that takes no decoding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sklearn.pipeline import Pipeline

from ipca_sklearn.cli._text import warn
from ipca_sklearn.persistence._image_digests import file_numbers, pixel_numbers


def same_file(path: Path) -> str:
    """Return what all names of a file have in common, links among them."""
    return os.path.realpath(path)


def not_learnt(pipe: Pipeline, paths: Sequence[Path]) -> list[Path]:
    """Return the images that are in no record of what a model has learnt."""
    if not hasattr(pipe[-1], "learnt_images_"):
        warn("the model was not written by `ipca-sklearn fit` and does not know its images: none can be left out")
    known = {int(digest) for digest in getattr(pipe[-1], "learnt_images_", ())}
    files = file_numbers(paths, pipe[0].n_jobs)
    new = [path for path, digest in zip(paths, files, strict=True) if digest not in known]
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
    """Return a number for the pixels of each image, as the extractor of a model decodes it."""
    return pixel_numbers(paths, pipe[0].max_pixels, pipe[0].n_jobs)
