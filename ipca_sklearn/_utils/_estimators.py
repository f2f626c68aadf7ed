"""Estimators that are learnt piece by piece, elsewhere or later, and handed to the caller's estimator at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline


def adopt(estimator: Any, other: Any) -> None:
    """Replace what `estimator` has learnt by what `other` has learnt; `estimator` keeps its own parameters.

    One assignment, so that Ctrl-C cannot leave half of it.
    """
    own = {name: vars(estimator)[name] for name in estimator.get_params(deep=False)}
    estimator.__dict__ = {**vars(other), **own}


def check_repeatable(model: Any) -> None:
    """Refuse steps of a pipeline that give other results in another process: random ones without an integer seed."""
    for name, step in model.steps[:-1] if isinstance(model, Pipeline) else ():
        parameters = step.get_params(deep=False)
        random = parameters.get("augment") is not None or parameters.get("weights", "") is None
        if random and not isinstance(parameters.get("random_state"), (int, np.integer)):
            raise ValueError(
                f"{name} draws random numbers, which differ after a restart: set {name}__random_state to an integer"
            )
