"""Long fits that continue after an interruption."""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import joblib
import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from torch import Tensor

from ipca_sklearn import _version
from ipca_sklearn._utils._digests import content, describe, hex_digest, new_digest
from ipca_sklearn._utils._estimators import adopt, check_repeatable
from ipca_sklearn._utils._files import naming, printable, replacing, writable_target
from ipca_sklearn._utils._typing import ArrayLike, Images, PathLike
from ipca_sklearn.decomposition._fitted_scatter import exact_pickles
from ipca_sklearn.detection._calibration import FEW_IMAGES
from ipca_sklearn.exceptions import FewImagesWarning
from ipca_sklearn.features import PatchFeatures
from ipca_sklearn.persistence._joblib import read_model

_MARK = b"\nipca_sklearn checkpoint, BLAKE2b "  # before the digest
# Samples that Ctrl-C can lose. The network waits for the first images of each part, and few images would be scored by
# models of each other in vain.
_PART = 2 * FEW_IMAGES
# The result does not depend on these, so they may change between the runs.
_FREE_PARAMETERS = {"cache", "memory", "n_jobs", "steps", "verbose"}


def fit_resumable(
    model: Any,
    X: Images | ArrayLike,
    path: PathLike,
    *,
    every: int = 1000,
    callback: Callable[[int], None] | None = None,
    features: PatchFeatures | None = None,
) -> Any:
    """Fit a model and save checkpoints; after an interruption, the same call continues where it stopped.

    Parameters
    ----------
    model : Pipeline, PatchGaussianDetector or BatchedIncrementalPCA
        A pipeline ends in one of these, and its other steps learn nothing from the images (as PatchFeatureExtractor).
        Earlier learning is forgotten.
    X : sequence of images, or array-like for a bare detector or PCA
        As for `fit`: the same samples, in the same order, in every run. No PatchFeatures: pass the pipeline and its
        images.
    path : str or path-like
        The checkpoint. Replaced only when the next one is complete.
    every : int, default=1000
        Samples between checkpoints, rounded up to whole steps of `step_size`. It may differ between runs. A
        detector learns up to 64 samples at once.
    callback : callable or None, default=None
        Called after each checkpoint with the number of samples that are learnt.
    features : PatchFeatures, default=None
        What `model[:-1].fit_transform(X)` has returned, where it is at hand: these steps are not fitted again.

    Returns
    -------
    estimator or Pipeline
        `model`, with the same bits as after `model.fit(X)`. The checkpoint stays: the next call learns nothing more.

    Raises
    ------
    ValueError
        The checkpoint has other parameters, weights or samples, is of another version of ipca_sklearn, incomplete or
        damaged (its checksum is compared before anything else). X has grown since the fit was complete.
        `step_size=None`, or a `calibration` that holds samples out: both cannot be fitted in blocks. Random steps
        without a `random_state`.
    OSError
        The checkpoint cannot be written; raised before anything is learnt, where possible.
    TypeError
        X are PatchFeatures.
    KeyboardInterrupt
        Ctrl-C: the samples learnt so far, in whole parts of about 128, are saved as a checkpoint, and `model` has
        learnt the same.

    Notes
    -----
    A checkpoint has the size of the last step of the pipeline (P (k + 4) m numbers, or C m^2 of scatter matrices),
    without the network. Files are compared by name and size; arrays are read again. What a killed process has not
    finished is removed by the next checkpoint that is written to the same path.

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
    writable_target(path)
    stored = load_checkpoint(path) if os.path.exists(path) else None
    if isinstance(X, PatchFeatures):
        raise TypeError("PatchFeatures cannot be compared without computing them; pass the pipeline and its images")
    learner = model.steps[-1][1] if isinstance(model, Pipeline) else model
    # What is learnt between checkpoints comes in smaller parts: Ctrl-C saves all that are complete.
    block, part = _block_size(model, learner, every), _block_size(model, learner, _PART)
    check_repeatable(model)
    source: Any = features
    if features is None:
        source = model[:-1].fit_transform(X) if isinstance(model, Pipeline) and len(model.steps) > 1 else X
    parameters = _parameters(model)
    n_samples = len(X)  # type: ignore[arg-type]
    if hasattr(learner, "calibration") and n_samples <= FEW_IMAGES:
        block = part = n_samples  # each one is scored by a model of the others, so all have to be there at once
    digest = new_digest()
    form = (getattr(X, "dtype", None), tuple(X.shape[1:])) if hasattr(X, "shape") else None
    digest.update(f"{form}\n".encode())
    done = _Done(clone(learner), 0, digest)
    if stored is not None:
        _check_same_fit(stored, parameters, n_samples, path)
        for start in range(0, stored.n_done, block):
            _add_samples(done.digest, X, start, min(start + block, stored.n_done))
        if done.digest.hexdigest() != stored.digest:
            raise ValueError(
                f"the checkpoint has other samples: the first {stored.n_done} of X are not those that were learnt. "
                f"Pass the same samples in the same order, or remove {printable(path)} to start again"
            )
        done = _Done(stored.learner, stored.n_done, done.digest)
        adopt(learner, done.learner)
    n_saved = done.n_samples

    def save() -> None:
        facts = parameters, done.digest.hexdigest(), done.n_samples == n_samples
        save_checkpoint(Checkpoint(done.learner, done.n_samples, *facts), path)
        adopt(learner, done.learner)

    try:
        while done.n_samples < n_samples:
            stop = min(done.n_samples + part, n_saved + block, n_samples)
            # What is done is replaced at once, by a learner of its own: an interrupt leaves the one or the other.
            advanced, digest = copy.copy(done.learner), done.digest.copy()
            with warnings.catch_warnings():
                if stop < n_samples:  # that images are few counts at the end
                    warnings.simplefilter("ignore", FewImagesWarning)
                advanced.partial_fit(source[done.n_samples : stop])
            _add_samples(digest, X, done.n_samples, stop)
            done = _Done(advanced, stop, digest)
            if stop in (n_samples, n_saved + block):
                save()
                n_saved = stop
                if callback is not None:
                    callback(stop)
    except KeyboardInterrupt:
        if done.n_samples > n_saved:
            save()
        raise
    return model


@dataclass
class Checkpoint:
    """What a fit had learnt when it was last saved, and from which samples."""

    learner: Any
    n_done: int
    parameters: dict[str, str]  # of the whole model, as text
    digest: str  # of the `n_done` samples
    complete: bool  # whether these are all: then the last step may have been a short one
    version: str = field(default_factory=lambda: _version.__version__)


class _Done(NamedTuple):
    """What is learnt so far: the learner, the number of samples, and their digest."""

    learner: Any
    n_samples: int
    digest: Any


def save_checkpoint(checkpoint: Checkpoint, path: PathLike) -> None:
    """Write a checkpoint: a joblib file, and the digest of its bytes at the end."""
    with replacing(path) as file, exact_pickles():
        writer = _DigestingWriter(file)
        joblib.dump(checkpoint, writer)
        file.write(_MARK + writer.digest.digest())


def load_checkpoint(path: PathLike) -> Checkpoint:
    """Read a checkpoint whose bytes are those that were written; nothing is unpickled before."""
    name = printable(path)
    digest = new_digest()
    n_end = len(_MARK) + digest.digest_size
    with open(path, "rb") as file, naming(path):
        n_left = os.fstat(file.fileno()).st_size - n_end
        while n_left > 0 and (content := file.read(min(n_left, 1 << 20))):
            digest.update(content)
            n_left -= len(content)
        end = file.read(n_end)
        if n_left < 0 or not end.startswith(_MARK):
            raise ValueError(
                f"{name} was written by an older, unreleased version of ipca_sklearn, was cut short, or holds no "
                "checkpoint: it has no checksum at its end. Remove the file and fit again, or name another file"
            )
        if end != _MARK + digest.digest():
            raise ValueError(
                f"{name} is damaged: its checksum is not that of its content, so what it has learnt cannot be trusted. "
                "Remove it to start again"
            )
        file.seek(0)
        stored = read_model(path, lambda: joblib.load(file))
    if not isinstance(stored, Checkpoint):
        raise ValueError(f"{name} holds no checkpoint but a {type(stored).__name__}; name another file")
    return stored


class _DigestingWriter:
    """What pickle writes to a file, and the digest of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = new_digest()

    def write(self, content: Any) -> int:
        self.digest.update(content)
        return self._file.write(content)

    def tell(self) -> int:
        return self._file.tell()


