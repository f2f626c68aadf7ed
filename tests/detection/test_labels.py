"""Labels in fit: images labelled anomalous are never learnt, in a pipeline and in a search neither."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.inspection import ThresholdDisplay
from ipca_sklearn.metrics import (
    evaluation_report,
    image_average_precision_score,
    image_f1_max_score,
    image_roc_auc_score,
)
from ipca_sklearn.model_selection import OneClassKFold

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(60, 3, 3, 6))
ANOMALOUS = RNG.normal(size=(20, 3, 3, 6)) + 8
ORDER = RNG.permutation(80)
X = np.concatenate([NORMAL, ANOMALOUS])[ORDER]
Y = np.where(ORDER < 60, 1, -1)


def as_memory_map(folder: Path) -> np.ndarray:
    np.save(folder / "x.npy", X)
    return np.load(folder / "x.npy", mmap_mode="r")


@pytest.mark.parametrize("kind", ["array", "list", "tensor", "memory map"])
@pytest.mark.parametrize("calibration", ["prequential", 0.25])
def test_anomalous_samples_are_left_out_and_counted(kind, calibration, tmp_path):
    given = {"array": X, "list": list(X), "tensor": torch.from_numpy(X), "memory map": as_memory_map(tmp_path)}[kind]
    expected = PatchGaussianDetector(2, calibration=calibration).fit(X[Y == 1])
    with pytest.warns(UserWarning, match="20 of 80 samples have the label -1"):
        detector = PatchGaussianDetector(2, calibration=calibration).fit(given, Y)
    assert detector.n_samples_seen_ == expected.n_samples_seen_
    np.testing.assert_array_equal(np.asarray(detector.pca_.components_), expected.pca_.components_)
    assert detector.offset_ == expected.offset_
    assert (np.asarray(detector.predict(X[Y == -1])) == -1).all()


def test_partial_fit_leaves_them_out_too():
    detector = PatchGaussianDetector(2)
    with pytest.warns(UserWarning, match="label -1"):
        for start in range(0, 80, 40):
            detector.partial_fit(X[start : start + 40], Y[start : start + 40])
    assert detector.n_samples_seen_ == 60


def test_labels_of_normal_samples_change_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector = PatchGaussianDetector(2).fit(NORMAL, np.ones(60))
    assert detector.n_samples_seen_ == 60


IS_DEFECT = (Y == -1).astype(int)
ODD_LABELS = {
    "1 for anomalous": IS_DEFECT,
    "1 for normal": 1 - IS_DEFECT,
    "floats": IS_DEFECT.astype(float),
    "a list": IS_DEFECT.tolist(),
    "bools": IS_DEFECT == 1,
    "all True": np.ones(80, dtype=bool),
    "all 0": np.zeros(80, dtype=int),
    "kinds of defects": IS_DEFECT * np.arange(80) % 3,
    "words": np.where(IS_DEFECT == 1, "defect", "good"),
    "objects": np.where(IS_DEFECT == 1, "defect", "good").astype(object),
    "unlabelled ones": np.where(IS_DEFECT == 1, -1, 0),
}


@pytest.mark.parametrize("odd", ODD_LABELS.values(), ids=ODD_LABELS)
def test_every_reader_of_labels_refuses_those_of_another_convention(odd: Any) -> None:
    detector = PatchGaussianDetector(2).fit(NORMAL)
    scores = detector.score_samples(X)
    readers: dict[str, Any] = {
        "fit": lambda: PatchGaussianDetector(2).fit(X, odd),
        "fit of patches": lambda: PatchGaussianDetector(2).fit(X.reshape(80, 9, 6), odd),
        "fit of a tensor": lambda: PatchGaussianDetector(2).fit(torch.from_numpy(X), odd),
        "partial_fit": lambda: detector.partial_fit(X, odd),
        "calibrate": lambda: detector.calibrate(X, odd),
        "set_threshold": lambda: detector.set_threshold(X, odd, recall=0.9),
        "OneClassKFold": lambda: list(OneClassKFold(2).split(X, odd)),
        "image_roc_auc_score": lambda: image_roc_auc_score(odd, scores),
        "image_average_precision_score": lambda: image_average_precision_score(odd, scores),
        "image_f1_max_score": lambda: image_f1_max_score(odd, scores),
        "evaluation_report": lambda: evaluation_report(odd, scores, offset=0),
        "ThresholdDisplay": lambda: ThresholdDisplay.from_estimator(detector, X, odd),
    }
    for name, read in readers.items():
        with pytest.raises((ValueError, TypeError), match=r"labels \[.*np\.where|real numbers"):
            read()
            pytest.fail(f"{name} took the labels {odd[:5]}")
    assert detector.n_samples_seen_ == 60


def test_the_error_gives_what_to_pass_for_either_meaning_of_1() -> None:
    for odd, as_told in ((IS_DEFECT, "np.where(column == 1, -1, 1)"), (1 - IS_DEFECT, "np.where(column == 1, 1, -1)")):
        with pytest.raises(ValueError) as caught:
            PatchGaussianDetector(2).fit(X, odd)
        assert as_told in str(caught.value)
        np.testing.assert_array_equal(eval(as_told, {"np": np, "column": odd}), Y)


def test_a_table_learns_nothing_that_0_and_1_may_call_a_defect() -> None:
    table = X.reshape(80, -1)
    with pytest.warns(UserWarning, match="20 of 80 samples have the label 1 beside 0, which is read as anomalous"):
        detector = PatchGaussianDetector(2).fit(table, IS_DEFECT)
    assert detector.n_samples_seen_ == 60
    assert detector.offset_ == PatchGaussianDetector(2).fit(table[Y == 1]).offset_
    for odd in ("bools", "words", "objects"):
        with pytest.raises(ValueError, match="labels"):
            detector.fit(table, ODD_LABELS[odd])
    with pytest.warns(UserWarning, match=r"y has the labels \[0, 2\] and is ignored: all 80 samples"):
        assert detector.fit(table, np.arange(80) % 3).n_samples_seen_ == 80  # scikit-learn's tools pass any y


def test_a_search_whose_folds_have_one_kind_says_why_its_scores_are_nan() -> None:
    order = np.argsort(-Y, kind="stable")
    search = GridSearchCV(PatchGaussianDetector(), {"n_components": [1]}, scoring="roc_auc", cv=3)
    with pytest.warns(UserWarning, match=r"use cv=OneClassKFold\(\).* ROC AUC is then NaN"):
        search.fit(X[order], Y[order])
    assert np.isnan(search.cv_results_["mean_test_score"]).all()


def test_bad_labels_leave_the_detector_as_it_was():
    detector = PatchGaussianDetector(2).fit(NORMAL)
    offset = detector.offset_
    with pytest.raises(ValueError, match=r"y has shape \(3,\) and X has 80 samples"):
        detector.fit(X, [1, 1, -1])
    with pytest.raises(ValueError, match="all 80 samples have the label -1"):
        detector.fit(X, np.full(80, -1))
    assert detector.offset_ == offset


def test_a_search_does_not_learn_the_defects():
    search = GridSearchCV(PatchGaussianDetector(), {"n_components": [1, 2]}, scoring="roc_auc", cv=OneClassKFold(3))
    with pytest.warns(UserWarning, match="20 of 80 samples"):
        search.fit(X, Y)
    assert search.best_estimator_.n_samples_seen_ == 60
    assert (search.predict(X[Y == -1]) == -1).all()


def test_a_pipeline_reads_no_image_that_it_does_not_learn(tmp_path):
    images = RNG.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    extractor = PatchFeatureExtractor(
        "resnet18", layers=["layer1"], weights=None, random_state=0, image_size=32, crop_size=32
    )
    labels = np.array([1] * 9 + [-1] * 3)
    expected = Pipeline([("features", extractor), ("detector", PatchGaussianDetector(2))]).fit(list(images[:9]))
    missing = [*images[:9], *[tmp_path / "missing.png"] * 3]
    pipe = Pipeline([("features", extractor), ("detector", PatchGaussianDetector(2))])
    with pytest.warns(UserWarning, match="3 of 12 samples"):
        pipe.fit(missing, labels)
    np.testing.assert_array_equal(pipe.score_samples(images[9:]), expected.score_samples(images[9:]))
