"""Long fits that go on after an interruption."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from torch import Tensor

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
    """

    def __init__(self, learner: Any, n_done: int, parameters: dict[str, str], digest: str) -> None:
        self.learner = learner
        self.n_done = n_done
        self.parameters = parameters
        self.digest = digest


def fit_in_blocks(
    model: Any,
    X: Any,
    stored: Checkpoint | None,
    every: int,
    save: Callable[[Checkpoint], None],
    callback: Callable[[int], None] | None,
) -> None:
    """Let `model` learn X, from `stored` on; after each block the model is fitted and the checkpoint saved."""
    learner = model.steps[-1][1] if isinstance(model, Pipeline) else model
    block = _block(learner, every)
    parameters = _parameters(model)
    _check_repeatable(model)
    features = model[:-1].fit_transform(X) if isinstance(model, Pipeline) and len(model.steps) > 1 else X
    n_samples, done, digest = len(X), 0, ""
    current = clone(learner)
    if stored is not None:
        _check_same(stored, parameters, n_samples)
        current, done = stored.learner, stored.n_done
        digest = _digest(X, done, block)
        if digest != stored.digest:
            raise ValueError(
                f"the checkpoint was made of other samples: the first {done} of X are not those that were learnt. Pass "
                "the same samples in the same order, or remove the file to start anew"
            )
        vars(learner).update(vars(current))
    while done < n_samples:
        stop = min(done + block, n_samples)
        current.partial_fit(features[done:stop])
        digest = _chained(digest, X, done, stop)
        done = stop
        save(Checkpoint(current, done, parameters, digest))
        vars(learner).update(vars(current))
        if callback is not None:
            callback(done)


def _block(learner: Any, every: int) -> int:
    """Return how many samples are learnt between checkpoints: whole steps, so that the result is that of `fit`."""
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
    return -(-every // step_size) * step_size


def _check_repeatable(model: Any) -> None:
    """Refuse what would not be the same again in another process."""
    for name, step in model.steps[:-1] if isinstance(model, Pipeline) else ():
        parameters = step.get_params(deep=False)
        random = parameters.get("augment") is not None or parameters.get("weights", "") is None
        if random and not isinstance(parameters.get("random_state"), (int, np.integer)):
            raise ValueError(
                f"{name} draws random numbers, others after a restart: set {name}__random_state to an integer"
            )


def _parameters(model: Any) -> dict[str, str]:
    named = model.get_params(deep=True)
    chosen = {
        name: value
        for name, value in named.items()
        if name.rpartition("__")[2] not in _FREE_PARAMETERS and not hasattr(value, "get_params")
    }
    return {name: re.sub(r" at 0x[0-9a-f]+", "", repr(value)) for name, value in chosen.items()}


def _check_same(stored: Checkpoint, parameters: dict[str, str], n_samples: int) -> None:
    names = sorted(set(parameters) | set(stored.parameters))
    different = [name for name in names if parameters.get(name) != stored.parameters.get(name)]
    if different:
        told = ", ".join(f"{name} {stored.parameters.get(name)} then, {parameters.get(name)} now" for name in different)
        raise ValueError(f"the checkpoint was made with other parameters ({told}); remove the file to start anew")
    if stored.n_done > n_samples:
        raise ValueError(
            f"the checkpoint has learnt {stored.n_done} samples and X has {n_samples}; remove the file to start anew"
        )


def _digest(X: Any, stop: int, block: int) -> str:
    digest = ""
    for start in range(0, stop, block):
        digest = _chained(digest, X, start, min(start + block, stop))
    return digest


def _chained(digest: str, X: Any, start: int, stop: int) -> str:
    """Return the digest of all samples up to `stop` from that of all up to `start`. Files count by name and size."""
    part = X[start:stop]
    if isinstance(part, Tensor):
        part = part.detach().cpu().numpy()
    elif not isinstance(part, np.ndarray):
        part = [_identity(item) for item in part]
    return hashlib.sha256(f"{digest} {joblib.hash(part)}".encode()).hexdigest()


def _identity(item: Any) -> Any:
    if not isinstance(item, (str, os.PathLike)):
        return item
    path = Path(item)
    return str(path), path.stat().st_size if path.exists() else None
