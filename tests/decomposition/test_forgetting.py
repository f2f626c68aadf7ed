"""forgetting_factor: exponential ageing, against the weighted mean and covariance of all samples."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipca_sklearn import BatchedIncrementalPCA, PatchGaussianDetector
from ipca_sklearn.decomposition._full_covariance import FullCovariance
from ipca_sklearn.linalg import CENTERINGS

N_FEATURES = 5


def samples(n, seed, n_patches=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, n_patches, N_FEATURES)) * np.linspace(3, 1, N_FEATURES) + 4 * rng.normal(size=N_FEATURES)


def closed_form(X, step_size, factor):
    """Weighted mean and covariance: a sample weighs factor ** (number of samples in later steps)."""
    last_of_step = np.minimum((np.arange(len(X)) // step_size + 1) * step_size, len(X))
    weights = factor ** (len(X) - last_of_step).astype(float)
    mean = np.einsum("n,npm->pm", weights, X) / weights.sum()
    deviations = X - mean
    scatter = np.einsum("n,npa,npb->pab", weights, deviations, deviations)
    return weights.sum(), mean, scatter


@given(
    n=st.integers(2, 60),
    step_size=st.integers(1, 20),
    factor=st.floats(0.8, 1),
    centering=st.sampled_from(CENTERINGS),
    seed=st.integers(0, 99),
)
def test_forgetting_equals_the_closed_form(n, step_size, factor, centering, seed):
    X = samples(n, seed)
    pca = BatchedIncrementalPCA(
        N_FEATURES, step_size=step_size, centering=centering, n_oversamples=0, forgetting_factor=factor
    ).fit(X)
    weight, mean, scatter = closed_form(X, step_size, factor)
    assert pca.n_samples_seen_ == n
    np.testing.assert_allclose(pca.mean_, mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(pca.var_, np.einsum("pmm->pm", scatter) / weight, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(pca.get_covariance(), scatter / max(weight - 1, 1), rtol=1e-6, atol=1e-6)


@given(n=st.integers(2, 60), step_size=st.integers(1, 20), factor=st.floats(0.5, 1), seed=st.integers(0, 99))
def test_the_full_covariance_forgets_in_the_same_way(n, step_size, factor, seed):
    X = samples(n, seed)
    full = FullCovariance(step_size=step_size, forgetting_factor=factor).fit(X)
    weight, mean, scatter = closed_form(X, step_size, factor)
    np.testing.assert_allclose(full.mean_, mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(full.covariance_, scatter / max(weight - 1, 1), rtol=1e-8, atol=1e-8)


def test_a_truncated_pca_follows_a_direction_that_drifts():
    rng = np.random.default_rng(0)
    old, new = np.eye(N_FEATURES)[0], np.eye(N_FEATURES)[3]
    X = np.concatenate([rng.normal(size=(400, 1)) * 5 * direction for direction in (old, new)])
    X += 0.1 * rng.normal(size=X.shape)
    keeping, forgetting = (BatchedIncrementalPCA(1, forgetting_factor=factor).fit(X) for factor in (1.0, 0.98))
    assert abs(forgetting.components_[0] @ new) > 0.999
    assert abs(keeping.components_[0] @ new) < 0.99


def test_a_factor_of_one_forgets_nothing_bit_for_bit():
    X = samples(50, 0)
    plain, ageless = BatchedIncrementalPCA(2).fit(X), BatchedIncrementalPCA(2, forgetting_factor=1.0).fit(X)
    np.testing.assert_array_equal(plain.components_, ageless.components_)
    assert plain.fitted_.state.weight == 50


def test_a_forgetting_model_goes_on_after_pickling():
    X = samples(60, 1)
    whole = BatchedIncrementalPCA(2, forgetting_factor=0.95).fit(X)
    half = BatchedIncrementalPCA(2, forgetting_factor=0.95).fit(X[:32])
    resumed = pickle.loads(pickle.dumps(half)).partial_fit(X[32:])
    for name in ("mean_", "components_", "explained_variance_"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name), err_msg=name)


def test_merging_adds_the_weights():
    X = samples(60, 2)
    parts = [BatchedIncrementalPCA(N_FEATURES, forgetting_factor=0.9).fit(part) for part in (X[:20], X[20:])]
    pieces = [closed_form(part, 16, 0.9) for part in (X[:20], X[20:])]
    total = sum(weight for weight, _, _ in pieces)
    merged = parts[0].merge(parts[1])
    np.testing.assert_allclose(merged.mean_, sum(weight * mean for weight, mean, _ in pieces) / total)
    assert merged.n_samples_seen_ == 60


@pytest.mark.parametrize("covariance", ["low_rank", "full"])
def test_a_detector_that_forgets_accepts_what_a_line_has_drifted_to(covariance):
    rng = np.random.default_rng(0)
    drift = np.linspace(0, 30, 600)[:, None, None]
    X = rng.normal(size=(600, 4, N_FEATURES)) + drift
    score = "mahalanobis" if covariance == "full" else "factor_analysis"
    now = rng.normal(size=(200, 4, N_FEATURES)) + 30
    share = {}
    for factor in (1.0, 0.9):
        detector = PatchGaussianDetector(
            2, step_size=8, forgetting_factor=factor, covariance=covariance, distance=score, false_positive_rate=0.05
        ).fit(X)
        share[factor] = np.mean(detector.predict(now) == -1)
        if factor < 1:
            assert len(detector.calibration_scores_) < 50  # of images as the last ones are
            assert np.linalg.norm(detector.pca_.mean_ - 30) < 5
    assert share[0.9] < 0.3


@pytest.mark.parametrize("factor", [0, -0.5, 1.5, "half"])
def test_an_impossible_factor_is_refused(factor):
    with pytest.raises(ValueError, match="forgetting_factor"):
        BatchedIncrementalPCA(2, forgetting_factor=factor).fit(samples(10, 0))
