"""Fitted estimators and pipelines on disk: whole or not at all."""

from __future__ import annotations

import os
from typing import Any

import joblib

from ipca_sklearn._atomic_files import remove_leftovers, replacing

__all__ = ["load", "save"]


def save(model: Any, path: str | os.PathLike[str]) -> None:
    """Write an estimator or a pipeline to a file that takes the place of an old one only when it is complete.

    Parameters
    ----------
    model : estimator or Pipeline
        Usually fitted. Arrays are stored as numpy arrays, not compressed, so that `load` can map them.
    path : str or path-like
        Of the file, for example `"model.joblib"`.

    Raises
    ------
    OSError
        The folder does not exist, the disk is full, ...; the old file is as it was.

    Notes
    -----
    The format is joblib's: `joblib.load` reads it too. Size: the arrays' bytes and a few kilobytes. Killed while
    writing, or without power, the old file is intact, and the next `save` to the same path removes what was left.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> from ipca_sklearn import PatchGaussianDetector
    >>> from ipca_sklearn.persistence import load, save
    >>> X = np.random.default_rng(0).normal(size=(40, 6, 8))
    >>> detector = PatchGaussianDetector(2).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(detector, Path(folder, "model.joblib"))
    ...     loaded = load(Path(folder, "model.joblib"))
    >>> bool((loaded.score_samples(X) == detector.score_samples(X)).all())
    True
    """
    remove_leftovers(path)
    with replacing(path) as file:
        joblib.dump(model, file)


def load(path: str | os.PathLike[str], *, mmap_mode: str | None = None) -> Any:
    """Read what `save`, or `joblib.dump`, has written.

    **The file can execute code**, as every pickle can: load files only from sources that you trust.

    Parameters
    ----------
    path : str or path-like
        Of the file.
    mmap_mode : {"r", "c"} or None, default=None
        Map the arrays instead of reading them: models open at once, and processes share their memory. What is learnt
        later goes to new memory, never to the file.

    Returns
    -------
    estimator or Pipeline

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is no model, or only a part of one.

    Warns
    -----
    InconsistentVersionWarning
        (`sklearn.exceptions`) Another version of ipca_sklearn, or of scikit-learn, has written it.
    """
    if mmap_mode not in (None, "r", "c"):
        raise ValueError(f"mmap_mode={mmap_mode!r}: it is None, 'r' or 'c'; writing to a model's file is not possible")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no model at {os.fspath(path)}")
    try:
        return joblib.load(path, mmap_mode=mmap_mode)
    except ImportError:
        raise  # says which package the model needs
    except Exception as error:  # pickle, zlib and numpy each raise their own on broken files
        raise ValueError(
            f"{os.fspath(path)} is not a whole model file ({type(error).__name__}: {error}); save the model again"
        ) from error
