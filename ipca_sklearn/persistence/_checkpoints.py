"""Long fits that go on after an interruption."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from torch import Tensor

from ipca_sklearn._version import __version__
from ipca_sklearn.features._lazy import PatchFeatures

# What a result does not depend on, so it may be changed between the runs.
_FREE_PARAMETERS = {"n_jobs", "memory", "verbose", "steps"}


class Checkpoint:
    """What a fit had learnt when it was last saved, and what of.

    Parameters
    ----------
    learner : estimator
        Fitted on the first `n_done` samples.
    n_done : int
        Samples read.
    parameters : dict of str
        Of the whole model, as text.
    digest : str
        Of these samples.
    complete : bool
        They were all that there were, so the last step may have been a short one.
    """

    def __init__(self, learner: Any, n_done: int, parameters: dict[str, str], digest: str, complete: bool) -> None:
        self.learner = learner
        self.n_done = n_done
        self.parameters = parameters
        self.digest = digest
        self.complete = complete
        self.version = __version__


def fit_in_blocks(
    model: Any,
    X: Any,
    stored: Checkpoint | None,
    every: int,
    save: Callable[[Checkpoint], None],
    callback: Callable[[int], None] | None,
) -> None:
    """Let `model` learn X, from `stored` on; after each block the model is fitted and the checkpoint saved."""
    if isinstance(X, PatchFeatures):
        raise TypeError("PatchFeatures cannot be told apart without computing them; pass the pipeline and its images")
    learner = model.steps[-1][1] if isinstance(model, Pipeline) else model
    block = _block(model, learner, every)
    check_repeatable(model)
    features = model[:-1].fit_transform(X) if isinstance(model, Pipeline) and len(model.steps) > 1 else X
    parameters = _parameters(model)
    n_samples, done, digest = len(X), 0, _new_digest(X)
    current = clone(learner)
    if stored is not None:
        _check_same(stored, parameters, n_samples)
        current, done = stored.learner, stored.n_done
        for start in range(0, done, block):
            _feed(digest, X, start, min(start + block, done))
        if digest.hexdigest() != stored.digest:
            raise ValueError(
                f"the checkpoint was made of other samples: the first {done} of X are not those that were learnt. Pass "
                "the same samples in the same order, or remove the file to start anew"
            )
        adopt(learner, current)
    while done < n_samples:
        stop = min(done + block, n_samples)
        current.partial_fit(features[done:stop])
        _feed(digest, X, done, stop)
        done = stop
        save(Checkpoint(current, done, parameters, digest.hexdigest(), complete=done == n_samples))
        adopt(learner, current)
        if callback is not None:
            callback(done)


def adopt(learner: Any, other: Any) -> None:
    """Let `learner` know what `other` has learnt, and nothing else; one assignment, so that Ctrl-C cannot halve it."""
    own = {name: vars(learner)[name] for name in learner.get_params(deep=False)}
    learner.__dict__ = {**vars(other), **own}


def _block(model: Any, learner: Any, every: int) -> int:
    """Return how many samples are learnt between checkpoints: whole steps, so that the result is that of `fit`.

    Where the network takes several steps at once it must take the same ones together: rounding depends on it.
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


def check_repeatable(model: Any) -> None:
    """Refuse what would not be the same again in another process."""
    for name, step in model.steps[:-1] if isinstance(model, Pipeline) else ():
        parameters = step.get_params(deep=False)
        random = parameters.get("augment") is not None or parameters.get("weights", "") is None
        if random and not isinstance(parameters.get("random_state"), (int, np.integer)):
            raise ValueError(
                f"{name} draws random numbers, others after a restart: set {name}__random_state to an integer"
            )


def _parameters(model: Any) -> dict[str, str]:
    """Return what the result depends on besides X, as text: the parameters, and the weights of a network."""
    named = model.get_params(deep=True)
    chosen = {
        name: value
        for name, value in named.items()
        if name.rpartition("__")[2] not in _FREE_PARAMETERS and not hasattr(value, "get_params")
    }
    texts = {name: re.sub(r" at 0x[0-9a-f]+", "", repr(value)) for name, value in chosen.items()}
    for name, step in model.steps[:-1] if isinstance(model, Pipeline) else ():
        if hasattr(step, "_backbone"):  # a file or a module of one name may have changed
            digest = hashlib.sha256()
            for tensor in step._backbone.module.state_dict().values():
                digest.update(_content(tensor))
            texts[f"weights of {name}"] = digest.hexdigest()
    return texts


def _check_same(stored: Checkpoint, parameters: dict[str, str], n_samples: int) -> None:
    if stored.version != __version__:
        raise ValueError(
            f"the checkpoint was made by ipca_sklearn {stored.version}, this is {__version__}: go on with "
            "that version, or remove the file to start anew"
        )
    names = sorted(set(parameters) | set(stored.parameters))
    different = [name for name in names if parameters.get(name) != stored.parameters.get(name)]
    if different:
        told = ", ".join(f"{name} {stored.parameters.get(name)} then, {parameters.get(name)} now" for name in different)
        raise ValueError(f"the checkpoint was made with other parameters ({told}); remove the file to start anew")
    if stored.n_done > n_samples:
        raise ValueError(
            f"the checkpoint has learnt {stored.n_done} samples and X has {n_samples}; remove the file to start anew"
        )
    if stored.complete and stored.n_done < n_samples:
        raise ValueError(
            f"the checkpoint is of a fit that is complete, with {stored.n_done} samples, and X has {n_samples}: pass "
            "those, and the others to partial_fit, or remove the file to start anew"
        )


def _new_digest(X: Any) -> Any:
    """Return the digest of none of the samples yet, but of their kind."""
    kind = (getattr(X, "dtype", None), tuple(X.shape[1:])) if hasattr(X, "shape") else None
    return hashlib.sha256(f"{kind}\n".encode())


def _feed(digest: Any, X: Any, start: int, stop: int) -> None:
    """Add samples to a digest: the same in one go or in many. Files count by name and size."""
    part = X[start:stop]
    if not isinstance(part, (Tensor, list, tuple)):
        part = np.asarray(part)  # an array, a memory map, a data frame, ...
    if isinstance(part, Tensor) or getattr(part, "ndim", 1) > 1:
        digest.update(_content(part))
        return
    for item in part:
        if isinstance(item, (str, os.PathLike)):
            path = Path(item)
            digest.update(f"{path} {path.stat().st_size if path.exists() else None}\n".encode())
        else:
            item = item if isinstance(item, Tensor) else np.asarray(item)
            digest.update(f"{item.dtype} {tuple(item.shape)}\n".encode())
            digest.update(_content(item))


def _content(values: Tensor | np.ndarray) -> Any:
    """Return the bytes of an array; numpy has no bfloat16, and the bytes of objects would be addresses."""
    if isinstance(values, Tensor):
        return values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    if values.dtype.hasobject:
        return "".join(f"{row}\n" for row in values.tolist()).encode()
    return np.ascontiguousarray(values)
