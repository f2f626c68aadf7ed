"""Training images that are not all good: ranked by models of the others, and left out of a fit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kstest

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector, SkippedImagesWarning
from ipca_sklearn.detection._suspects import tail_probabilities

pytestmark = pytest.mark.filterwarnings("ignore::ipca_sklearn.exceptions.FewImagesWarning")

M = 16
KINDS: list[dict[str, Any]] = [
    {},
    {"n_gaussians": None, "n_components": 3},
    {"covariance": "full", "distance": "mahalanobis"},
    {"n_random_features": 10, "random_state": 0, "distance": "residual"},
]


def features(n: int, seed: int = 0) -> np.ndarray:
    """Images that share their directions and differ in their light, as floats."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(7).normal(size=(M, M)) / 4
    return (rng.normal(size=(n, 6, 6, M)) @ mixing + 0.3 * rng.normal(size=(n, 1, 1, M))).astype(np.float32)


def detector(**parameters: Any) -> PatchGaussianDetector:
    return PatchGaussianDetector(**{"n_gaussians": 9} | parameters)


def trimmed(fitted: PatchGaussianDetector) -> list[int]:
    suspects = fitted.suspects_
    return sorted(suspects["index"][suspects["trimmed"]].tolist())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_image_far_from_all_others_is_ranked_first_and_stands_out(kind):
    X = features(80)
    X[31, 2:4, 2:4] += 4
    suspects = detector(**kind).fit(X).find_suspects(X)
    assert suspects["index"][0] == 31 and suspects["q_value"][0] < 0.05
    assert sorted(suspects["index"]) == list(range(80))
    assert (np.diff(suspects["score"]) >= 0).all() and (np.diff(suspects["q_value"]) >= 0).all()
    assert not suspects["trimmed"].any()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_scores_are_those_of_detectors_that_have_learnt_the_other_blocks(kind):
    X = features(16)
    fitted = detector(**kind).fit(X)
    found = np.sort(fitted.find_suspects(X), order="index")["score"]
    blocks = np.arange(16).reshape(8, 2)
    alone = [detector(**kind).fit(np.delete(X, block, 0)).score_samples(X[block]) for block in blocks]
    # The learning curve brings both to one number of images by the same factor.
    exact = kind.get("n_gaussians", 9) is not None  # rows depend a little on the steps that they come from
    np.testing.assert_allclose(found / np.concatenate(alone), found[0] / alone[0][0], rtol=2e-4 if exact else 0.05)


def test_the_memory_that_is_told_counts_the_models_that_are_held():
    X, plain = np.empty((200, 6, 6, M), np.float32), detector()
    need = plain.memory_needed(X)
    assert detector(trim=0.1).memory_needed(X) == type(need)(need.model, need.learning + 3 * need.model)


def test_ranking_changes_nothing_and_needs_no_copy_of_the_images_in_memory(tmp_path):
    X = features(40)
    np.save(tmp_path / "X.npy", X)
    fitted = detector().fit(X)
    before = {name: value for name, value in vars(fitted).items()}
    suspects = fitted.find_suspects(X)
    assert all(vars(fitted)[name] is value for name, value in before.items()) and len(vars(fitted)) == len(before)
    mapped = fitted.find_suspects(np.load(tmp_path / "X.npy", mmap_mode="r"))
    np.testing.assert_array_equal(suspects, mapped)
    np.testing.assert_array_equal(suspects["index"], fitted.find_suspects(torch.from_numpy(X))["index"])


def test_a_fit_with_trim_learns_what_a_fit_of_the_other_images_learns():
    X = features(90)
    X[[3, 50, 88], 1, 1] += 5
    fitted = detector(trim=0.1).fit(X)
    assert fitted.n_samples_seen_ == 81 and len(trimmed(fitted)) == 9
    assert {3, 50, 88} <= set(trimmed(fitted))
    alone = detector().fit(np.delete(X, trimmed(fitted), 0))
    np.testing.assert_array_equal(fitted.transform(X), alone.transform(X))
    np.testing.assert_array_equal(fitted.suspects_, fitted.find_suspects(X))


@pytest.mark.parametrize(
    ("kind", "share"),
    [
        ("a second product", 0.1),
        ("gross and alike", 0.1),
        ("gross and alike", 0.4),
        ("one defect, always there", 0.1),
    ],
)
def test_as_many_bad_images_as_are_trimmed_are_left_out_even_if_they_are_alike(kind, share):
    X, n_bad = features(80), round(80 * share)
    rng = np.random.default_rng(1)
    bad = np.sort(rng.permutation(80)[:n_bad])
    if kind == "a second product":
        X[bad] = rng.normal(size=(n_bad, 6, 6, M)) / 4 + 3 * rng.normal(size=M)
    elif kind == "gross and alike":
        X[bad] += 100 * rng.normal(size=M)
    else:
        X[bad, 2:4, 2:4] += 4 * rng.normal(size=M)
    assert trimmed(detector(trim=share).fit(X)) == bad.tolist()


def test_more_bad_images_than_are_trimmed_break_a_fit():
    X = features(80)
    X[:24] += 100
    assert np.abs(detector(trim=0.1).fit(X).pca_.mean_).max() > 10
    assert np.abs(detector(trim=0.3).fit(X).pca_.mean_).max() < 1


def test_what_stands_out_is_left_out_without_a_share():
    X = features(100)
    X[[5, 60], 2:4, 2:4] += 4
    fitted = detector(trim="auto").fit(X)
    assert trimmed(fitted) == [5, 60]
    assert fitted.n_samples_seen_ == 98
    assert len(fitted.calibration_scores_) == 98


