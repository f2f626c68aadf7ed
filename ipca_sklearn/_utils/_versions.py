"""Stored estimators and the version of this package that stored them, and versions of other packages."""

from __future__ import annotations

import platform
import warnings
from importlib.metadata import version
from typing import Any

import torch

from ipca_sklearn import _version
from ipca_sklearn.exceptions import InconsistentPackageVersionWarning

_KEY = "_ipca_sklearn_version"


class VersionedMixin:
    """Store the package's version with an estimator, and warn when another loads it; named before `BaseEstimator`."""

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()  # BaseEstimator's is a dict
        return {**state, _KEY: _version.__version__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        stored = state.pop(_KEY, "before 0.1.0")
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


def installed_versions() -> dict[str, str]:
    """Return the versions of Python, of this package, and of the packages that its results depend on."""
    names = ("torchvision", "scikit-learn", "numpy", "scipy", "pillow")
    return {
        "ipca_sklearn": _version.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with the build, which the package's own metadata lack
        **{name: version(name) for name in names},
    }
