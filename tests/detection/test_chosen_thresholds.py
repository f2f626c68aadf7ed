"""Thresholds that a user chooses: by false alarms, by recall, by a score; with intervals, kept while a model learns."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn.exceptions import NotFittedError

from ipca_sklearn import FewImagesWarning, PatchGaussianDetector
from ipca_sklearn.detection._calibration import LearningCurve
from ipca_sklearn.detection._chosen import ChosenThreshold, ErrorRate, ThresholdRule
from ipca_sklearn.persistence import load_skops, save_skops

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(900, 5, 8))
NO_IMAGES = ErrorRate.of(np.empty(0, bool), 0.95)
BAD = RNG.normal(size=(50, 5, 8)) + np.where(np.arange(5)[:, None] == 2, 4.0, 0.0)


@pytest.fixture
def detector():
    return PatchGaussianDetector(2).fit(NORMAL[:200])


def test_false_alarms_are_met_on_new_images(detector):
    detector.set_threshold(NORMAL[200:500], false_positive_rate=0.1)
    assert 0.05 < np.mean(detector.predict(NORMAL[500:]) == -1) < 0.15
    record = detector.chosen_threshold_
    assert (record.false_positives.n_errors, record.false_positives.n_images) == (
        29,
        300,
    )
    assert record.missed == ErrorRate(0, 0, 0, 1)
    masked = detector.predict_masks(NORMAL[500:]).any(axis=1)
    assert 0.05 < masked.mean() < 0.15


def test_recall_is_kept_and_one_more_would_be_lost(detector):
    X, y = np.concatenate([NORMAL[200:400], BAD]), np.repeat([1, -1], [200, 50])
    detector.set_threshold(X, y, recall=0.9)
    assert np.sum(detector.predict(BAD) == -1) == 45
    assert detector.chosen_threshold_.missed.n_errors == 5
    assert detector.chosen_threshold_.false_positives.n_images == 200
    assert np.sum(detector.predict_masks(BAD).any(axis=1)) == 45


def test_a_score_is_taken_as_it_is_with_and_without_images():
    detector = PatchGaussianDetector(2, image_score="max").fit(NORMAL[:200])
    detector.set_threshold(score=-3.5)
    assert (detector.offset_, detector.map_threshold_) == (-3.5, 3.5)
    assert detector.chosen_threshold_.false_positives.n_images == 0
    detector.set_threshold(NORMAL[200:300], score=-3.5)
    assert detector.chosen_threshold_.false_positives.n_images == 100
    mean = PatchGaussianDetector(2, image_score="mean").fit(NORMAL[:200])
    learnt = mean.map_threshold_
    assert mean.set_threshold(score=-3.5).map_threshold_ == learnt


@given(n_errors=st.integers(0, 60), n=st.integers(1, 60), confidence=st.floats(0.5, 0.999))
def test_intervals_are_clopper_and_pearsons(n_errors, n, confidence):
    n_errors = min(n_errors, n)
    rate = ErrorRate.of(np.arange(n) < n_errors, confidence)
    tail = (1 - confidence) / 2
    low = beta.ppf(tail, n_errors, n - n_errors + 1) if n_errors else 0
    high = beta.ppf(1 - tail, n_errors + 1, n - n_errors) if n_errors < n else 1
    np.testing.assert_allclose([rate.low, rate.high], [low, high], atol=1e-9)


@given(
    scores=st.lists(st.floats(-9, 9), min_size=1, max_size=60),
    share=st.floats(0.01, 0.99),
)
def test_offsets_keep_their_promise(scores, share):
    scores = np.array(scores)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewImagesWarning)
        offset = ThresholdRule(share, None, None).offset(scores, scores)
    assert np.mean(scores < offset) <= share
    offset = ThresholdRule(None, share, None).offset(scores, scores)
    assert np.mean(scores < offset) >= share


@pytest.mark.parametrize(("rate", "n", "rank"), [(0.05, 99, 5), (0.05, 98, 4), (0.1, 9, 1), (0.3, 9, 3), (0.29, 9, 2)])
def test_the_threshold_is_just_below_the_score_of_the_expected_share(rate, n, rank):
    """The k-th smallest of n scores has k / (n + 1) of new ones below it."""
    scores = np.random.default_rng(0).permutation(np.arange(1.0, n + 1))
    offset = ThresholdRule(rate, None, None).offset(scores, np.empty(0))
    assert rank - 0.001 < offset < rank


def test_few_normal_images_are_told_how_many_it_takes(detector):
    with pytest.warns(
        FewImagesWarning, match=r"false_positive_rate=0\.001 takes the scores of 999 normal images.*are 100.*0\.99%"
    ):
        detector.set_threshold(NORMAL[200:300], false_positive_rate=0.001)
    assert detector.chosen_threshold_.false_positives.n_errors == 0
    with pytest.warns(FewImagesWarning, match=r"100 normal images are few for false_positive_rate=0\.02: from 150 on"):
        detector.set_threshold(NORMAL[200:300], false_positive_rate=0.02)


def test_a_rate_that_is_set_later_takes_effect_and_warns_of_few_scores(detector):
    detector.set_threshold(score=-3.5)
    with pytest.warns(FewImagesWarning, match=r"false_positive_rate=0\.001 takes the scores of 3000 images.*are 104"):
        detector.set_params(false_positive_rate=0.001)
    assert detector.offset_ == pytest.approx(detector.calibration_scores_.min())
    assert detector.set_params(false_positive_rate="auto").offset_ == -3.5  # the rate of when it was set


def test_a_threshold_is_kept_while_the_model_learns(detector):
    detector.set_threshold(NORMAL[500:], false_positive_rate=0.1)
    rate = np.mean(detector.predict(NORMAL[500:]) == -1)
    offset, map_threshold = detector.offset_, detector.map_threshold_
    detector.partial_fit(NORMAL[200:500])
    assert detector.offset_ != offset and detector.chosen_threshold_.weight == 500
    assert detector.map_threshold_ / map_threshold == pytest.approx(detector.offset_ / offset)
    assert np.mean(detector.predict(NORMAL[500:]) == -1) == pytest.approx(rate, abs=0.04)


def test_falls_of_scores_of_the_same_images_move_a_threshold_as_they_move_the_scores():
    curve = LearningCurve.of("factor_analysis", "low_rank", 8)
    chosen = ChosenThreshold(-10.0, None, "score=-10", NO_IMAGES, NO_IMAGES, 0.95, "", 50.0, ())
    (known, x), weights = curve._terms(np.array([50.0, 100.0])), (50.0, 100.0)
    for slope in (0.0, 1.0):
        fall = np.array([[*weights, known[0] - known[1] + slope * (x[0] - x[1]), 1e-9]])
        carried = chosen.carried_to(100.0, curve, fall)
        assert carried.offset == pytest.approx(-10 * np.exp(-fall[0, 2]), rel=0.01)
    unknown = chosen.carried_to(100.0, curve, np.empty((0, 4)))
    assert unknown.offset == pytest.approx(-10 * np.exp(known[1] - known[0] + curve.slope * (x[1] - x[0])))


def test_a_threshold_of_a_far_poorer_model_is_kept_with_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewImagesWarning)
        detector = PatchGaussianDetector(4).fit(NORMAL[:6]).set_threshold(NORMAL[500:], false_positive_rate=0.1)
    with pytest.warns(FewImagesWarning, match=r"threshold \(false_positive_rate=0\.1\) was multiplied by 0\.\d\d"):
        detector.partial_fit(NORMAL[6:400])


def test_merging_keeps_the_threshold_and_fit_and_calibrate_forget_it(detector):
    other = PatchGaussianDetector(2).fit(NORMAL[200:400])
    detector.set_threshold(NORMAL[500:], false_positive_rate=0.1)
    assert detector.merge(other).chosen_threshold_.rule == "false_positive_rate=0.1"
    assert detector.calibrate(NORMAL[500:]).chosen_threshold_ is None
    detector.set_threshold(score=-1.0)
    assert detector.fit(NORMAL[:200]).chosen_threshold_ is None


def test_it_is_stored_with_where_it_came_from(detector, tmp_path):
    detector.set_threshold(NORMAL[200:300], score=-3.0, source="line 4")
    save_skops(detector, tmp_path / "d.skops")
    for copy in (pickle.loads(pickle.dumps(detector)), load_skops(tmp_path / "d.skops")):
        assert copy.chosen_threshold_ == detector.chosen_threshold_
        assert copy.offset_ == -3.0
    assert str(detector.chosen_threshold_).startswith("score=-3.0, from line 4: false alarms ")


def test_tensors_are_taken(detector):
    on_arrays = detector.set_threshold(NORMAL[200:300], false_positive_rate=0.1).offset_
    assert detector.set_threshold(torch.from_numpy(NORMAL[200:300]), false_positive_rate=0.1).offset_ == on_arrays


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of false_positive_rate=, recall= and score="),
        ({"false_positive_rate": 0.1, "score": 1.0}, "one of false_positive_rate="),
        ({"false_positive_rate": 0.1}, "false_positive_rate=0.1 takes images that were not learnt"),
        ({"X": NORMAL, "false_positive_rate": 1.5}, r"false_positive_rate=1\.5 is not between 0 and 1"),
        ({"X": NORMAL, "recall": 0}, r"recall=0 is not above 0"),
        ({"X": NORMAL, "recall": 0.9}, "recall=0.9 takes anomalous images"),
        ({"X": BAD, "y": -np.ones(50), "false_positive_rate": 0.1}, "false_positive_rate=0.1 takes normal images"),
        ({"X": BAD, "y": np.ones(3), "false_positive_rate": 0.1}, "y has 3 labels and X has 50 samples"),
        ({"X": BAD, "y": np.zeros(50), "false_positive_rate": 0.1}, "normal is .1 and anomalous -1"),
        ({"X": BAD[:, :3], "false_positive_rate": 0.1}, "was fitted on patches of"),
        ({"score": np.nan}, "score=nan is not a finite number"),
        ({"score": 1.0, "confidence": 1}, "confidence=1 is not between"),
    ],
)
def test_wrong_wishes_change_nothing(detector, arguments, message):
    before = detector.set_threshold(score=-3.0).chosen_threshold_
    with pytest.raises(ValueError, match=message):
        detector.set_threshold(**arguments)
    assert detector.chosen_threshold_ is before


def test_it_needs_a_fitted_detector_and_its_own_scores(detector):
    with pytest.raises(NotFittedError):
        PatchGaussianDetector().set_threshold(score=1.0)
    detector.set_params(distance="residual")
    with pytest.raises(ValueError, match="the thresholds are for scores with distance='factor_analysis'"):
        detector.set_threshold(score=1.0)
