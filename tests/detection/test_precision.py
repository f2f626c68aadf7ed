"""Thresholds and scores are compared in one precision, and the record of a threshold is what `predict` does."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ipca_sklearn import FewImagesWarning, PatchGaussianDetector
from ipca_sklearn._utils._precision import above, below, difference
from ipca_sklearn.detection._chosen import ThresholdRule
from ipca_sklearn.metrics import evaluation_report

N_NEW, N_BAD = 60, 20
LABELS = np.repeat([1, -1], [N_NEW, N_BAD])
KINDS = {
    "float64": np.asarray,
    "float32": lambda X: X.astype(np.float32),
    "float16": lambda X: X.astype(np.float16),
    "int32": lambda X: np.round(X * 100).astype(np.int32),
    "torch float64": torch.from_numpy,
    "torch float32": lambda X: torch.from_numpy(X).float(),
    "torch float16": lambda X: torch.from_numpy(X).half(),
    "torch bfloat16": lambda X: torch.from_numpy(X).bfloat16(),
}
WISHES = [
    {"recall": 1.0},
    {"recall": 0.5},
    {"recall": 0.05},
    {"false_positive_rate": 0.1},
    {"false_positive_rate": 0.5},
    {"false_positive_rate": 1 / 61},
    {"score": "of an image"},
    {"score": -3.3},
]


def images(seed):
    rng = np.random.default_rng(seed)
    normal, new = rng.normal(size=(150, 9, 12)), rng.normal(size=(N_NEW, 9, 12))
    bad = rng.normal(size=(N_BAD, 9, 12))
    bad[:, 4] += 3
    return normal, np.concatenate([new, bad])


def n_anomalous(labels):
    return int((np.asarray(labels) == -1).sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parameters", [{}, {"image_score": "mean", "distance": "residual", "dtype": "float64"}])
def test_the_record_of_every_wish_is_what_predict_does(kind, parameters, global_random_seed):
    normal, X = (KINDS[kind](part) for part in images(global_random_seed))
    detector = PatchGaussianDetector(4, **parameters).fit(normal)
    for wish in WISHES:
        if wish == {"score": "of an image"}:
            wish = {"score": float(detector.score_samples(X)[7])}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewImagesWarning)
            record = detector.set_threshold(X, LABELS, **wish).chosen_threshold_
        called = np.asarray(detector.predict(X)) == -1
        recorded = record.false_positives.n_errors, record.missed.n_errors
        assert recorded == (called[:N_NEW].sum(), (~called[N_NEW:]).sum()), wish
        decision = np.asarray(detector.decision_function(X))
        np.testing.assert_array_equal(decision < 0, called)
        assert decision.dtype == np.asarray(detector.score_samples(X)).dtype
        # As it is compared by hand, and by who has the scores only.
        scores = np.asarray(detector.score_samples(X))
        report = evaluation_report(LABELS, scores, offset=detector.offset_, n_resamples=1)
        assert report["false_positive_rate"] * N_NEW == pytest.approx(recorded[0])
        if "recall" in wish or "false_positive_rate" in wish:
            # However the images are put together: the last digits of their scores differ.
            for parts in ([X[:N_NEW], X[N_NEW:]], [X[i : i + 1] for i in range(len(X))], [X[:7], X[7:]]):
                again = [n_anomalous(detector.predict(part)) for part in parts]
                assert sum(again) == called.sum(), wish
            np.testing.assert_array_equal(np.asarray(detector.score_samples(X)) < detector.offset_, called)
            masked = np.asarray(detector.predict_masks(X)).any(axis=1)
            assert masked[N_NEW:].sum() >= wish.get("recall", 0) * N_BAD - 1e-9
            assert masked[:N_NEW].sum() <= wish.get("false_positive_rate", 1) * (N_NEW + 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [None, "float64"])
def test_a_calibrated_threshold_and_p_values_are_compared_with_the_scores_as_they_are_computed(kind, dtype):
    normal, X = (KINDS[kind](part) for part in images(0))
    detector = PatchGaussianDetector(4, dtype=dtype, false_positive_rate=0.1, forgetting_factor=0.97).fit(normal)
    detector.calibrate(X)
    scores = np.asarray(detector.score_samples(X), dtype=np.float64)
    kept = detector.calibration_scores_
    np.testing.assert_array_equal(kept, scores[-len(kept) :])  # with forgetting the latest ones
    ranks = (kept <= scores[:, None]).sum(axis=1)
    np.testing.assert_array_equal(detector.p_values(X), (1 + ranks) / (1 + len(kept)))
    np.testing.assert_array_equal(np.asarray(detector.predict(X)) == -1, scores < detector.offset_)
    maxima = np.asarray(detector.transform(X), dtype=np.float64).max(axis=1)
    np.testing.assert_array_equal(np.asarray(detector.predict_masks(X)).any(axis=1), maxima > detector.map_threshold_)


def test_a_corrected_threshold_is_compared_exactly_too():
    normal, X = (part.astype(np.float32) for part in images(1))
    detector = PatchGaussianDetector(4).fit(normal[:80]).set_threshold(X, LABELS, recall=1.0)
    other = PatchGaussianDetector(4).fit(normal[80:])
    for changed in (lambda: detector.partial_fit(normal[80:120]), lambda: detector.merge(other)):
        changed()
        scores = detector.score_samples(X).astype(np.float64)
        np.testing.assert_array_equal(detector.predict(X) == -1, scores < detector.offset_)
        maxima = detector.transform(X).astype(np.float64).max(axis=1)
        np.testing.assert_array_equal(detector.predict_masks(X).any(axis=1), maxima > detector.map_threshold_)


@given(
    scores=st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=60),
    share=st.sampled_from([0.05, 0.1, 0.15, 0.35, 0.55, 0.95]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_noise_in_the_last_digits_does_not_break_a_promise(scores, share, dtype):
    scores = np.array(scores, dtype=dtype)
    noisy = [np.nextafter(scores, dtype(towards)) for towards in (-np.inf, np.inf)]
    alarms = ThresholdRule(share, None, None).offset(scores, scores)
    found = ThresholdRule(None, share, None).offset(scores, scores)
    for values in (scores, *noisy):
        assert np.mean(values < dtype(alarms)) <= share
        assert np.mean(values < dtype(found)) >= share - 1e-9


def test_a_share_that_is_a_whole_number_of_images_takes_no_image_more():
    scores = -np.arange(20.0, 0, -1)
    for n_found in range(1, 21):
        assert np.sum(scores < ThresholdRule(None, n_found / 20, None).offset(scores[:0], scores)) == n_found


@given(
    value=st.floats(allow_nan=False, allow_infinity=False, width=32),
    steps=st.integers(-2, 2),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    far=st.sampled_from([0.0, np.inf, -np.inf, 1e300, -1e300, 1e-300]),
)
def test_values_are_compared_with_thresholds_between_two_values_of_their_dtype(value, steps, dtype, far):
    with np.errstate(over="ignore"):
        values = np.array([dtype(value), dtype(1.5), dtype(0), dtype(-3)])
    thresholds = [far]
    for threshold in values.astype(np.float64):
        for _ in range(abs(steps)):
            threshold = np.nextafter(threshold, np.sign(steps) * np.inf)
        thresholds.append(float(threshold))
    for threshold in thresholds:
        wide = values.astype(np.float64)
        for of_kind in (values, torch.from_numpy(values)):
            np.testing.assert_array_equal(np.asarray(below(of_kind, threshold)), wide < threshold)
            np.testing.assert_array_equal(np.asarray(above(of_kind, threshold)), wide > threshold)


@given(value=st.floats(2**-10, 2**20, width=32), steps=st.integers(-2, 2), sign=st.sampled_from([-1, 1]))
def test_the_sign_of_a_difference_is_that_of_the_exact_one(value, steps, sign):
    values = np.array([value, np.nextafter(np.float32(value), np.float32(0)), 7], dtype=np.float32) * np.float32(sign)
    threshold = float(values[0])
    for _ in range(abs(steps)):
        threshold = float(np.nextafter(threshold, np.sign(steps) * np.inf))
    for of_kind in (values, torch.from_numpy(values)):
        result = np.asarray(difference(of_kind, threshold))
        assert result.dtype == np.float32
        np.testing.assert_array_equal(np.sign(result), np.sign(values.astype(np.float64) - threshold))
    assert np.all(difference(values, -np.inf) == np.inf)
