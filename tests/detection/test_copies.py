"""Augmented copies of images: learnt as samples of the same image, never used for thresholds."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from torch import nn

from ipca_sklearn import BatchedIncrementalPCA, PatchFeatureExtractor, PatchGaussianDetector, distributed
from ipca_sklearn.detection._copies import images_per_step
from ipca_sklearn.exceptions import FewImagesWarning
from ipca_sklearn.persistence import fit_resumable

pytestmark = pytest.mark.filterwarnings("ignore::ipca_sklearn.exceptions.FewImagesWarning")


class Copied:
    """Features (n, 1 + a, P, m) of images and their copies, as a source that is read lazily."""

    dtype, device, may_skip = np.float64, torch.device("cpu"), False

    def __init__(self, values):
        self.values = values
        self.shape = (len(values), *values.shape[2:])
        self.n_copies = values.shape[1] - 1

    def __len__(self):
        return len(self.values)

    def __getitem__(self, key):
        return Copied(self.values[key])

    def read(self, size, *, reuse=False):
        for start in range(0, len(self), size):
            yield torch.from_numpy(self.values[start : start + size, 0].copy()), {}

    def read_copies(self, size, *, reuse=False):
        for start in range(0, len(self), size):
            yield torch.from_numpy(self.values[start : start + size].reshape(-1, *self.shape[1:]).copy()), {}


def samples(n=80, n_copies=3, seed=0, shape=(6, 6)):
    return np.random.default_rng(seed).normal(size=(n, 1 + n_copies, *shape, 12)) * np.geomspace(3, 1, 12)


def pipeline(**params):
    extractor = PatchFeatureExtractor(
        nn.Sequential(nn.AvgPool2d(8)), layers=["0"], image_size=32, margin=0, random_state=0, pooling_size=1, **params
    )
    return make_pipeline(extractor, PatchGaussianDetector(1, n_gaussians=4, step_size=4))


def pictures(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("n_gaussians", [4, 1, None])
@pytest.mark.parametrize("covariance", ["low_rank", "full"])
def test_all_samples_of_images_and_copies_are_learnt_and_an_image_counts_once(n_gaussians, covariance):
    values = samples(20)
    params = {"distance": "mahalanobis"} if covariance == "full" else {"n_components": 12}
    detector = PatchGaussianDetector(n_gaussians=n_gaussians, covariance=covariance, **params).fit(Copied(values))
    together = values.reshape(-1, 6, 6, 12)
    every = PatchGaussianDetector(n_gaussians=n_gaussians, covariance=covariance, **params).fit(together)
    np.testing.assert_allclose(detector.pca_.mean_, every.pca_.mean_, atol=1e-10)
    np.testing.assert_allclose(detector.pca_.explained_variance_, every.pca_.explained_variance_, rtol=1e-8)
    assert detector.n_samples_seen_ == 20 and every.n_samples_seen_ == 80


@pytest.mark.parametrize("n", [20, 80])
def test_thresholds_come_from_the_images_alone(n):
    """Copies that lie far out would be most of the scores, and models that knew a copy would know the image."""
    values = samples(n)
    values[:, 1:] = values[:, :1] + np.random.default_rng(1).normal(size=values[:, 1:].shape)
    detector = PatchGaussianDetector(4, n_gaussians=4, false_positive_rate=0.1).fit(Copied(values))
    assert len(detector.calibration_scores_) == (n if n <= 64 else n // 2)
    new = detector.score_samples(samples(200, n_copies=0, seed=2)[:, 0])
    assert np.median(new) == pytest.approx(np.median(detector.calibration_scores_), rel=0.15)
    known = detector.score_samples(values[:, 0])
    assert np.median(known) >= np.median(detector.calibration_scores_)


def test_copies_of_the_image_itself_change_nothing_but_the_weight_of_the_others():
    values = np.repeat(samples(70, n_copies=0), 3, axis=1)
    detector = PatchGaussianDetector(4, n_gaussians=4).fit(Copied(values))
    alone = PatchGaussianDetector(4, n_gaussians=4).fit(values[:, 0])
    np.testing.assert_allclose(detector.transform(values[:, 0]), alone.transform(values[:, 0]), rtol=1e-2)


def test_a_loop_of_partial_fit_is_a_fit_with_copies():
    values = samples(48)
    whole = PatchGaussianDetector(4, n_gaussians=4).fit(Copied(values))
    loop = PatchGaussianDetector(4, n_gaussians=4)
    for start in range(0, 48, 16):
        loop.partial_fit(Copied(values[start : start + 16]))
    np.testing.assert_array_equal(whole.transform(values[:, 0]), loop.transform(values[:, 0]))


def test_other_numbers_of_copies_are_refused_and_nothing_is_changed():
    values = samples(20)
    detector = PatchGaussianDetector(4, n_gaussians=4).fit(Copied(values))
    before = copy.deepcopy(detector)
    with pytest.raises(ValueError, match=r"X have 0 augmented copies each, and those that were learnt have 3: .*n_aug"):
        detector.partial_fit(values[:, 0])
    with pytest.raises(ValueError, match="other numbers of augmented copies"):
        detector.merge(PatchGaussianDetector(4, n_gaussians=4).fit(values[:, 0]))
    np.testing.assert_array_equal(detector.transform(values[:, 0]), before.transform(values[:, 0]))
    detector.merge(before)
    assert detector.n_samples_seen_ == 40
    with pytest.raises(ValueError, match="BatchedIncrementalPCA learns no augmented copies of images: set n_augmented"):
        BatchedIncrementalPCA(2).fit(Copied(values))


@pytest.mark.parametrize("step_size", [1, 7, 12, 16, None])
@pytest.mark.parametrize("n_copies", [0, 1, 4, 100])
def test_steps_with_copies_divide_steps_without(step_size, n_copies):
    n = images_per_step(step_size, n_copies)
    if step_size is None or not n_copies:
        assert n == step_size
    else:
        assert step_size % n == 0 and (n == 1 or n * (1 + n_copies) <= step_size)


@pytest.mark.parametrize("n_images", [12, 70])
def test_a_pipeline_learns_copies_in_the_fit_alone_and_can_go_on_after_an_interruption(tmp_path, n_images):
    X = pictures(n_images)
    pipe = pipeline(augment=("rotation", "flip"), n_augmented=2).fit(X)
    assert pipe[-1].n_samples_seen_ == n_images
    plain = pipeline().fit(X)
    assert np.abs(pipe.transform(X) - plain.transform(X)).max() > 1e-3
    resumed = fit_resumable(clone(pipe), X, tmp_path / "checkpoint", every=16)
    np.testing.assert_array_equal(resumed.transform(X), pipe.transform(X))
    assert resumed[-1].offset_ == pipe[-1].offset_
    unseeded = clone(pipe).set_params(patchfeatureextractor__random_state=None)
    with pytest.raises(ValueError, match="draws random numbers, which differ after a restart"):
        fit_resumable(unseeded, X, tmp_path / "other")


def test_partitions_learn_copies_and_merge():
    parts = [pictures(20, seed) for seed in range(3)]
    pipe = pipeline(augment="rotation", n_augmented=2)
    merged = distributed.fit(pipe, parts, n_jobs=1)
    assert merged[-1].n_samples_seen_ == 60
    expected = [clone(pipe).fit(part)[-1] for part in parts]
    detector = expected[0].merge(expected[1]).merge(expected[2])
    np.testing.assert_allclose(merged[-1].pca_.mean_, detector.pca_.mean_, rtol=1e-5)


def test_labelled_defects_and_held_out_images_bring_no_copies():
    values = samples(40)
    y = np.where(np.arange(40) % 4 == 0, -1, 1)
    values[y == -1] += 50
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = PatchGaussianDetector(2, n_gaussians=4, calibration=0.2).fit(Copied(values), y)
    assert detector.n_samples_seen_ == 24 and len(detector.calibration_scores_) == 6
    assert np.abs(detector.pca_.mean_).max() < 5


def test_copies_make_fewer_warnings_of_few_images_than_images_do():
    values = samples(8, n_copies=7)
    few = PatchGaussianDetector(6, n_gaussians=4)
    with pytest.warns(FewImagesWarning):
        few.fit(values[:, 0])
    with pytest.warns(FewImagesWarning):
        copied = clone(few).fit(Copied(values))
    images = clone(few).fit(values.reshape(-1, 6, 6, 12))
    borrowed = [each.pca_.fitted_.pooled_share for each in (few, copied, images)]
    assert borrowed[0] >= borrowed[1] >= borrowed[2] and borrowed[0] > borrowed[2]


def test_memory_for_few_images_counts_their_copies():
    values = samples(20)
    detector = PatchGaussianDetector(4, n_gaussians=4)
    plain, copied = (detector.memory_needed(X).learning for X in (values[:, 0], Copied(values)))
    assert copied - plain >= 2 * 20 * 3 * 36 * 12 * 8
