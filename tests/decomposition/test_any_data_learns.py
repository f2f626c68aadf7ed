"""Finite data is never refused: constant, sparse, repeated, huge, tiny; in every solver, eigensolver and dtype."""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ipca_sklearn import BatchedIncrementalPCA, PatchGaussianDetector, linalg
from ipca_sklearn.linalg import CENTERINGS, EIGENSOLVERS, _finalize, _solvers
from ipca_sklearn.linalg._execution import numba_works

# (solver, eigensolver)
ROUTINES = [("auto", "torch"), ("auto", "numba"), ("gram_svd", None), ("svd", None)]
DTYPES = ["float32", "float64"]


def names(pair):
    return "-".join(filter(None, pair))


every_routine = pytest.mark.parametrize("routine", ROUTINES, ids=names)


@contextmanager
def solver_of(routine):
    """Yield the solver's name, for which `"auto"` takes one eigensolver whatever the size."""
    solver, eigensolver = routine
    if eigensolver is None:
        yield solver
        return
    if eigensolver == "numba" and not numba_works():
        pytest.skip("numba is not installed")
    chosen = EIGENSOLVERS[eigensolver]
    with (
        mock.patch.object(_solvers, "choose_eigensolver", lambda *args: chosen),
        mock.patch.object(_finalize, "choose_eigensolver", lambda *args: chosen),
    ):
        yield solver


def assert_learnt(pca):
    """Components are finite, orthonormal or zero; variances are finite and not negative."""
    components = pca.components_.astype(np.float64)
    gram = components @ components.swapaxes(1, 2)
    present = np.einsum("pkk->pk", gram) > 0.5
    np.testing.assert_allclose(gram, present[:, :, None] * np.eye(gram.shape[1]), atol=1e-3)
    for variance in (pca.explained_variance_, pca.var_, pca.noise_variance_):
        assert np.isfinite(variance).all()
        assert (variance >= 0).all()
    assert ((pca.explained_variance_ > 0) == present).all()
    assert np.isfinite(pca.mean_).all()


def ones_and_zeros(rng, n, n_patches, n_features, share=0.02):
    return (rng.random((n, n_patches, n_features)) < share).astype(float)


def one_hot(rng, n, n_patches, n_features):
    return np.eye(n_features)[rng.integers(0, n_features, (n, n_patches))]


def constant_but_in_few_images(rng, n, n_patches, n_features):
    X = np.ones((n, n_patches, n_features))
    few = rng.random(n) < 0.05
    X[few] = rng.random((few.sum(), n_patches, n_features))
    return X


def black_background(rng, n, n_patches, n_features):
    X = np.zeros((n, n_patches, n_features))
    X[:, ::4] = np.maximum(rng.normal(size=(n, n_patches, n_features))[:, ::4], 0)
    return X


def one_element(rng, n, n_patches, n_features):
    X = np.zeros((n, n_patches, n_features))
    X[n // 2, n_patches // 2, n_features // 2] = 1
    return X


def graded(rng, n, n_patches, n_features):
    return rng.normal(size=(n, n_patches, n_features)) * 10 ** -rng.uniform(0, 10, (n, 1, 1))


def nothing(rng, n, n_patches, n_features):
    return np.zeros((n, n_patches, n_features))


KINDS = [ones_and_zeros, one_hot, constant_but_in_few_images, black_background, one_element, graded, nothing]


@every_routine
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_data_without_variance_in_most_directions_learns(routine, kind, dtype, global_random_seed):
    X = kind(np.random.default_rng(global_random_seed), 96, 40, 24).astype(dtype)
    with solver_of(routine) as solver:
        for step_size in (4, 16):
            pca = BatchedIncrementalPCA(solver=solver, step_size=step_size).fit(X)
            assert_learnt(pca)
            np.testing.assert_allclose(pca.var_, X.var(0), atol=1e-5 * X.var(0).max())


@every_routine
@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_scores_after_such_data(routine, kind):
    X = kind(np.random.default_rng(0), 64, 12, 16).astype("float32")
    with solver_of(routine) as solver:
        detector = PatchGaussianDetector(8, solver=solver, step_size=8).fit(X)
        assert np.isfinite(detector.score_samples(X)).all()


@every_routine
@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(KINDS),
    # 1e18 is near the largest value whose square float32 holds, and squares of 1e-30 are zero.
    exponent=st.integers(-30, 18),
    offset=st.sampled_from([0.0, 1.0, 1e4]),
    dtype=st.sampled_from(DTYPES),
    centering=st.sampled_from(CENTERINGS),
    n=st.integers(1, 40),
    n_features=st.integers(1, 12),
    step_size=st.sampled_from([1, 3, 16, None]),
    repeats=st.integers(0, 40),
    forgetting_factor=st.sampled_from([1.0, 0.9, 0.5]),
    seed=st.integers(0, 2**16),
)
def test_any_finite_data_learns(
    routine, kind, exponent, offset, dtype, centering, n, n_features, step_size, repeats, forgetting_factor, seed
):
    X = ((kind(np.random.default_rng(seed), n, 5, n_features) + offset) * 10.0**exponent / max(offset, 1)).astype(dtype)
    options = {"centering": centering, "step_size": step_size, "forgetting_factor": forgetting_factor}
    with solver_of(routine) as solver:
        pca = BatchedIncrementalPCA(min(n_features, 4), solver=solver, **options).fit(X)
        assert_learnt(pca)
        for _ in range(repeats):
            pca.partial_fit(X[-1:])
        assert_learnt(pca)
        assert_learnt(pca.merge(pca))


@pytest.mark.parametrize(
    ("routine", "dtype", "step_size"),
    list(zip(ROUTINES, ["float32", "float32", "float64", "float32"], [1, 4, 1, 2], strict=True)),
)
def test_a_frozen_camera_goes_on_for_ever(routine, dtype, step_size):
    n_steps = 80 * settings().max_examples  # 40,000 with IPCA_SKLEARN_HYPOTHESIS=thorough
    samples = torch.rand(48, 2, 6, generator=torch.Generator().manual_seed(0), dtype=getattr(torch, dtype))
    frozen = samples[-1:].expand(step_size, -1, -1)
    with solver_of(routine) as solver:
        # 0.7 ** 2000 is far below what any dtype holds.
        options = {"n_rows": 4, "solver": solver, "forgetting_factor": 0.7}
        state = linalg.update(linalg.empty_state(2, 6, dtype=samples.dtype), samples, **options)
        for _ in range(n_steps):
            state = linalg.update(state, frozen, **options)
        torch.testing.assert_close(state.mean.to(samples), samples[-1])
        # A camera that moves again is learnt as usual.
        for step in samples.split(16):
            state = linalg.update(state, step, **options)
        variance = linalg.finalize(state, n_components=4).variance
        assert torch.isfinite(variance).all()
        assert (variance > 0).all()
