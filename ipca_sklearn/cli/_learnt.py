"""Which files a model has learnt: learnt images look more normal than new ones."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from sklearn.pipeline import Pipeline

from ipca_sklearn._utils._files import digest_of, status_of
from ipca_sklearn.cli._text import warn


def same_file(path: Path) -> str:
    """Return what all names of an image have in common, links among them."""
    return os.path.realpath(path)


def remember(pipe: Pipeline, paths: Iterable[Path]) -> None:
    """Keep with a model that it has learnt these files: 8 bytes each, of path, size and time of change."""
    before = getattr(pipe, "learnt_files_", np.empty(0, np.uint64))
    pipe.learnt_files_ = np.union1d(before, _digests(paths))


def not_learnt(pipe: Pipeline, paths: Sequence[Path]) -> list[Path]:
    """Return the images that `fit` and `update` of a model have not learnt."""
    known = getattr(pipe, "learnt_files_", np.empty(0, np.uint64))
    return [path for path, learnt in zip(paths, np.isin(_digests(paths), known), strict=True) if not learnt]


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


def _digests(paths: Iterable[Path]) -> np.ndarray:
    return np.fromiter(map(_digest, paths), np.uint64)


def _digest(path: Path) -> int:
    # One that has gone meanwhile is like no file that is there.
    return int.from_bytes(digest_of((same_file(path), *(status_of(path) or ())))[:8], "little")
