"""The bases of our estimators; versions that are stored with them; and what reads or replaces fitted attributes."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable
from functools import wraps
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from ipca_sklearn import _version
from ipca_sklearn._utils._sklearn_compat import CallbackSupportMixin, fit_transform, in_container
from ipca_sklearn.exceptions import InconsistentPackageVersionWarning

_VERSION_KEY = "_ipca_sklearn_version"


class VersionedMixin:
    """Store the package's version with an estimator, and warn when another loads it; named before `BaseEstimator`."""

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()  # BaseEstimator's is a dict
        return {**state, _VERSION_KEY: _version.__version__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        stored = state.pop(_VERSION_KEY, "before 0.1.0")
        if stored != _version.__version__:
            warnings.warn(
                InconsistentPackageVersionWarning(
                    estimator_name=type(self).__name__,
                    current_sklearn_version=_version.__version__,
                    original_sklearn_version=stored,
                ),
                stacklevel=2,
            )
        super().__setstate__(state)  # type: ignore[misc]


class TableOutputMixin:
    """Mixin for transformers whose output becomes a data frame only if it is a numpy array without patches."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("transform", "fit_transform"):
            # scikit-learn has just wrapped the methods, and fails on patches, tensors and lazily read features.
            if name in vars(cls) and "transform" in cls._sklearn_auto_wrap_output_keys:  # type: ignore[attr-defined]
                setattr(cls, name, _tables_in_containers(vars(cls)[name].__wrapped__))

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
        """Fit, and transform X.

        Parameters
        ----------
        X, y, **fit_params
            As `fit` takes them.

        Returns
        -------
        array
            As `transform` returns it.
        """
        return fit_transform(self, X, y, **fit_params)


def _tables_in_containers(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def transforming(self: Any, X: Any, *args: Any, **options: Any) -> Any:
        output = method(self, X, *args, **options)
        is_table = isinstance(output, np.ndarray) and self.patch_shape_ == ()
        return in_container("transform", output, X, self) if is_table else output

    return transforming


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
    """Replace all fitted attributes of an estimator by one assignment: an interrupt leaves all old or all new ones."""
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


def installed_versions() -> dict[str, str]:
    """Return the versions of Python, of this package, and of the packages that its results depend on."""
    names = ("torchvision", "scikit-learn", "numpy", "scipy", "pillow")
    return {
        "ipca_sklearn": _version.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with the build, which the package's own metadata lack
        **{name: version(name) for name in names},
    }
