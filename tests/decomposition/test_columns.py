"""Data frames: what is learnt together has the same columns in the same order, whoever learns it."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ipca_sklearn import BatchedIncrementalPCA, PatchGaussianDetector
from ipca_sklearn.decomposition import FullCovariance

X = np.random.default_rng(0).normal(size=(200, 7)) * [10, 1, 0.1, 5, 2, 3, 4]
NAMES = list("abcdefg")
FRAME = pd.DataFrame(X, columns=NAMES)
ESTIMATORS: dict[str, Callable[[], Any]] = {
    "pca": lambda: BatchedIncrementalPCA(2),
    "full covariance": FullCovariance,
    "detector": lambda: PatchGaussianDetector(2),
    "full detector": lambda: PatchGaussianDetector(covariance="full", distance="mahalanobis"),
    "random features": lambda: PatchGaussianDetector(2, n_random_features=3, random_state=0),
}
OTHERS = {
    "another order": (FRAME[["a", "b", "c", "d", "e", "g", "f"]], r"another order .*: column 5 is 'g' and not 'f'"),
    "renamed": (FRAME.rename(columns={"c": "C"}), r"other columns .*: without 'c' and with 'C'"),
    "fewer": (FRAME[NAMES[:6]], "other columns .*: without 'g'"),
    "more": (FRAME.assign(h=1.0), "other columns .*: with 'h'"),
}


@pytest.mark.parametrize(("frame", "message"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_other_columns_are_not_merged(make: Callable[[], Any], frame: pd.DataFrame, message: str) -> None:
    estimator, other = make().fit(FRAME), make().fit(frame)
    before = pickle.dumps(estimator)
    with pytest.raises(ValueError, match=message):
        estimator.merge(other)
    assert pickle.dumps(estimator) == before


@pytest.mark.parametrize("frame", [frame for frame, _ in OTHERS.values()], ids=OTHERS)
@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_other_columns_are_not_learnt_on(make: Callable[[], Any], frame: pd.DataFrame) -> None:
    estimator = make().fit(FRAME)
    before = pickle.dumps(estimator)
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.partial_fit(frame)
    assert pickle.dumps(estimator) == before


@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_the_same_columns_are_merged_without_a_word(make: Callable[[], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = make().fit(FRAME[:100]).merge(make().fit(FRAME[100:]))
    pca = getattr(merged, "pca_", merged)
    chosen = getattr(merged, "feature_indices_", slice(None))
    np.testing.assert_allclose(pca.mean_, X.mean(0)[chosen])
    np.testing.assert_allclose(pca.var_, X.var(0)[chosen])
    assert list(merged.feature_names_in_) == NAMES


@pytest.mark.parametrize("named_first", [True, False])
@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_names_on_one_side_only_are_a_warning_as_in_partial_fit(make: Callable[[], Any], named_first: bool) -> None:
    first, second = (FRAME[:100], X[100:]) if named_first else (X[:100], FRAME[100:])
    with pytest.warns(UserWarning, match="named columns") as caught:
        merged = make().fit(first).merge(make().fit(second))
    assert caught[0].filename == __file__
    assert hasattr(merged, "feature_names_in_") == named_first
    with pytest.warns(UserWarning, match="feature names"):
        make().fit(first).partial_fit(second)


def test_features_chosen_among_others_are_not_merged() -> None:
    detectors = [PatchGaussianDetector(2, n_random_features=7, random_state=0) for _ in range(2)]
    wide = np.c_[X, X[:, :1]]
    detectors[0].fit(X)
    detectors[1].fit(wide)
    detectors[1].feature_indices_ = np.arange(7)  # by chance
    with pytest.raises(ValueError, match="among 8, and this one among 7"):
        detectors[0].merge(detectors[1])


def test_scores_of_another_kind_are_not_merged() -> None:
    first, second = (PatchGaussianDetector(2).fit(half) for half in (X[:100], X[100:]))
    for detector in (first, second):
        detector.set_params(distance="residual")
    with pytest.raises(ValueError, match="distance='factor_analysis', now 'residual'"):
        first.merge(second)
