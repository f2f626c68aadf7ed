"""Cells that have few samples borrow the mean covariance of all cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ipca_sklearn import PatchGaussianDetector, linalg
from ipca_sklearn.decomposition._fitted import independent_samples


def scatter(n_samples: int, dtype: torch.dtype = torch.float64) -> tuple[linalg.ScatterState, torch.Tensor]:
    samples = torch.randn(n_samples, 5, 8, dtype=dtype) * torch.linspace(1, 3, 8)
    return linalg.update_scatter(linalg.empty_scatter(5, 8, dtype=dtype), samples), samples


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_pooled_components_are_those_of_the_mixed_covariance(share):
    state, samples = scatter(40)
    basis = linalg.finalize_scatter(state, n_components=3, pooled_share=share)
    own = np.stack([np.cov(cell.T.numpy()) for cell in samples.unbind(1)])
    mixed = (1 - share) * own + share * own.mean(0)
    values, vectors = np.linalg.eigh(mixed)
    np.testing.assert_allclose(basis.variance, values[:, ::-1][:, :3], rtol=1e-9)
    leading = vectors[:, :, ::-1][:, :, :3].transpose(0, 2, 1)
    np.testing.assert_allclose(np.abs((basis.components.numpy() * leading).sum(-1)), 1, rtol=1e-9)
    np.testing.assert_allclose(basis.feature_variance, np.diagonal(mixed, axis1=1, axis2=2), rtol=1e-9)
    left = (np.trace(mixed, axis1=1, axis2=2) - values[:, ::-1][:, :3].sum(1)) / 5
    np.testing.assert_allclose(basis.noise_variance, left, rtol=1e-9)


def test_pooling_gives_directions_that_no_cell_has_samples_for():
    state, _ = scatter(3)
    assert (linalg.finalize_scatter(state).variance > 0).sum(1).tolist() == [2] * 5
    assert (linalg.finalize_scatter(state, pooled_share=0.5).variance > 0).all()


def images(n_images: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(24, 24))
    return (rng.normal(size=(n_images, 16, 16, 24)) @ mixing).astype(np.float32)


def detector(**parameters) -> PatchGaussianDetector:
    return PatchGaussianDetector(**{"n_components": 8, "n_gaussians": 16, "calibration": 0.25, **parameters})


def test_the_share_that_is_borrowed_falls_to_nothing_with_the_number_of_images():
    per_image = independent_samples(16)
    shares = []
    for n_learnt in (2, 12, 60):
        fitted = detector(calibration="prequential").fit(images(n_learnt)).pca_.fitted_
        shares.append(fitted.pooled_share)
        assert fitted.pooled_share == pytest.approx(max(0, 1 - n_learnt * per_image / 48))
    assert shares[0] > shares[1] > shares[2] == 0


def test_components_that_users_read_are_the_cells_own():
    fitted = detector().fit(images(8)).pca_
    state = fitted.fitted_.state
    exact = linalg.finalize_scatter(state, n_components=8).components.numpy()
    np.testing.assert_array_equal(fitted.components_, exact)
    assert not torch.equal(fitted.fitted_.scoring_basis().variance, torch.from_numpy(fitted.explained_variance_))


@pytest.mark.parametrize("parameters", [{"n_gaussians": None}, {"n_gaussians": 1}, {"covariance": "full"}], ids=str)
def test_gaussians_that_have_no_like_borrow_nothing(parameters):
    fitted = detector(**{"distance": "mahalanobis", **parameters}).fit(images(8)).pca_.fitted_
    assert fitted.fewest_samples == 0


def test_few_images_are_told_apart_better_with_what_cells_share(monkeypatch):
    """All cells have one covariance, of which two images say little: held-out normal patches lie nearer."""
    learnt, new = np.split(images(40), [2])
    with pytest.warns(UserWarning, match="images"):
        pooled = detector().fit(learnt)
    spread = pooled.transform(new).std() / pooled.transform(new).mean()
    monkeypatch.setattr("ipca_sklearn.decomposition._fitted_scatter._FEWEST_SAMPLES", 1.0)
    with pytest.warns(UserWarning, match="images"):
        own = detector().fit(learnt)
    assert spread < own.transform(new).std() / own.transform(new).mean()