@pytest.mark.parametrize("trim", [0.1, "auto"])
def test_thresholds_of_a_trimmed_fit_keep_their_rate_of_false_alarms(trim):
    X = features(600)
    fitted = detector(trim=trim, false_positive_rate=0.1).fit(X[:150])
    # The scores of all images that do not stand out make the threshold, so about a tenth of new ones are below it.
    assert len(fitted.calibration_scores_) >= 145
    assert 0.04 < np.mean(fitted.predict(X[150:]) == -1) < 0.18


def test_defects_that_are_left_out_do_not_move_the_threshold():
    X = features(120)
    clean = detector(trim="auto").fit(X[20:])
    X[:20, 2:4, 2:4] += 4 * np.random.default_rng(0).normal(size=(20, 1, 1, M))
    dirty = detector(trim=0.2).fit(X)
    assert dirty.offset_ == pytest.approx(clean.offset_, rel=0.1)


def test_tail_probabilities_are_even_for_normal_images_and_do_not_follow_bad_ones():
    rng = np.random.default_rng(0)
    normal = np.exp(3 + 0.05 * rng.gumbel(size=400))
    assert kstest(tail_probabilities(normal), "uniform").pvalue > 0.01
    mixed = tail_probabilities(np.concatenate([normal, np.full(100, 60.0)]))
    assert (mixed[400:] < 1e-5).all()
    assert np.mean(mixed[:400] < 0.01) < 0.02
    np.testing.assert_array_equal(tail_probabilities(np.ones(9)), 0.5)


def test_copies_shifted_and_noisy_images_are_told_as_near_duplicates():
    rng = np.random.default_rng(0)
    smooth = np.repeat(np.repeat(rng.normal(size=(60, 8, 8, M)), 4, 1), 4, 2)
    X = smooth + 0.5 * rng.normal(size=smooth.shape)
    X[10], X[20], X[30] = X[3], 1.1 * X[3] + 0.2, np.roll(X[5], 1, axis=0)
    X[[40, 41], 4:8, 4:8] += 50  # alike, and still two images
    suspects = np.sort(detector(n_gaussians=16).fit(X).find_suspects(X), order="index")
    told = np.flatnonzero(suspects["near_duplicate_of"] >= 0)
    assert dict(zip(told, suspects["near_duplicate_of"][told], strict=True)) == {10: 3, 20: 3, 30: 5}


def test_places_are_those_in_x_where_y_leaves_images_out():
    X = features(60)
    y = np.ones(60)
    y[:20] = -1
    X[25, 2, 2] += 9
    X[30] = X[20]
    with pytest.warns(UserWarning, match="-1"):
        suspects = detector(trim=0.1).fit(X, y).suspects_
    assert suspects["index"][0] == 25 and suspects["index"].min() == 20
    assert suspects["near_duplicate_of"][suspects["index"] == 30] == 20


@pytest.mark.filterwarnings("ignore::ipca_sklearn.exceptions.AspectRatioWarning")
def test_images_that_cannot_be_read_are_not_ranked_and_told_once(tmp_path: Path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    paths[4].write_bytes(b"no image")
    extractor = PatchFeatureExtractor("resnet18", weights=None, image_size=64, on_error="skip", device="cpu")
    X = extractor.fit(paths).transform(paths)
    with pytest.warns(SkippedImagesWarning) as told:
        fitted = detector(trim=0.2).fit(X)
    assert [warning.category for warning in told].count(SkippedImagesWarning) == 1
    assert sorted(fitted.suspects_["index"]) == [0, 1, 2, 3, *range(5, 12)]
    assert fitted.n_samples_seen_ == 9 and np.isfinite(fitted.offset_)


@pytest.mark.parametrize("trim", [0.5, -0.1, 1, "most", None])
def test_a_trim_that_is_no_share_below_a_half_is_refused(trim):
    with pytest.raises(ValueError, match="trim"):
        detector(trim=trim).fit(features(20))


@pytest.mark.parametrize(
    ("parameters", "n", "message"),
    [
        ({"trim": 0.1}, 9, "at least 10 images"),
        ({"trim": "auto"}, 7, "at least 8 images"),
        ({"trim": 0.1, "calibration": 0.2}, 40, "calibration='prequential'"),
    ],
)
def test_what_cannot_be_trimmed_is_refused_and_changes_nothing(parameters, n, message):
    fitted = detector().fit(features(20))
    before = fitted.pca_
    with pytest.raises(ValueError, match=message):
        fitted.set_params(**parameters).fit(features(n))
    assert fitted.pca_ is before


def test_images_that_come_later_cannot_be_compared_with_all():
    X = features(40)
    with pytest.raises(ValueError, match=r"partial_fit.*trim=0"):
        detector(trim=0.1).partial_fit(X)
    fitted = detector(trim=0.1).fit(X)
    with pytest.raises(ValueError, match=r"partial_fit.*trim=0"):
        fitted.partial_fit(X)
    with pytest.raises(ValueError, match=r"merge.*trim=0"):
        fitted.merge(detector().fit(X))
    with pytest.raises(ValueError, match=r"merge.*trim=0"):
        detector().fit(X).merge(fitted)
    suspects = fitted.suspects_
    fitted.set_params(trim=0).partial_fit(features(8, seed=1))
    assert fitted.n_samples_seen_ == 44 and fitted.suspects_ is suspects
    assert not hasattr(fitted.fit(X), "suspects_")


def test_a_stored_detector_has_its_suspects():
    fitted = detector(trim=0.2).fit(features(30))
    stored = io.BytesIO()
    joblib.dump(fitted, stored)
    stored.seek(0)
    np.testing.assert_array_equal(joblib.load(stored).suspects_, fitted.suspects_)
