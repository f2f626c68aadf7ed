"""Attributes of estimators, set all at once."""

from __future__ import annotations

from typing import Any


def set_learnt(estimator: Any, learnt: dict[str, Any]) -> None:
    """Replace what an estimator has learnt and keep the rest (parameters, metadata requests, callbacks).

    One assignment at the end: an interrupt at any line leaves all of the old attributes or has all of the new ones.

    Parameters
    ----------
    estimator : BaseEstimator
        Changed in place.
    learnt : dict
        All of its learnt attributes. Old ones (with a name that ends in `_`) that are missing here are removed.
    """
    kept = {name: value for name, value in vars(estimator).items() if name.startswith("_") or not name.endswith("_")}
    estimator.__dict__ = {**kept, **learnt}
