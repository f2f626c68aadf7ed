"""Detectors that are fitted together have what each would have learnt alone, and the work is that of one."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from ipca_sklearn import BatchedIncrementalPCA, PatchGaussianDetector, linalg
from ipca_sklearn.detection._together import fit_together

pytestmark = pytest.mark.filterwarnings("ignore::ipca_sklearn.exceptions.FewImagesWarning")

M = 12
SCORES: list[dict[str, Any]] = [
    {"n_components": 2},
    {"n_components": 5, "distance": "residual"},
    {"n_components": np.int64(3), "distance": "ppca", "image_score": "max", "smoothing": 1.0},
    {"n_components": "auto", "distance": "mahalanobis", "false_positive_rate": 0.2},
    {"n_components": 0.7, "noise_shrinkage": 0.1, "pixel_false_positive_rate": 0.01},
]


def features(n: int, seed: int = 0) -> np.ndarray:
    scale = np.linspace(3, 0.5, M)
    return (np.random.default_rng(seed).normal(size=(n, 6, 6, M)) * scale).astype(np.float32)


def assert_equal(together: PatchGaussianDetector, alone: PatchGaussianDetector, images: np.ndarray) -> None:
    np.testing.assert_array_equal(together.transform(images), alone.transform(images))
    np.testing.assert_array_equal(together.score_samples(images), alone.score_samples(images))
    np.testing.assert_array_equal(together.calibration_scores_, alone.calibration_scores_)
    assert (together.offset_, together.map_threshold_) == (alone.offset_, alone.map_threshold_)
    assert together.score(images) == alone.score(images)
    assert vars(together).keys() == vars(alone).keys()
    assert vars(together.pca_).keys() == vars(alone.pca_).keys()
    assert together.pca_.n_components_ == alone.pca_.n_components_


@pytest.mark.parametrize(
    "common",
    [
        {"n_gaussians": 9},
        {"n_gaussians": 1, "step_size": None},
        {"n_gaussians": 9, "forgetting_factor": 0.95},
        {"n_gaussians": 9, "calibration": 0.3},
        {"n_gaussians": 9, "n_random_features": 7, "random_state": 0},
        {"n_gaussians": None, "solver": "covariance"},
    ],
    ids=str,
)
@pytest.mark.parametrize("n", [1, 5, 90])
def test_scores_and_thresholds_are_those_of_separate_fits(common: dict[str, Any], n: int) -> None:
    X, new = features(n), features(5, seed=1)
    alone = [PatchGaussianDetector(**common, **of_scores).fit(X) for of_scores in SCORES]
    together = [PatchGaussianDetector(**common, **of_scores) for of_scores in SCORES]
    assert fit_together(together, X) == 1
    for one, other in zip(together, alone, strict=True):
        assert_equal(one, other, new)
        assert_equal(pickle.loads(pickle.dumps(one)), pickle.loads(pickle.dumps(other)), new)
    for one, other in zip(together, alone, strict=True):  # what is shared is not changed by learning on
        assert_equal(one.partial_fit(new), other.partial_fit(new), features(3, seed=2))


def test_what_is_learnt_differently_is_learnt_separately() -> None:
    X, new = features(70), features(5, seed=1)
    differing: list[dict[str, Any]] = [
        {"n_gaussians": None, "n_components": 2},  # the paper's update depends on k ...
        {"n_gaussians": None, "n_components": 3},
        {"n_gaussians": None, "n_components": 3, "distance": "residual"},  # ... and not on the distance
        {"n_gaussians": 9, "step_size": 8},
        {"covariance": "full", "distance": "mahalanobis", "n_gaussians": 9},
        {"covariance": "full", "distance": "mahalanobis", "n_gaussians": 9, "ridge": 0.1},
    ]
    together = [PatchGaussianDetector(**parameters) for parameters in differing]
    assert fit_together(together, X) == 4
    for detector, parameters in zip(together, differing, strict=True):
        assert_equal(detector, PatchGaussianDetector(**parameters).fit(X), new)


def test_one_that_cannot_be_fitted_is_left_alone() -> None:
    X, y = features(70), np.repeat([1, -1], [60, 10])
    good, *bad = (
        PatchGaussianDetector(n_gaussians=9, **parameters)
        for parameters in (
            {"n_components": 2},
            {"n_components": M + 1},
            {"image_score": 2.0},
            {"covariance": "full"},
            {"n_random_features": M + 1},
        )
    )
    with pytest.warns(UserWarning, match="not learnt"):
        fit_together([*bad, good], X, y)
    assert good.n_samples_seen_ == 60
    for detector in bad:
        assert not hasattr(detector, "pca_")
        with pytest.raises(ValueError, match=r"n_components=13|image_score|covariance='full'|n_random_features"):
            detector.fit(X)


def counted(calls: list[str], name: str, function: Any, *args: Any, **how: Any) -> Any:
    calls.append(name)
    return function(*args, **how)


@pytest.mark.parametrize("n", [30, 90])
def test_the_work_is_that_of_one_fit(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    calls: list[str] = []
    for name in ("update_scatter", "finalize_scatter"):
        monkeypatch.setattr(linalg, name, partial(counted, calls, name, getattr(linalg, name)))
    X, new = features(n), features(5, seed=1)
    PatchGaussianDetector(6, n_gaussians=9).fit(X).score_samples(new)
    of_one = sorted(calls)
    calls.clear()
    detectors = [PatchGaussianDetector(k, n_gaussians=9) for k in range(1, 7)]
    fit_together(detectors, X)
    for detector in detectors:  # the one with the fewest components is read first
        detector.score_samples(new)
    assert sorted(calls) == of_one
    calls.clear()
    for k in (3, 9, 1, 9, 8):  # on a fitted detector
        detectors[0].set_params(n_components=k).score_samples(new)
    assert calls == ["finalize_scatter"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_leading_components_are_those_that_are_decomposed_alone(dtype: torch.dtype, device: torch.device) -> None:
    samples = torch.randn(40, 5, M, dtype=dtype, generator=torch.Generator().manual_seed(0)).to(device)
    state = linalg.update_scatter(linalg.empty_scatter(5, M, dtype=dtype, device=device), samples)
    whole = linalg.finalize_scatter(state)
    for k in range(1, M + 1):
        cut, alone = linalg.leading_components(whole, k), linalg.finalize_scatter(state, n_components=k)
        for name in ("rows", "variance", "mean", "noise_variance", "feature_variance", "components", "feature_noise"):
            assert torch.equal(getattr(cut, name), getattr(alone, name)), name


@pytest.mark.parametrize("solver", ["auto", "covariance"])
def test_integers_of_numpy_are_numbers_of_components(solver: str) -> None:
    X = features(40).reshape(40, 36, M)
    ours, numpys = (BatchedIncrementalPCA(k, solver=solver).fit(X) for k in (3, np.int64(3)))
    np.testing.assert_array_equal(ours.components_, numpys.components_)
    assert numpys.n_components_ == 3
