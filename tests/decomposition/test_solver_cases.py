"""One abstract case that every solver and eigensolver must pass with every dtype, through the estimators.

A new solver adds a subclass with its name and its tolerances.
"""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ipca_sklearn import BatchedIncrementalPCA, PatchGaussianDetector
from ipca_sklearn.linalg import CENTERINGS, DISTANCES, EIGENSOLVERS, SVD_DRIVERS, _finalize, _solvers
from ipca_sklearn.linalg._execution import numba_works

DTYPES = ["float32", "float64"]


def samples_of_rank(rank, n, n_patches, n_features, seed, mean=2.0):
    """(n, P, m) float64 with singular values within a factor of 3, so that every solver resolves them all."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(n_patches, n_features, n_features)))[0][..., :rank]
    factors = rng.normal(size=(n, n_patches, rank)) * np.linspace(3, 1, rank)
    return np.einsum("npr,pmr->npm", factors, basis) + mean * rng.normal(size=(n_patches, n_features))


def exact_pca(X, k):
    """Mean, leading covariance U^T diag(variance) U, variances and noise, by a float64 SVD of everything."""
    mean = X.mean(0)
    centred = (X - mean).transpose(1, 0, 2)
    _, values, right = np.linalg.svd(centred, full_matrices=True)
    variance = np.zeros((X.shape[1], X.shape[2]))
    variance[:, : values.shape[1]] = values**2 / max(len(X) - 1, 1)
    right = right[:, :k]
    covariance = np.einsum("pkm,pk,pkn->pmn", right, variance[:, :k], right)
    noise = variance[:, k:].sum(1) / max(X.shape[2] - k, 1)
    return mean, covariance, variance[:, :k], noise


class SolverCase:
    """The tests of every solver; `tolerance` is relative to the largest variance."""

    solver: str
    svd_driver: str | None = None
    eigensolver: str | None = None
    device: str | None = None
    tolerance: dict[str, float]

    @contextmanager
    def in_use(self):
        """Make `solver="auto"` take the eigensolver of this case."""
        if self.eigensolver is None:
            yield
            return
        chosen = EIGENSOLVERS[self.eigensolver]
        with (
            mock.patch.object(_solvers, "choose_eigensolver", lambda *args: chosen),
            mock.patch.object(_finalize, "choose_eigensolver", lambda *args: chosen),
        ):
            yield

    def options(self, dtype, **others):
        return {
            "solver": self.solver,
            "svd_driver": self.svd_driver,
            "device": self.device,
            "dtype": dtype,
            "step_size": None,
            **others,
        }

    def learn(self, X, cuts, dtype, k, **others):
        pca = BatchedIncrementalPCA(k, **self.options(dtype, **others))
        for part in np.split(X, sorted({cut for cut in cuts if 0 < cut < len(X)})):
            pca.partial_fit(part)
        return pca

    def assert_exact(self, pca, X, dtype):
        k = pca.n_components_
        mean, covariance, variance, noise = exact_pca(X, k)
        allowed = self.tolerance[dtype] * max(variance.max(), 1e-12)
        components = pca.components_.astype(np.float64)
        found = np.einsum("pkm,pk,pkn->pmn", components, pca.explained_variance_, components)
        np.testing.assert_allclose(pca.mean_, mean, rtol=0, atol=self.tolerance[dtype] * (1 + np.abs(mean).max()))
        np.testing.assert_allclose(found, covariance, rtol=0, atol=allowed)
        np.testing.assert_allclose(pca.explained_variance_, variance, rtol=0, atol=allowed)
        np.testing.assert_allclose(pca.noise_variance_, noise, rtol=0, atol=allowed)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("centering", CENTERINGS)
    @settings(deadline=None, max_examples=8)
    @given(
        rank=st.integers(1, 5),
        n=st.integers(1, 40),
        cuts=st.lists(st.integers(1, 39), max_size=5),
        seed=st.integers(0, 2**16),
    )
    def test_any_split_is_exact_on_data_of_rank_k(self, dtype, centering, rank, n, cuts, seed):
        X = samples_of_rank(rank, n, 3, 9, seed)
        # Uncentred rows need one direction more, for the mean.
        k = rank if centering == "incremental" else rank + 1
        with self.in_use():
            pca = self.learn(X, cuts, dtype, k, centering=centering)
            self.assert_exact(pca, X, dtype)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("centering", CENTERINGS)
    @settings(deadline=None, max_examples=5)
    @given(n=st.integers(2, 40), cuts=st.lists(st.integers(1, 39), max_size=4), seed=st.integers(0, 2**16))
    def test_all_directions_are_exact_on_any_data(self, dtype, centering, n, cuts, seed):
        X = samples_of_rank(6, n, 2, 6, seed)
        with self.in_use():
            self.assert_exact(self.learn(X, cuts, dtype, 6, centering=centering), X, dtype)

    @pytest.mark.parametrize("dtype", DTYPES)
    @settings(deadline=None, max_examples=5)
    @given(cut=st.integers(1, 29), seed=st.integers(0, 2**16))
    def test_a_merge_equals_seeing_all(self, dtype, cut, seed):
        X = samples_of_rank(3, 30, 3, 9, seed)
        with self.in_use():
            first, second = (self.learn(part, [], dtype, 3) for part in np.split(X, [cut]))
            self.assert_exact(first.merge(second), X, dtype)

    @pytest.mark.parametrize("dtype", DTYPES)
    @settings(deadline=None, max_examples=5)
    @given(step=st.integers(1, 12), seed=st.integers(0, 2**16))
    def test_fit_is_a_loop_of_partial_fit_bit_for_bit(self, dtype, step, seed):
        X = samples_of_rank(7, 25, 3, 9, seed)
        with self.in_use():
            whole = BatchedIncrementalPCA(4, **self.options(dtype, step_size=step)).fit(X)
            parts = self.learn(X, range(step, 25, step), dtype, 4)
            for name in ("components_", "explained_variance_", "mean_", "noise_variance_"):
                np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("distance", DISTANCES)
    @settings(deadline=None, max_examples=5)
    @given(cuts=st.lists(st.integers(1, 39), max_size=4), seed=st.integers(0, 2**16))
    def test_maps_are_those_of_the_exact_gaussian(self, dtype, distance, cuts, seed):
        X = samples_of_rank(6, 40, 3, 6, seed, mean=0.0)
        new = samples_of_rank(6, 5, 3, 6, seed, mean=0.0) + 0.5
        # A first step that keeps all directions, cut to 3 when it is read.
        k = 3
        with self.in_use():
            detector = PatchGaussianDetector(k, distance=distance, **self.options(dtype, n_oversamples=3))
            for part in np.split(X, sorted(set(cuts) - {1})):
                detector.partial_fit(part)
            maps = detector.transform(new)
        mean, covariance, _, noise = exact_pca(X, k)
        deviation = new - mean
        whole = np.einsum("npm,pmk,npk->np", deviation, np.linalg.pinv(covariance, rcond=1e-8), deviation)
        inside = np.einsum("pmn,pno->pmo", covariance, np.linalg.pinv(covariance, rcond=1e-8))
        residual = np.square(deviation - np.einsum("pmo,npo->npm", inside, deviation)).sum(-1)
        outside = deviation - np.einsum("pmo,npo->npm", inside, deviation)
        unique = (np.square(X - X.mean(0)).sum(0) / 39 - np.diagonal(covariance, axis1=1, axis2=2)) * 6 / 3
        unique = (unique + unique.mean(0)) / 2
        wanted = {"mahalanobis": whole, "residual": residual, "ppca": whole + residual / noise}
        wanted["factor_analysis"] = whole + (np.square(outside) / unique).sum(-1)
        wanted = wanted[distance]
        # The gap between the third and the fourth variance decides how well their directions are determined.
        _, _, spectrum, _ = exact_pca(X, 6)
        gap = (spectrum[:, 0] / (spectrum[:, 2] - spectrum[:, 3])).max()
        tolerance = 20 * gap * self.tolerance[dtype]
        if tolerance < 0.5:
            np.testing.assert_allclose(np.square(maps), wanted, rtol=tolerance, atol=tolerance * wanted.max())

    @pytest.mark.parametrize("centering", CENTERINGS)
    def test_constant_and_repeated_samples_leave_zero_rows_not_noise(self, centering):
        X = np.repeat(samples_of_rank(2, 2, 3, 5, 0), 8, axis=0)
        with self.in_use():
            pca = self.learn(X, [4, 9], "float32", 4, centering=centering)
        assert np.isfinite(pca.components_).all()
        kept = pca.explained_variance_ > 1e-4
        assert (kept.sum(1) == 1).all()
        np.testing.assert_allclose(np.linalg.norm(pca.components_, axis=-1)[kept], 1, atol=1e-5)


# Gram matrices square the condition number: float32 keeps about half of its digits.
GRAM = {"float32": 2e-3, "float64": 1e-10}
ROWS = {"float32": 1e-4, "float64": 1e-11}


class TestAuto(SolverCase):
    solver = "auto"
    tolerance = GRAM


class TestGramEigh(SolverCase):
    solver = "gram_eigh"
    tolerance = GRAM


class TestGramSvd(SolverCase):
    solver = "gram_svd"
    tolerance = GRAM


class TestSvd(SolverCase):
    solver = "svd"
    tolerance = ROWS


@pytest.mark.skipif(not numba_works(), reason="numba is not installed")
class TestNumba(SolverCase):
    solver = "auto"
    eigensolver = "numba"
    tolerance = GRAM


class TestHost(SolverCase):
    solver = "auto"
    eigensolver = "host"
    tolerance = GRAM


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
class TestCuda(SolverCase):
    solver = "auto"
    device = "cuda"
    tolerance = GRAM


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
class TestTriton(TestCuda):
    eigensolver = "triton"


for _driver in SVD_DRIVERS:
    # gesvda forms a Gram matrix inside.
    for _name in ("svd", "gram_svd"):
        _tolerance = ROWS if _name == "svd" and _driver != "gesvda" else GRAM
        _case = f"Test_{_name}_{_driver}"
        globals()[_case] = type(_case, (TestCuda,), {"solver": _name, "svd_driver": _driver, "tolerance": _tolerance})
