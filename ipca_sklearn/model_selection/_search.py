"""DetectorGridSearchCV: a grid search in which candidates that learn the same are learnt once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn.pipeline import Pipeline

from ipca_sklearn._utils._sklearn_search import JointGridSearch
from ipca_sklearn.detection._patch_gaussian import PatchGaussianDetector
from ipca_sklearn.detection._together import fit_together


class DetectorGridSearchCV(JointGridSearch):
    """scikit-learn's `GridSearchCV` that learns each fold once for all candidates that learn the same from it.

    These are candidates that differ in `n_components` (where scatter matrices are kept, which is the default for
    patches that share a Gaussian), `distance`, `noise_shrinkage`, `image_score`, `smoothing`, `ridge` and the false
    positive rates. Scores and thresholds are those of :class:`sklearn.model_selection.GridSearchCV`, bit for bit.

    Parameters
    ----------
    estimator : PatchGaussianDetector or Pipeline
        A pipeline whose last step is one. Others are fitted for each candidate.
    param_grid : dict or list of dicts
        Names and values, as in `GridSearchCV`. Candidates with other parameters of earlier steps, or other parameters
        that learning depends on, are learnt on their own.
    scoring : str, callable, list, tuple or dict, default=None
        As in `GridSearchCV`; None is the mean log-likelihood of the held-out images (`PatchGaussianDetector.score`).
    n_jobs : int or None, default=None
        Processes. Each takes a fold, with all candidates that are learnt together.
    refit : bool, str or callable, default=True
        Whether, and by which score, the best candidate is fitted to all images.
    cv : int, cross-validation generator or iterable, default=None
        Such as :class:`OneClassKFold`.
    verbose : int, default=0
        1 prints how many fits there are.
    pre_dispatch, error_score, return_train_score
        As in `GridSearchCV`.

    Attributes
    ----------
    n_fits_ : int
        How often images were learnt; `GridSearchCV` takes one fit for each candidate and fold. The refit is not
        counted.
    cv_results_, best_estimator_, best_params_, best_score_, best_index_, n_splits_, refit_time_, scorer_, multimetric_
        As in `GridSearchCV`. `fit_time` is an equal part of the time of the common fit.

    See Also
    --------
    OneClassKFold : Splits in which only normal samples are learnt.
    ipca_sklearn.FeatureCache : Keeps features on disk, so that a search runs the network once per image.

    Notes
    -----
    `fit` takes no parameters but `groups`. Memory: that of one fit, and the operators of its candidates, C k m numbers
    each, twice. Each candidate reads the test images again, so set the `cache` of the extractor.

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn import PatchGaussianDetector
    >>> from ipca_sklearn.model_selection import DetectorGridSearchCV, OneClassKFold
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(90, 4, 4, 8)), np.repeat([1, -1], [80, 10])
    >>> X[y == -1, 2, 1] += 3
    >>> grid = {"n_components": [1, 2, 3], "distance": ["factor_analysis", "residual"]}
    >>> detector, cv = PatchGaussianDetector(n_gaussians=4), OneClassKFold(2)
    >>> search = DetectorGridSearchCV(detector, grid, scoring="roc_auc", cv=cv)
    >>> search.fit(X, y).n_fits_, len(search.cv_results_["params"])
    (2, 6)
    """

    def _groups(self, candidates: list[dict[str, Any]]) -> list[list[int]]:
        """Return the positions of candidates that have the same parameters, but for those of the detector."""
        prefix = f"{self.estimator.steps[-1][0]}__" if isinstance(self.estimator, Pipeline) else ""
        groups: list[tuple[dict[str, Any], list[int]]] = []
        for number, candidate in enumerate(candidates):
            others = {name: value for name, value in candidate.items() if not name.startswith(prefix)}
            for known, group in groups:
                if known.keys() == others.keys() and all(_same(known[name], others[name]) for name in known):
                    group.append(number)
                    break
            else:
                groups.append((others, [number]))
        return [group for _, group in groups]

    @staticmethod
    def _fit_jointly(estimators: Sequence[Any], X: Any, y: Any) -> int:
        """Fit estimators in place, which are equal but for the detector."""
        detectors = [estimator[-1] if isinstance(estimator, Pipeline) else estimator for estimator in estimators]
        if any(type(detector) is not PatchGaussianDetector for detector in detectors):
            for estimator in estimators:
                estimator.fit(X) if y is None else estimator.fit(X, y)
            return len(estimators)
        first = estimators[0]
        if isinstance(first, Pipeline) and len(first) > 1:
            before = first[:-1]
            X = before.fit_transform(X) if y is None else before.fit_transform(X, y)
            for estimator in estimators:
                estimator.steps = [*before.steps, estimator.steps[-1]]
        return fit_together(detectors, X, y)


def _same(first: Any, second: Any) -> bool:
    """Return whether two values of a grid are the same; arrays and estimators are if they are one object."""
    plain = (str, bytes, int, float, tuple, type(None))
    return first is second or (type(first) is type(second) and isinstance(first, plain) and bool(first == second))
