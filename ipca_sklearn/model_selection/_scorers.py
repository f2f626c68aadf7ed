"""Scorers that leave out unreadable images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.metrics import get_scorer

from ipca_sklearn._utils._typing import ArrayLike
from ipca_sklearn.exceptions import ImageReadError, SkippedImagesWarning


class ReadableScorer:
    """A scorer of scikit-learn that leaves out images that could not be read (`on_error="skip"`).

    Scorers by name, such as `scoring="roc_auc"`, take an image that could not be read for the most anomalous one, as
    `predict` does. That is how a line works, where someone looks at it; it says less about the candidates.

    Parameters
    ----------
    scoring : str or callable, default="roc_auc"
        Name of a scorer, or one that :func:`sklearn.metrics.make_scorer` made, that takes `decision_function` or
        `predict`.

    Warns
    -----
    SkippedImagesWarning
        Images are left out, in each fold.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GridSearchCV
    >>> from ipca_sklearn import PatchGaussianDetector
    >>> from ipca_sklearn.model_selection import OneClassKFold, ReadableScorer
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(60, 4, 6)), np.repeat([1, -1], [50, 10])
    >>> X[y == -1] += 5
    >>> grid = {"n_components": [1, 2]}
    >>> search = GridSearchCV(PatchGaussianDetector(), grid, scoring=ReadableScorer("roc_auc"), cv=OneClassKFold(2))
    >>> print(search.fit(X, y).best_score_)
    1.0
    """

    def __init__(self, scoring: str | Callable[..., float] = "roc_auc") -> None:
        self.scoring = scoring

    def __repr__(self) -> str:
        return f"ReadableScorer({self.scoring!r})"

    def __call__(self, estimator: Any, X: Any, y: ArrayLike) -> float:
        """Return the score of an estimator on the images of X that can be read, which are scored once.

        Raises
        ------
        ImageReadError
            None of them can be read.
        """
        decision = np.asarray(estimator.decision_function(X))
        readable = np.flatnonzero(decision > np.finfo(decision.dtype).min)
        n_skipped = len(decision) - len(readable)
        if not len(readable):
            raise ImageReadError(
                f"none of the {n_skipped} images of this fold could be read: there is nothing to score"
            )
        if n_skipped:
            warnings.warn(
                f"{n_skipped} of {len(decision)} images could not be read and are left out of {self.scoring}",
                SkippedImagesWarning,
                stacklevel=2,
            )
        return float(get_scorer(self.scoring)(_Decided(), decision[readable], np.asarray(y)[readable]))


class _Decided(OutlierMixin, BaseEstimator):
    """Stands for a detector whose decisions are known already; they are its X."""

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return X

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.where(X >= 0, 1, -1)
