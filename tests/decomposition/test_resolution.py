"""What float32 can tell apart: small directions beside a large one, and a small shift of a large mean."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.decomposition import PCA

from ipca_sklearn import BatchedIncrementalPCA
from ipca_sklearn.decomposition import FullCovariance
from ipca_sklearn.linalg import CENTERINGS, SOLVERS


def samples_along(std, n, n_features, rng):
    """Return samples with given standard deviations along random orthogonal directions."""
    axes = np.linalg.qr(rng.normal(size=(n_features, len(std))))[0].T
    return rng.normal(size=(n, len(std))) * std @ axes


# The user guide's table. A Gram matrix holds squares, so it tells apart what is above sqrt(eps).
def resolution(solver, dtype, n_features):
    eps = np.finfo(dtype).eps
    return np.sqrt(n_features) * eps if solver == "svd" else np.sqrt(eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n_features", [24, 1000])
@pytest.mark.parametrize("step_size", [16, None])
def test_directions_above_the_resolution_are_found(solver, dtype, n_features, step_size, global_random_seed):
    small = 5 * resolution(solver, dtype, n_features)
    X = samples_along([1] + 7 * [small], 160, n_features, np.random.default_rng(global_random_seed)).astype(dtype)
    pca = BatchedIncrementalPCA(8, solver=solver, step_size=step_size).fit(X)
    exact = PCA(8, svd_solver="full").fit(X.astype("float64"))
    assert_allclose(pca.singular_values_, exact.singular_values_, rtol=0.05)
    # The small directions are alike: only the space that they span is told.
    assert_allclose(np.linalg.svd(pca.components_ @ exact.components_.T)[1], 1, atol=0.05)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_large_direction_does_not_hide_the_others(solver):
    X = samples_along([1] + 7 * [1e-3], 400, 1000, np.random.default_rng(0)).astype("float32")
    pca = BatchedIncrementalPCA(8, solver=solver).fit(X)
    exact = PCA(8, svd_solver="full").fit(X.astype("float64"))
    assert_allclose(pca.explained_variance_, exact.explained_variance_, rtol=0.02)


@pytest.mark.parametrize("exponent", [-25, -15, 15])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("centering", CENTERINGS)
def test_tiny_and_huge_units_are_as_good_as_others(exponent, solver, centering):
    X = np.random.default_rng(0).normal(size=(60, 6)) * [6, 5, 4, 3, 2, 1]
    scaled = (X * 10.0**exponent).astype("float32")
    pca, reference = (BatchedIncrementalPCA(3, solver=solver, centering=centering).fit(data) for data in (scaled, X))
    present = reference.explained_variance_ * 10.0 ** (2 * exponent) > np.finfo("float32").tiny
    assert_allclose(pca.components_, reference.components_ * present[:, None], atol=1e-4)
    assert_allclose(
        pca.explained_variance_, reference.explained_variance_ * present * 10.0 ** (2 * exponent), rtol=1e-3
    )


@pytest.mark.parametrize("exponent", [-17, 0, 17])
def test_a_deferred_mean_is_removed_in_any_unit(exponent):
    X = np.random.default_rng(0).normal(100, 1, size=(60, 6)) * [6, 5, 4, 3, 2, 1]
    scaled = (X * 10.0**exponent).astype("float32")
    pca = BatchedIncrementalPCA(3, centering="deferred").fit(scaled)
    reference = BatchedIncrementalPCA(3, centering="deferred").fit(X)
    assert_allclose(pca.explained_variance_, reference.explained_variance_ * 10.0 ** (2 * exponent), rtol=0.05)


def estimators():
    for centering in CENTERINGS:
        yield pytest.param(lambda centering=centering: BatchedIncrementalPCA(2, centering=centering), id=centering)
    yield pytest.param(FullCovariance, id="full")


@pytest.mark.parametrize("make", list(estimators()))
def test_a_mean_follows_its_samples_however_many_they_are(make):
    # In float32 the mean stands still where a step's share of the shift, 16 / n, is below the spacing at 1e5, 0.008.
    n = 16_000
    X = np.random.default_rng(0).normal(1e5, 1, size=(n, 3))
    X[n // 2 :] += 1
    X = X.astype("float32")
    pca = make().fit(X)
    exact = X.astype("float64")
    half_a_unit = np.spacing(np.float32(1e5)) / 2
    assert_allclose(pca.mean_, exact.mean(0), atol=half_a_unit, rtol=0)
    assert_allclose(pca.var_, exact.var(0), rtol=1e-3)
    halves = [make().fit(half) for half in (X[: n // 2], X[n // 2 :])]
    merged = halves[0].merge(halves[1])
    assert_allclose(merged.mean_, exact.mean(0), atol=half_a_unit, rtol=0)
    assert_allclose(merged.var_, exact.var(0), rtol=1e-3)
