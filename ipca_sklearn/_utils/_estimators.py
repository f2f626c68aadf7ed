"""The base of our estimators, and functions that read, replace and take over fitted attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from ipca_sklearn._utils._output import TableOutputMixin
from ipca_sklearn._utils._sklearn_compat import CallbackSupportMixin
from ipca_sklearn._utils._versions import VersionedMixin


class PatchTransformer(
    VersionedMixin,
    CallbackSupportMixin,
    TableOutputMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Base of the estimators that learn from features of patches and transform them."""


def set_learnt(estimator: Any, learnt: dict[str, Any]) -> None:
    """Replace all fitted attributes (names that end in `_`) of an estimator by one assignment; keep everything else.

    An interrupt at any line leaves all of the old attributes or all of the new ones.
    """
    kept = {name: value for name, value in vars(estimator).items() if name.startswith("_") or not name.endswith("_")}
    estimator.__dict__ = {**kept, **learnt}


def adopt(estimator: Any, other: Any) -> None:
    """Replace the fitted attributes of `estimator` by those of `other`, in one assignment; its parameters stay."""
    own = {name: vars(estimator)[name] for name in estimator.get_params(deep=False)}
    estimator.__dict__ = {**vars(other), **own}


def calibrated(estimator: Any, what: str) -> Any:
    """Return the fitted detector that an estimator is, or a pipeline ends in; a TypeError says there is no `what`."""
    detector = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    if not hasattr(type(detector), "calibration_scores_"):
        raise TypeError(f"{type(detector).__name__} has no {what}; pass a PatchGaussianDetector, or its pipeline")
    check_is_fitted(detector)
    return detector


def check_repeatable(model: Any) -> None:
    """Refuse steps of a pipeline that give other results in another process: random ones without an integer seed."""
    for name, step in model.steps[:-1] if isinstance(model, Pipeline) else ():
        parameters = step.get_params(deep=False) if hasattr(step, "get_params") else {}  # "passthrough", or None
        random = parameters.get("augment") is not None or parameters.get("weights", "") is None
        if random and not isinstance(parameters.get("random_state"), (int, np.integer)):
            raise ValueError(
                f"{name} draws random numbers, which differ after a restart: set {name}__random_state to an integer"
            )
