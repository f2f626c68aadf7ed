"""Estimators that know which version of the package stored them."""

from __future__ import annotations

import warnings
from typing import Any

from ipca_sklearn._version import __version__
from ipca_sklearn.exceptions import InconsistentPackageVersionWarning

_KEY = "_ipca_sklearn_version"


class VersionedMixin:
    """Store the package's version with an estimator and warn where another one loads it, as scikit-learn's own do.

    (`BaseEstimator` does so for modules of scikit-learn only.) Comes before `BaseEstimator` among the bases.
    """

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()  # BaseEstimator's is a dict
        return {**state, _KEY: __version__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        stored = state.pop(_KEY, "before 0.1.0")
        if stored != __version__:
            warnings.warn(
                InconsistentPackageVersionWarning(
                    estimator_name=type(self).__name__,
                    current_sklearn_version=__version__,
                    original_sklearn_version=stored,
                ),
                stacklevel=2,
            )
        super().__setstate__(state)  # type: ignore[misc]
