"""Covariances without an inverse: an error that names the patch and the ridge, and finite values all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ipca_sklearn import BatchedIncrementalPCA, PatchGaussianDetector

pytestmark = pytest.mark.filterwarnings("ignore::ipca_sklearn.exceptions.FewImagesWarning")

RNG = np.random.default_rng(0)
FULL = RNG.normal(size=(60, 2, 3, 6))
CONSTANT, DOUBLED, PLANAR = FULL.copy(), FULL.copy(), FULL.copy()
CONSTANT[:, 1, 2] = 3.7  # a patch that never varies
DOUBLED[:, 1, 2, 3] = DOUBLED[:, 1, 2, 0]
PLANAR[:, 1, 2] = FULL[:, 1, 2, :2] @ RNG.normal(size=(2, 6))
FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "float64": np.asarray,
    "float32": lambda X: X.astype(np.float32),
    "tensor": torch.from_numpy,
    "float32 tensor": lambda X: torch.from_numpy(X).float(),
}
SINGULAR = {
    "constant": (CONSTANT, 6),
    "constant, with noise elsewhere": (CONSTANT, 2),
    "a feature twice": (DOUBLED, 6),
    "in a plane": (PLANAR, 6),
    "in a plane, without noise": (PLANAR, 2),
    "in a plane, with an empty component": (PLANAR, 4),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(("X", "k"), SINGULAR.values(), ids=SINGULAR)
def test_the_precision_of_a_singular_covariance_is_an_error_that_names_the_patch(X: Any, k: int, form: Any) -> None:
    with pytest.raises(
        np.linalg.LinAlgError, match=r"covariance of patch \(1, 2\) is singular: 60 samples .* 6 features"
    ):
        BatchedIncrementalPCA(k).fit(form(X)).get_precision()
    with pytest.raises(ValueError, match=r"covariance of patch 5 is singular"):
        BatchedIncrementalPCA(k).fit(form(X.reshape(60, 6, 6))).get_precision()
    with pytest.raises(ValueError, match=r"the covariance is singular"):
        BatchedIncrementalPCA(k).fit(form(X[:, 1, 2])).get_precision()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("n", [1, 2, 6])
def test_fewer_samples_than_features_have_no_precision_without_noise(n: int, form: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"{n} samples do not vary in all directions of 6 features; .*n_components be less than 6"
    ):
        BatchedIncrementalPCA(6).fit(form(FULL[:n])).get_precision()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("k", [2, 5, 6])
def test_the_precision_of_a_regular_covariance_is_its_inverse(k: int, form: Any, scale: float) -> None:
    pca = BatchedIncrementalPCA(k).fit(form(FULL * scale * [1, 2, 5, 10, 20, 50]))
    product = np.asarray(pca.get_precision()) @ np.asarray(pca.get_covariance())
    atol = 1e-8 if pca.fitted_.dtype == torch.float64 else 0.02
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(6), product.shape), atol=atol)


@pytest.mark.parametrize("X", [CONSTANT, DOUBLED, PLANAR, FULL[:3]], ids=["constant", "twice", "plane", "three"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_without_variance_coordinates_scores_and_likelihoods_are_finite(X: np.ndarray, form: Any) -> None:
    X = form(X)
    for k in (2, 6):
        whitened = np.asarray(BatchedIncrementalPCA(k, whiten=True).fit(X).transform(X))
        assert np.isfinite(whitened).all() and np.abs(whitened).max() < 8  # standard deviations of 60 samples
        for distance in ("mahalanobis", "residual", "ppca", "factor_analysis"):
            detector = PatchGaussianDetector(k, distance=distance).fit(X)
            assert np.isfinite(np.asarray(detector.score_samples(X))).all()
            assert np.isfinite(detector.score(X))


@pytest.mark.parametrize("ridge", [0, 1e-30])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("X", "why"),
    [
        (RNG.normal(size=(30, 4, 50)), "samples do not vary in all directions of 50 features"),
        (RNG.normal(size=(90, 4, 100)), "n_random_features"),
        (np.ones((70, 4, 5)), "constant"),
        (DOUBLED.reshape(60, 6, 6), "depend on others"),
        (DOUBLED[:, 1, 2], "the covariance with ridge"),
    ],
    ids=["few", "fewer than features", "all alike", "a feature twice", "one patch"],
)
def test_a_full_covariance_without_a_ridge_names_the_covariance_and_the_ridge(
    X: np.ndarray, why: str, form: Any, ridge: float
) -> None:
    if ridge and why == "constant":
        pytest.skip("a ridge alone is a regular covariance")
    detector = PatchGaussianDetector(covariance="full", distance="mahalanobis", ridge=ridge)
    with pytest.raises(ValueError, match=rf"covariance.* with ridge={ridge:g} is singular.*set ridge > ") as caught:
        detector.fit(form(X))
    assert why in str(caught.value)
    assert "squares" not in str(caught.value)  # that is an overflow
    assert not hasattr(detector, "pca_")
    detector.set_params(ridge=0.01).fit(form(X))
    assert np.isfinite(np.asarray(detector.score_samples(form(X)))).all()


def test_no_ridge_is_needed_where_all_directions_vary() -> None:
    detector = PatchGaussianDetector(covariance="full", distance="mahalanobis", ridge=0).fit(
        FULL * [1e-9, 1, 1, 1, 1, 1e6]
    )
    deviations = FULL[:, 1, 2] - FULL[:, 1, 2].mean(0)
    expected = np.sqrt(np.einsum("nj,jk,nk->n", deviations, np.linalg.inv(np.cov(FULL[:, 1, 2].T)), deviations))
    np.testing.assert_allclose(detector.transform(FULL * [1e-9, 1, 1, 1, 1, 1e6])[:, 1, 2], expected)
