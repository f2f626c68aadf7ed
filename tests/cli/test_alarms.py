"""When alarms say that something has changed, and when they are chance."""

from __future__ import annotations

import numpy as np
import pytest

from ipca_sklearn.cli._evaluate import warning_of_normal_images
from ipca_sklearn.cli._predict import warning_of_many_alarms
from ipca_sklearn.detection._chosen import asked_rate


def test_normal_images_rarely_raise_doubt_and_changed_ones_do():
    rng = np.random.default_rng(0)
    calibration = rng.normal(size=200)
    offset = np.quantile(calibration, 0.05, method="weibull")
    n_doubts = 0
    for _ in range(200):
        scores = rng.normal(size=60)
        n_doubts += warning_of_normal_images(scores, calibration, int(np.sum(scores < offset)), 0.05) is not None
    assert n_doubts <= 4
    for shift, words in ((-3, "normal images .* are called anomalous"), (-1.2, "called anomalous|less normal")):
        scores = rng.normal(size=60) + shift
        doubt = warning_of_normal_images(scores, calibration, int(np.sum(scores < offset)), 0.05)
        assert doubt is not None and "update" in doubt
        assert any(word in doubt for word in words.replace(" .* ", "|").split("|"))


def test_p_values_far_from_uniform_raise_doubt_without_alarms():
    rng = np.random.default_rng(1)
    calibration = rng.normal(size=200)
    low = np.clip(rng.normal(size=60) - 1.5, -1.9, None)
    doubt = warning_of_normal_images(low, calibration, 0, 0.01)
    assert doubt is not None and "less normal than the unseen ones" in doubt
    doubt = warning_of_normal_images(rng.normal(size=60) + 2, calibration, 0, 0.01)
    assert doubt is not None and "Were they learnt" in doubt


@pytest.mark.parametrize("n", [0, 1])
def test_few_images_raise_no_doubt(n):
    assert warning_of_normal_images(np.full(n, -9.0), np.zeros(100), n, 0.05) is None


def test_the_rate_of_an_automatic_threshold_comes_from_the_calibration():
    assert asked_rate(0.2, np.zeros(3), -1.0) == 0.2
    assert asked_rate("auto", np.arange(99.0), 2.0) == pytest.approx(0.03)
    assert asked_rate("auto", np.empty(0), -np.inf) == 1.0


def test_unknown_images_raise_doubt_where_most_are_anomalous():
    assert warning_of_many_alarms(9, 9) is None
    assert warning_of_many_alarms(5, 10) is None
    warning = warning_of_many_alarms(6, 10)
    assert warning is not None and warning.startswith("6 of 10 images (60%)")
