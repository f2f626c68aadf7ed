"""Fitted estimators and pipelines on disk: whole or not at all, in files that can execute code or in files that cannot.

`save` and `load` write and read joblib files, `save_skops` and `load_skops` files that are safe to load from others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import joblib
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import InconsistentVersionWarning

from ipca_sklearn._utils._files import remove_leftovers, replacing
from ipca_sklearn.decomposition._batched_ipca import BatchedIncrementalPCA
from ipca_sklearn.decomposition._fitted import Model
from ipca_sklearn.decomposition._full_covariance import CovarianceModel, FullCovariance
from ipca_sklearn.detection._calibration import Calibration, Reference
from ipca_sklearn.detection._patch_gaussian import PatchGaussianDetector
from ipca_sklearn.features._backbones import Backbone
from ipca_sklearn.features._extractor import PatchFeatureExtractor
from ipca_sklearn.persistence._checkpoints import Checkpoint, fit_in_blocks

__all__ = ["fit_resumable", "load", "load_skops", "save", "save_skops", "trusted_types"]


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

    **The file can execute code**, as every pickle can: load files only from sources that you trust. `load_skops` is for
    the others.

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
    return _read(path, lambda: joblib.load(path, mmap_mode=mmap_mode))


def trusted_types() -> list[str]:
    """Return the types of this package that a fitted model holds: what `skops.io.load(path, trusted=...)` must be told.

    They hold numbers, arrays and names. A network is stored as its name and its weights; loading makes it anew with
    torchvision, timm or this package, and neither downloads anything nor runs code of the file's.
    """
    types = (
        Backbone,
        BatchedIncrementalPCA,
        Calibration,
        CovarianceModel,
        FullCovariance,
        Model,
        PatchFeatureExtractor,
        PatchGaussianDetector,
        Reference,
    )
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in types]


def save_skops(model: BaseEstimator, path: str | os.PathLike[str], *, trusted: Iterable[str] = ()) -> None:
    """Write an estimator or a pipeline to a file that cannot execute code when it is loaded; else as `save`.

    Parameters
    ----------
    model : estimator or Pipeline
        With a backbone that has a name: the class of a module of your own is code, which no safe file can hold.
    path : str or path-like
        Of the file, for example `"model.skops"`. As large as that of `save`; it cannot be mapped.
    trusted : iterable of str, default=()
        Types that `load_skops` will be told to trust besides `trusted_types()`, for other steps of a pipeline.

    Raises
    ------
    TypeError
        The model holds something that `load_skops` would refuse; the message says what. The old file is as it was.
    ImportError
        skops is not installed.
    OSError
        The folder does not exist, the disk is full, ...

    Notes
    -----
    skops makes the file in memory first: saving takes as much memory as the file is large, twice.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> from ipca_sklearn import PatchGaussianDetector
    >>> from ipca_sklearn.persistence import load_skops, save_skops
    >>> X = np.random.default_rng(0).normal(size=(40, 6, 8))
    >>> detector = PatchGaussianDetector(2).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_skops(detector, Path(folder, "model.skops"))
    ...     loaded = load_skops(Path(folder, "model.skops"))
    >>> bool((loaded.score_samples(X) == detector.score_samples(X)).all())
    True
    """
    skops_io = _import_skops()
    for name, value in model.get_params().items():
        if isinstance(value, torch.nn.Module):
            raise TypeError(
                f"{name} is a module of your own, a {type(value).__name__}: its class is code, which no safe file can "
                "hold. Take a backbone that has a name, or write the model with persistence.save"
            )
        if isinstance(value, (torch.dtype, torch.device)):
            raise TypeError(f"{name}={value!r} is an object of torch, which no safe file can hold; set it as a string")
    remove_leftovers(path, older_than=3600)
    with replacing(path) as file:
        skops_io.dump(model, file)
        file.flush()
        refused = set(skops_io.get_untrusted_types(file=file.name)) - {*trusted_types(), *trusted}
        if refused:
            raise TypeError(
                f"{type(model).__name__} holds objects of {', '.join(sorted(refused))}, which load_skops refuses. Set "
                "paths and weights as strings; types of your own that are harmless go into trusted="
            )


def load_skops(path: str | os.PathLike[str], *, trusted: Iterable[str] = ()) -> Any:
    """Read what `save_skops`, or `skops.io.dump`, has written, and refuse whatever is not data of known types.

    Parameters
    ----------
    path : str or path-like
        Of the file.
    trusted : iterable of str, default=()
        Types to trust besides `trusted_types()` and those that skops trusts, scikit-learn's among them.

    Returns
    -------
    estimator or Pipeline

    Raises
    ------
    FileNotFoundError
        There is no such file.
    TypeError
        The file holds types that are not trusted; nothing of it was executed.
    ValueError
        The file is no model of skops's, or only a part of one.
    ImportError
        skops, or a package that the backbone needs, is not installed.

    Warns
    -----
    InconsistentVersionWarning
        (`sklearn.exceptions`) Another version of ipca_sklearn, or of scikit-learn, has written it.
    """
    skops_io = _import_skops()
    known = [*trusted_types(), *trusted]
    refusal = skops_io.exceptions.UntrustedTypesFoundException
    return _read(path, lambda: skops_io.load(os.fspath(path), trusted=known), passed_on=(refusal,))


def _import_skops() -> Any:
    try:
        import skops.io.exceptions
    except ImportError as error:
        raise ImportError("files without code need skops; pip install 'ipca_sklearn[skops]'") from error
    return skops.io


def _read(
    path: str | os.PathLike[str], reader: Callable[[], Any], *, passed_on: tuple[type[Exception], ...] = ()
) -> Any:
    """Return what the reader reads, and name the file if it cannot."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no model at {os.fspath(path)}")
    try:
        return reader()
    except (ImportError, MemoryError, OSError, InconsistentVersionWarning, *passed_on):
        raise  # these say what is wrong: a package that the model needs, a file that may not be read, ...
    except Exception as error:  # pickle, zlib, zip and numpy each raise their own on broken files
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
