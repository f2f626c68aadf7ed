"""Models in joblib files: arrays can be mapped, and the file can execute code when it is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import joblib
from sklearn.exceptions import InconsistentVersionWarning

from ipca_sklearn._utils._files import printable, replacing
from ipca_sklearn._utils._typing import PathLike
from ipca_sklearn.features.backbones._catalogue import warn_of_license


def save(model: Any, path: PathLike) -> None:
    """Write an estimator or a pipeline to a file that replaces an old one only when it is complete.

    Parameters
    ----------
    model : estimator or Pipeline
        Usually fitted. Arrays are stored as uncompressed numpy arrays, so that `load` can map them. A feature cache is
        not stored.
    path : str or path-like
        The file, for example `"model.joblib"`.

    Raises
    ------
    OSError
        The folder does not exist, the path is no regular file, the disk is full, ... The old file is unchanged.

    Warns
    -----
    UserWarning
        The licence of the network's weights sets conditions for those who pass the file on.

    Notes
    -----
    The format is joblib's: `joblib.load` reads it too. If the process is killed while it writes, or the power fails,
    the old file is intact; the unfinished file beside it, `.<name>.<letters>.tmp`, is removed by the next `save` to the
    same path. A link is followed, permissions are kept.

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
    with replacing(path) as file:
        joblib.dump(model, file)
    warn_of_license(model, path)


def load(path: PathLike, *, mmap_mode: str | None = None) -> Any:
    """Read a file of `save` or of `joblib.dump`.

    **The file can execute code**, as every pickle can: load only files from sources that you trust. Use `load_skops`
    for the others.

    Parameters
    ----------
    path : str or path-like
        The file.
    mmap_mode : {"r", "c"} or None, default=None
        Map the arrays instead of reading them: the model opens at once, and processes share its memory. Later learning
        writes to new memory, never to the file.

    Returns
    -------
    estimator or Pipeline

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is incomplete, or no model.
    ImportError
        A package that the model needs is not installed.

    Warns
    -----
    InconsistentVersionWarning
        (`sklearn.exceptions`) Another version of ipca_sklearn, or of scikit-learn, has written the file.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> from ipca_sklearn import BatchedIncrementalPCA
    >>> from ipca_sklearn.persistence import load, save
    >>> pca = BatchedIncrementalPCA(2).fit(np.random.default_rng(0).normal(size=(40, 6, 8)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(pca, Path(folder, "pca.joblib"))
    ...     load(Path(folder, "pca.joblib"), mmap_mode="r").n_samples_seen_
    40
    """
    if mmap_mode not in (None, "r", "c"):
        raise ValueError(f"mmap_mode={mmap_mode!r}: it is None, 'r' or 'c'; a model file cannot be written to")
    return read_model(path, lambda: joblib.load(path, mmap_mode=mmap_mode))


def read_model(path: PathLike, reader: Callable[[], Any], *, passed_on: tuple[type[Exception], ...] = ()) -> Any:
    """Return what `reader` returns; its errors become a ValueError that names the file, unless they are clear."""
    name = printable(path)
    if not os.path.isfile(path):
        kind = "it is no regular file" if os.path.exists(path) else "there is no such file"
        raise FileNotFoundError(f"no model at {name}: {kind}")
    try:
        return reader()
    except Exception as error:  # pickle, zlib, zip and numpy raise different errors for broken files
        if isinstance(error, (ImportError, MemoryError, OSError, InconsistentVersionWarning, *passed_on)):
            raise
        raise ValueError(
            f"{name} is not a whole model file ({type(error).__name__}: {printable(error)}); save the model again"
        ) from error
