"""Columns, shape and inspected patches, which samples that are learnt together have in common."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ipca_sklearn._utils._sklearn_compat import feature_names

# Packages whose lines say nothing to a user.
_OURS = ("contextlib", "ipca_sklearn", "joblib", "sklearn")

# Names that a message lists at most.
_LISTED = 5


def check_mergeable(estimator: Any, other: Any) -> None:
    """Refuse to merge what was learnt from other columns, from the same in another order, or chosen among others."""
    names, others = (getattr(fitted, "feature_names_in_", None) for fitted in (estimator, other))
    what = f"the other {type(other).__name__}"
    check_same_columns(names, others, "this one", what, "fit both on the same columns, as with X[names]")
    if hasattr(estimator, "feature_indices_") and estimator.n_features_in_ != other.n_features_in_:
        raise ValueError(
            f"{what} has chosen features among {other.n_features_in_}, and this one among {estimator.n_features_in_}: "
            "fit both on the same features"
        )


def check_same_columns(first: np.ndarray | None, second: np.ndarray | None, a: str, b: str, remedy: str) -> None:
    """Refuse different columns of `a` and `b`, as messages call them; warn, as scikit-learn, if one has no names."""
    if first is None or second is None:
        if first is not second:
            named, nameless = (b, a) if first is None else (a, b)
            warnings.warn(
                f"{named} has named columns and {nameless} has not: they are taken to be in the same order",
                UserWarning,
                stacklevel=_to_the_caller(),
            )
        return
    if np.array_equal(first, second):
        return
    gone = [name for name in first if name not in set(second)]
    new = [name for name in second if name not in set(first)]
    if gone or new:
        words = [f"{word} {_listed(names)}" for word, names in (("without", gone), ("with", new)) if names]
        what = f"other columns than {a}: {' and '.join(words)}"
    else:
        at = int(np.argmax(first != second))
        what = f"the columns in another order than {a}: column {at} is {str(second[at])!r} and not {str(first[at])!r}"
    raise ValueError(f"{b} has {what}; {remedy}")


@dataclass(frozen=True, eq=False)
class Layout:
    """The form of the samples of one X, as far as it is known without reading them."""

    names: np.ndarray | None  # of columns
    shape: tuple[int, ...] | None  # of one sample: (m,), (P, m) or (H, W, m); None if unknown
    region: np.ndarray | None  # (H, W), the patches that are inspected; None if all are

    @classmethod
    def of(cls, X: Any) -> Layout:
        """Return the layout of an X."""
        shape = getattr(X, "shape", None)
        if shape is None and isinstance(X, Sequence) and not isinstance(X, str) and len(X):
            shape = (len(X), *np.shape(X[0]))
        return cls(
            feature_names(X) if hasattr(X, "columns") or hasattr(X, "__dataframe__") else None,
            tuple(int(side) for side in shape[1:]) if shape is not None and len(shape) > 1 else None,
            getattr(X, "region", None),
        )

    def check_same(self, other: Layout, a: str, b: str) -> None:
        """Refuse samples of another layout; `a` and `b` are what messages call these ones and those."""
        remedy = f"bring it into the form of {a}"
        check_same_columns(self.names, other.names, a, b, remedy)
        if self.shape is not None and other.shape is not None and self.shape != other.shape:
            raise ValueError(f"{b} has samples of shape {other.shape}, and {a} of {self.shape}; {remedy}")
        if (self.region is None) != (other.region is None) or not np.array_equal(self.region, other.region):  # type: ignore[arg-type]
            raise ValueError(
                f"{b} has another region of interest than {a} ({_counted(other.region)} and {_counted(self.region)}); "
                "take the features of both from one extractor"
            )


def _to_the_caller() -> int:
    """Return the `stacklevel` with which the function that calls this one warns at the line of the user."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        level, frame = level + 1, frame.f_back
    return level


def _listed(names: Any) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > _LISTED else ""
    return f"{', '.join(map(repr, map(str, names[:_LISTED])))}{more}"


def _counted(region: np.ndarray | None) -> str:
    return "all patches" if region is None else f"{int(region.sum())} of {region.size} patches"