def _block_size(model: Any, learner: Any, every: int) -> int:
    """Return the number of samples between checkpoints: whole steps, so that the result is that of `fit`.

    If the network takes several steps at once, a block is a multiple of these: rounding depends on the batch.
    """
    if every < 1:
        raise ValueError(f"every={every}: at least one sample between checkpoints")
    step_size = learner.step_size
    if step_size is None:
        raise ValueError("step_size=None learns all samples at once, which cannot be resumed; set a step_size")
    if getattr(learner, "calibration", "prequential") != "prequential":
        raise ValueError(
            f"calibration={learner.calibration} holds out a share of each call, so blocks would give another result "
            "than fit; set calibration='prequential'"
        )
    batch_size = getattr(model.steps[0][1], "batch_size", 1) if isinstance(model, Pipeline) else 1
    unit = step_size * max(1, batch_size // step_size)
    return -(-every // unit) * unit


def _parameters(model: Any) -> dict[str, str]:
    """Return what the result depends on besides X, as text: the parameters, and digests of networks and regions."""
    named = model.get_params(deep=True)
    chosen = {
        name: value
        for name, value in named.items()
        if name.rpartition("__")[2] not in _FREE_PARAMETERS and not hasattr(value, "get_params")
    }
    texts = {name: re.sub(r" at 0x[0-9a-f]+", "", repr(value)) for name, value in chosen.items()}
    for name, step in model.steps[:-1] if isinstance(model, Pipeline) else ():
        if hasattr(step, "weights_digest"):  # a file or a module may have changed under the same name
            texts[f"weights of {name}"] = step.weights_digest()
        for attribute, text in (("region_", "region"), ("reference_", "mean image")):
            values = getattr(step, attribute, None)
            if values is not None:
                texts[f"{text} of {name}"] = hex_digest(describe(values), content(values))
    return texts


def _check_same_fit(stored: Checkpoint, parameters: dict[str, str], n_samples: int, path: PathLike) -> None:
    again = f"remove {printable(path)} to start again"
    if stored.version != _version.__version__:
        raise ValueError(
            f"the checkpoint was made by ipca_sklearn {stored.version}, this is {_version.__version__}: continue with "
            f"that version, or {again}"
        )
    names = sorted(set(parameters) | set(stored.parameters))
    different = [name for name in names if parameters.get(name) != stored.parameters.get(name)]
    if different:
        listed = ", ".join(
            f"{name}={stored.parameters.get(name)} then, {parameters.get(name)} now" for name in different
        )
        raise ValueError(f"the checkpoint was made with other parameters ({listed}); {again}")
    if stored.n_done > n_samples:
        raise ValueError(f"the checkpoint has learnt {stored.n_done} samples and X has {n_samples}; {again}")
    if stored.complete and stored.n_done < n_samples:
        raise ValueError(
            f"the checkpoint is of a fit that is complete, with {stored.n_done} samples, and X has {n_samples}: pass "
            f"those, and the others to partial_fit, or {again}"
        )


def _add_samples(digest: Any, X: Any, start: int, stop: int) -> None:
    """Add samples to a digest; the size of the parts does not matter. Files are added by name and size."""
    part = X[start:stop]
    if not isinstance(part, (Tensor, list, tuple)):
        part = np.asarray(part)  # an array, a memory map, a data frame, ...
        if part.dtype.hasobject and part.shape[1:] == (1,):  # a column of paths
            part = part[:, 0]
    if isinstance(part, Tensor) or getattr(part, "ndim", 1) > 1:
        digest.update(content(part))
        return
    for item in part:
        if isinstance(item, (str, os.PathLike)):
            size = os.stat(item).st_size if os.path.exists(item) else None
            digest.update(os.fsencode(Path(item)) + f" {size}\n".encode())  # names need not be UTF-8
        else:
            item = item if isinstance(item, Tensor) else np.asarray(item)
            digest.update(describe(item))
            digest.update(content(item))
