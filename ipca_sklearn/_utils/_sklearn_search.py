"""What scikit-learn's grid search does not document: how candidates are scored, and how their table is made.

Apart from `_sklearn_compat`, which everything imports, because scikit-learn's searches take long to load. Seen in
scikit-learn 1.6 to 1.9.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from joblib import Parallel, delayed
from sklearn.base import clone, is_classifier
from sklearn.model_selection import GridSearchCV, ParameterGrid, check_cv
from sklearn.model_selection._validation import (
    _fit_and_score,
    _insert_error_scores,
    _score,
    _warn_or_raise_about_fit_failures,
)
from sklearn.utils import indexable
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.validation import _is_fitted

from ipca_sklearn._utils._sklearn_compat import FitProgress, fit_context, num_samples


class JointGridSearch(GridSearchCV):
    """GridSearchCV that fits the candidates of a split together."""

    @abstractmethod
    def _groups(self, candidates: list[dict[str, Any]]) -> list[list[int]]:
        """Return the positions of the candidates that are fitted together."""

    @staticmethod
    @abstractmethod
    def _fit_jointly(estimators: Sequence[Any], X: Any, y: Any) -> int:
        """Fit estimators in place, as alone, and return how many fits it took; the others are then fitted alone."""

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None, **params: Any) -> Self:
        """Score all candidates, and fit the best to all of X; see :meth:`sklearn.model_selection.GridSearchCV.fit`."""
        scorers, refit_metric = self._get_scorers()
        X, y = indexable(X, y)
        routed = self._get_routed_params_for_fit(params)
        others = [*routed.estimator.fit, *routed.scorer.score]
        if others:
            raise TypeError(
                f"{type(self).__name__}.fit takes groups= for the splitter and nothing for the estimator or the "
                f"scorer, got {', '.join(others)}: use GridSearchCV"
            )
        cv = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        splits = list(cv.split(X, y, **routed.splitter.split))
        candidates = list(ParameterGrid(self.param_grid))
        groups = self._groups(candidates)
        tasks = [(split, group) for split in range(len(splits)) for group in groups]
        if self.verbose > 0:
            print(f"Fitting {len(splits)} folds for each of {len(candidates)} candidates, in {len(tasks)} groups")
        evaluation = _Evaluation(
            clone(self.estimator), self._fit_jointly, scorers, self.return_train_score, self.error_score
        )
        progress = FitProgress(self, len(tasks), X, y)
        parallel = Parallel(n_jobs=self.n_jobs, pre_dispatch=self.pre_dispatch, return_as="generator")
        done = parallel(
            delayed(evaluation)(X, y, *splits[split], [candidates[number] for number in group])
            for split, group in tasks
        )
        table: dict[tuple[int, int], dict[str, Any]] = {}
        n_fits = 0
        for (split, group), (results, count) in zip(tasks, done, strict=True):
            table.update({(number, split): result for number, result in zip(group, results, strict=True)})
            n_fits += count
            progress.step()
        out = [table[number, split] for number in range(len(candidates)) for split in range(len(splits))]
        _warn_or_raise_about_fit_failures(out, self.error_score)
        if callable(self.scoring):
            _insert_error_scores(out, self.error_score)
        self.n_splits_, self.n_fits_ = len(splits), n_fits
        self._choose(X, y, self._format_results(candidates, len(splits), out), out[0]["test_scores"], refit_metric)
        self.scorer_ = getattr(scorers, "_scorers", scorers)
        progress.end()
        return self

    def _choose(self, X: Any, y: Any, results: dict[str, Any], first_score: Any, refit_metric: Any) -> None:
        self.multimetric_ = isinstance(first_score, dict)
        if callable(self.scoring) and self.multimetric_:
            self._check_refit_for_multimetric(first_score)
            refit_metric = self.refit
        if self.refit or not self.multimetric_:
            self.best_index_ = self._select_best_index(self.refit, refit_metric, results)
            if not callable(self.refit):
                self.best_score_ = results[f"mean_test_{refit_metric}"][self.best_index_]
            self.best_params_ = results["params"][self.best_index_]
        if self.refit:
            began = time.time()
            best = _candidate(self.estimator, self.best_params_)
            self.best_estimator_ = best.fit(X) if y is None else best.fit(X, y)
            self.refit_time_ = time.time() - began
            if hasattr(self.best_estimator_, "feature_names_in_"):
                self.feature_names_in_ = self.best_estimator_.feature_names_in_
        self.cv_results_ = results


def _candidate(estimator: Any, parameters: dict[str, Any]) -> Any:
    """Return an unfitted estimator with the parameters of a candidate, which may be estimators themselves."""
    return clone(estimator).set_params(**clone(parameters, safe=False))


@dataclass(frozen=True)
class _Evaluation:
    """Fits and scores candidates on one split, perhaps in another process."""

    estimator: Any  # not fitted
    fit_jointly: Callable[[Sequence[Any], Any, Any], int]
    scorers: Any
    return_train_score: bool
    error_score: Any

    def __call__(
        self, X: Any, y: Any, train: Any, test: Any, candidates: list[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], int]:
        """Return the result of each candidate as scikit-learn has it, and how many fits it took."""
        learnt, tested = (_safe_split(self.estimator, X, y, indices) for indices in (train, test))
        began = time.time()
        estimators: list[Any] = []
        n_fits = 0
        with suppress(Exception):  # each candidate has its own error, or none, when it is fitted alone
            estimators = [_candidate(self.estimator, parameters) for parameters in candidates]
            n_fits = self.fit_jointly(estimators, *learnt)
        fit_time = (time.time() - began) / len(candidates)
        results = []
        for parameters in candidates:
            estimator = estimators.pop(0) if estimators else None
            if estimator is not None and _is_fitted(estimator):
                results.append({"fit_time": fit_time, **self._scored(estimator, learnt, tested)})
            else:
                results.append(self._alone(X, y, train, test, parameters))
                n_fits += 1
            del estimator  # and with it what was made to score by it
        return results, n_fits

    def _scored(self, estimator: Any, learnt: tuple[Any, Any], tested: tuple[Any, Any]) -> dict[str, Any]:
        result: dict[str, Any] = {"fit_error": None, "n_test_samples": num_samples(tested[0])}
        began = time.time()
        result["test_scores"] = _score(estimator, *tested, self.scorers, {}, self.error_score)
        result["score_time"] = time.time() - began
        if self.return_train_score:
            result["train_scores"] = _score(estimator, *learnt, self.scorers, {}, self.error_score)
        return result

    def _alone(self, X: Any, y: Any, train: Any, test: Any, parameters: dict[str, Any]) -> dict[str, Any]:
        return _fit_and_score(
            clone(self.estimator),
            X,
            y,
            scorer=self.scorers,
            train=train,
            test=test,
            verbose=0,
            parameters=parameters,
            fit_params={},
            score_params={},
            return_train_score=self.return_train_score,
            return_n_test_samples=True,
            return_times=True,
            error_score=self.error_score,
        )
