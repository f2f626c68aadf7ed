"""Fitted estimators and pipelines on disk: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import joblib
from sklearn.exceptions import InconsistentVersionWarning

from ipca_sklearn._atomic_files import remove_leftovers, replacing
from ipca_sklearn._checkpoints import Checkpoint, fit_in_blocks

__all__ = ["fit_resumable", "load", "save"]


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
    writing, or without power, the old file is intact; what was left beside it, `.<name>.<letters>.tmp`, is removed by a
    `save` to the same path an hour later or after that.

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
    remove_leftovers(path, older_than=3600)  # a younger one may be that of another process at work
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
    except (ImportError, MemoryError, OSError, InconsistentVersionWarning):
        raise  # these say what is wrong: a package that the model needs, a file that may not be read, ...
    except Exception as error:  # pickle, zlib and numpy each raise their own on broken files
        raise ValueError(
            f"{os.fspath(path)} is not a whole model file ({type(error).__name__}: {error}); save the model again"
        ) from error


def fit_resumable(
    model: Any,
    X: Any,
    path: str | os.PathLike[str],
    *,
    every: int = 1000,
    callback: Callable[[int], None] | None = None,
) -> Any:
    """Fit a model and save a checkpoint now and then; the same call goes on from it after an interruption.

    Parameters
    ----------
    model : Pipeline, PatchGaussianDetector or BatchedIncrementalPCA
        A pipeline ends in one of these, and its other steps learn nothing from the images (as PatchFeatureExtractor).
        What it has learnt before is forgotten.
    X : sequence of images, or array-like for a bare detector or PCA
        As for `fit`; the same, in the same order, in every run. No PatchFeatures: pass the pipeline and its images.
    path : str or path-like
        Of the checkpoint. Replaced only when the next one is complete.
    every : int, default=1000
        Samples between checkpoints, rounded up to whole steps of `step_size`; it may be another one in every run.
    callback : callable or None, default=None
        Called with the number of samples done after each checkpoint.

    Returns
    -------
    estimator or Pipeline
        `model`, with the same bits as `model.fit(X)` would give. The checkpoint stays: called once more, all is done.

    Raises
    ------
    ValueError
        The checkpoint is of other parameters, weights, samples or another version of ipca_sklearn, or broken; X has
        grown since the fit was complete; `step_size=None` or a held-out `calibration`, which
        do not go in blocks; random steps without a `random_state`.
    TypeError
        X are PatchFeatures.
    KeyboardInterrupt
        Ctrl-C: `model` is fitted on what the last checkpoint has learnt.

    Notes
    -----
    A checkpoint has the size of the learner (P (k + 2) m numbers), without the network. Files count by name and size:
    their content is not read again. Arrays are read again to compare them.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> from ipca_sklearn import PatchGaussianDetector
    >>> from ipca_sklearn.persistence import fit_resumable
    >>> X = np.random.default_rng(0).normal(size=(100, 6, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     detector = fit_resumable(PatchGaussianDetector(2), X, Path(folder, "checkpoint"), every=32)
    >>> detector.n_samples_seen_, detector.offset_ == PatchGaussianDetector(2).fit(X).offset_
    (100, True)
    """
    remove_leftovers(path)
    stored = load(path) if os.path.exists(path) else None
    if stored is not None and not isinstance(stored, Checkpoint):
        raise ValueError(f"{os.fspath(path)} holds no checkpoint but a {type(stored).__name__}; name another file")
    fit_in_blocks(model, X, stored, every, lambda checkpoint: save(checkpoint, path), callback)
    return model
