"""Thresholds and p-values: what they promise on normal images that were not learnt from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ipca_sklearn import PatchGaussianDetector
from ipca_sklearn.detection._calibration import (
    MAX_IMAGES,
    Calibration,
    ReferenceScores,
    n_calibration_images,
    upper_quantiles,
)

SCALES = np.array([4, 2, 1, 1, 1, 1])


def normal(n, seed, shape=(3, 4)):
    return np.random.default_rng(seed).normal(size=(n, *shape, len(SCALES))) * SCALES


def shares(what, n, repeats, **parameters):
    """Return the mean over fits of `what(detector, new normal images)`."""
    found = []
    for seed in range(repeats):
        X = normal(n + 300, seed)
        found.append(what(PatchGaussianDetector(2, **parameters).fit(X[:n]), X[n:]))
    return np.mean(found)


@pytest.mark.parametrize("calibration", ["prequential", 0.25])
@pytest.mark.parametrize("false_positive_rate", [0.05, 0.1])
def test_false_positive_rate_is_the_share_of_new_normal_images_called_anomalous(calibration, false_positive_rate):
    share = shares(
        lambda detector, X: np.mean(detector.predict(X) == -1),
        240,
        20,
        calibration=calibration,
        false_positive_rate=false_positive_rate,
    )
    assert false_positive_rate / 1.5 < share < false_positive_rate * 1.5


@pytest.mark.parametrize("calibration", ["prequential", 0.25])
@pytest.mark.parametrize("pixel_false_positive_rate", [0.01, 0.1])
def test_pixel_false_positive_rate_is_the_share_of_patches_of_new_normal_images_that_are_marked(
    calibration, pixel_false_positive_rate
):
    share = shares(
        lambda detector, X: np.mean(detector.predict_masks(X)),
        240,
        10,
        calibration=calibration,
        pixel_false_positive_rate=pixel_false_positive_rate,
    )
    assert pixel_false_positive_rate / 1.5 < share < pixel_false_positive_rate * 1.5


@pytest.mark.parametrize("image_score", ["max", "mean", 0.25])
def test_by_default_a_share_of_normal_images_has_any_marked_patch(image_score):
    share = shares(
        lambda detector, X: np.mean(detector.predict_masks(X).any((1, 2))),
        240,
        20,
        false_positive_rate=0.1,
        image_score=image_score,
    )
    assert 0.1 / 1.5 < share < 0.1 * 1.5


def test_an_image_is_anomalous_exactly_if_a_patch_is_where_the_score_is_the_largest_value():
    detector = PatchGaussianDetector(2, false_positive_rate=0.2).fit(normal(100, 0))
    X = normal(300, 1)
    np.testing.assert_array_equal(detector.predict_masks(X).any((1, 2)), detector.predict(X) == -1)


@pytest.mark.parametrize("n", [8, 20, 50])
def test_p_values_after_held_out_calibration_are_valid_for_any_number_of_images(n):
    p_values = []
    for seed in range(400):
        X = normal(n + 1, seed, shape=(2,))
        p_values.extend(PatchGaussianDetector(2, calibration=0.5).fit(X[:n]).p_values(X[n:]))
    for level in (0.1, 0.2, 0.5):  # three standard errors of 400 trials
        assert np.mean(np.array(p_values) <= level) <= level + 3 * np.sqrt(level * (1 - level) / 400)
    assert np.mean(np.array(p_values) <= 0.5) > 0.3


def test_p_values_follow_their_definition():
    detector = PatchGaussianDetector(2).fit(normal(60, 0))
    X = normal(10, 1)
    scores, kept = detector.score_samples(X), detector.calibration_scores_
    expected = [(1 + np.sum(kept <= score)) / (1 + len(kept)) for score in scores]
    np.testing.assert_array_equal(detector.p_values(X), expected)
    np.testing.assert_array_equal(detector.p_values(torch.from_numpy(X)), expected)


@pytest.mark.parametrize("image_score", ["max", "mean", 0.2])
def test_scores_follow_from_maps(image_score):
    detector = PatchGaussianDetector(2, image_score=image_score).fit(normal(60, 0))
    for X in (normal(10, 1), torch.from_numpy(normal(10, 1))):
        scores = detector.score_maps(detector.transform(X))
        assert type(scores) is type(X)
        np.testing.assert_array_equal(scores, detector.score_samples(X))
        np.testing.assert_array_equal(detector.p_values(scores=scores), detector.p_values(X))
    with pytest.raises(ValueError, match=r"maps of shape \(10, 4, 3\); expected \(n, 3, 4\)"):
        detector.score_maps(detector.transform(normal(10, 1)).transpose(0, 2, 1))
    with pytest.raises(ValueError, match="either X or scores"):
        detector.p_values()


def test_held_out_images_are_not_learnt_from():
    X = normal(100, 0)
    held_out = PatchGaussianDetector(2, calibration=0.2).fit(X)
    learnt = PatchGaussianDetector(2).fit(X[:80])
    assert held_out.n_samples_seen_ == 80
    np.testing.assert_array_equal(held_out.pca_.components_, learnt.pca_.components_)
    np.testing.assert_array_equal(held_out.calibration_scores_, learnt.score_samples(X[80:]))


def test_held_out_scores_add_up_over_calls_once_the_model_is_not_much_poorer():
    X = normal(100, 0)
    detector = PatchGaussianDetector(2, calibration=0.5).partial_fit(X[:60])
    assert detector.n_samples_seen_ == len(detector.calibration_scores_) == 30
    detector.partial_fit(X[60:])
    assert detector.n_samples_seen_ == len(detector.calibration_scores_) == 50
    detector.partial_fit(normal(40, 1))  # the model of the first call had seen less than half of what it has now
    assert detector.n_samples_seen_ == 70 and len(detector.calibration_scores_) == 40


def test_one_image_cannot_be_held_out():
    with pytest.warns(UserWarning, match="one image is too few for a threshold"):
        detector = PatchGaussianDetector(2, calibration=0.5).fit(normal(1, 0))
    assert detector.n_samples_seen_ == 1
    assert detector.map_threshold_ == np.inf and not detector.predict_masks(normal(5, 1)).any()
    np.testing.assert_array_equal(detector.p_values(normal(5, 1)), 1)


def test_merged_detectors_pool_what_both_have_calibrated_with():
    first, second = (PatchGaussianDetector(2, calibration=0.5).fit(normal(60, seed)) for seed in (0, 1))
    both = np.concatenate([second.calibration_scores_, first.calibration_scores_])
    first.merge(second)
    np.testing.assert_array_equal(first.calibration_scores_, both)


def test_masks_are_of_the_kind_of_X():
    detector = PatchGaussianDetector(2).fit(normal(60, 0))
    masks = detector.predict_masks(torch.from_numpy(normal(7, 1)))
    assert masks.dtype == torch.bool and masks.shape == (7, 3, 4)
    assert detector.predict_masks(normal(7, 1)).dtype == np.bool_


@given(n=st.integers(1, 40), side=st.integers(1, 40), share=st.sampled_from([0.01, 0.05, 0.2]), seed=st.integers(0, 9))
def test_tails_tell_the_upper_quantiles_of_all_values(n, side, share, seed):
    maps = np.random.default_rng(seed).gamma(2, size=(n, side, side))
    kept = upper_quantiles(torch.from_numpy(maps)).numpy()
    np.testing.assert_array_equal(kept[:, 0], maps.max((1, 2)))
    assert kept.shape[1] <= 48
    calibration = Calibration.empty(side**2).extended([np.concatenate([np.ones((n, 1)), -kept[:, :1], kept], axis=1)])
    limit = calibration.corrected_to(1).map_threshold(0.05, share)
    assert np.mean(maps > limit) == pytest.approx(share, abs=0.25 * share + 1 / maps.size + 1 / side**2)


@pytest.mark.parametrize(
    ("n_samples", "weight", "expected"), [(1, 1, 2), (100, 100, 50), (100, 20, 10), (10**6, 10**6, MAX_IMAGES)]
)
def test_the_later_half_of_what_is_remembered_calibrates(n_samples, weight, expected):
    assert n_calibration_images(n_samples, weight) == expected


def test_a_small_quantile_of_few_scores_is_their_smallest():
    reference = ReferenceScores(np.arange(10.0), np.zeros(10), np.zeros((10, 1)), np.ones(1))
    assert reference.offset(0.01) == 0.0
    assert reference.offset(0.5) == 4.5


@given(c=st.floats(0, 50), seed=st.integers(0, 9))
def test_scores_of_models_that_had_seen_less_are_brought_to_the_model_of_now(c, seed):
    rng = np.random.default_rng(seed)
    learnt = np.repeat(np.arange(32.0, 512, 16), 16)
    now = rng.gamma(50, size=(len(learnt), 1))
    then = now * np.exp(c * (1 / learnt - 1 / 512))[:, None]
    reference = Calibration(np.concatenate([learnt[:, None], -then, then], axis=1), 1).corrected_to(512)
    np.testing.assert_allclose(np.median(-reference.scores), np.median(now), rtol=0.05)
    np.testing.assert_array_equal(reference.quantiles[:, 0], -reference.scores)


def test_scores_by_models_of_less_than_half_of_the_images_are_left_out():
    learnt = np.repeat([16.0, 32, 48], 16)
    calibration = Calibration(np.stack([learnt, -learnt, learnt], axis=1), 1)
    assert len(calibration.corrected_to(64).scores) == 32
    assert len(calibration.corrected_to(1000).scores) == 48  # there are no better ones


def test_scores_that_grow_while_learning_are_left_alone():
    learnt = np.repeat([16.0, 32, 48], 16)
    scores = -learnt
    reference = Calibration(np.stack([learnt, scores, -scores], axis=1), 1).corrected_to(32)
    np.testing.assert_array_equal(reference.scores, scores)
