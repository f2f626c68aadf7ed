"""PatchGaussianDetector: scores, signs, thresholds, learning on, bad input."""

from __future__ import annotations

import copy
import pickle
import warnings

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from sklearn.pipeline import make_pipeline

from ipca_sklearn import BatchedIncrementalPCA, PatchFeatureExtractor, PatchGaussianDetector, linalg

SHAPE = (4, 5, 8)  # H, W, m
SCALES = np.array([6, 4, 2, 1, 1, 1, 1, 1])


def normal(n, seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=(n, *shape)) * SCALES[: shape[-1]] + 3


def with_defect(n, seed=1):
    X = normal(n, seed)
    X[:, 2, 3, 4:] += 8  # off the leading directions, in one patch
    return X


def snapshot(detector):
    X = normal(5, seed=9)
    state = (detector.score_samples(X), detector.offset_, detector.n_samples_seen_, detector.pca_.components_)
    return copy.deepcopy(state)


def assert_same(detector, before):
    for found, expected in zip(snapshot(detector), before, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("score", linalg.DISTANCES)
def test_scores_of_one_patch_follow_their_definition(score):
    X = normal(60)
    detector = PatchGaussianDetector(3, distance=score, noise_shrinkage=0.25).fit(X)
    maps = detector.transform(X)
    pca = detector.pca_
    explained = np.einsum("pkm,pk->pm", pca.components_**2, pca.explained_variance_)
    noise = (pca.var_ * 60 / 59 - explained) * 8 / 5
    noise = 0.75 * noise + 0.25 * noise.mean(0)
    for row, column in [(0, 0), (3, 4)]:
        patch = row * SHAPE[1] + column
        deviation = X[:, row, column] - pca.mean_[patch]
        coordinates = deviation @ pca.components_[patch].T
        z = np.linalg.norm(coordinates / np.sqrt(pca.explained_variance_[patch]), axis=1)
        left = deviation - coordinates @ pca.components_[patch]
        r = np.linalg.norm(left, axis=1)
        expected = {"mahalanobis": z, "residual": r, "ppca": np.hypot(z, r / np.sqrt(pca.noise_variance_[patch]))}
        expected["factor_analysis"] = np.hypot(z, np.linalg.norm(left / np.sqrt(noise[patch]), axis=1))
        np.testing.assert_allclose(maps[:, row, column], expected[score])


def test_a_defect_is_found_and_located():
    detector = PatchGaussianDetector(3).fit(normal(100))
    defects = with_defect(10)
    assert detector.score_samples(defects).max() < detector.score_samples(normal(100, seed=2)).min()
    assert (detector.predict(defects) == -1).all()
    maps = detector.transform(defects)
    assert {np.unravel_index(m.argmax(), m.shape) for m in maps} == {(2, 3)}


def test_signs_are_those_of_scikit_learn():
    detector = PatchGaussianDetector(3).fit(normal(50))
    X = np.concatenate([normal(30, seed=4), with_defect(30)])
    scores, decision, labels = detector.score_samples(X), detector.decision_function(X), detector.predict(X)
    np.testing.assert_allclose(decision, scores - detector.offset_)
    np.testing.assert_array_equal(labels, np.where(decision < 0, -1, 1))
    np.testing.assert_array_equal(clone(detector).fit_predict(X), clone(detector).fit(X).predict(X))
    assert set(labels) == {-1, 1}


@pytest.mark.parametrize("image_score", ["max", "mean", 0.1, 0.13, 0.3, 1.0, 1e-9])
def test_the_image_score_is_taken_from_the_map(image_score):
    X = normal(20)
    detector = PatchGaussianDetector(3, image_score=image_score).fit(X)
    flat = np.sort(detector.transform(X).reshape(20, -1), axis=1)[:, ::-1]
    n_top = {"max": 1, "mean": 20, 0.1: 2, 0.13: 3, 0.3: 6, 1.0: 20, 1e-9: 1}[image_score]
    np.testing.assert_allclose(detector.score_samples(X), -flat[:, :n_top].mean(1))


def test_smoothing_blurs_the_maps_before_the_image_score():
    X = normal(20)
    sharp = PatchGaussianDetector(3).fit(X)
    smooth = PatchGaussianDetector(3, smoothing=1.0).fit(X)
    assert smooth.transform(X).std() < sharp.transform(X).std()
    np.testing.assert_allclose(smooth.score_samples(X), -smooth.transform(X).max((1, 2)))
    expected = gaussian_filter(sharp.transform(X), (0, 1, 1))
    np.testing.assert_allclose(smooth.transform(X), expected, rtol=1e-6)
    flat = np.ones((3, 6, 1, 8))
    one_column = PatchGaussianDetector(2, smoothing=2.0).fit(normal(20, shape=(6, 1, 8)))
    assert one_column.transform(flat).shape == (3, 6, 1)


def test_smoothing_without_a_grid_is_refused():
    with pytest.raises(ValueError, match=r"smoothing=1.0 needs X of shape \(n, H, W, m\)"):
        PatchGaussianDetector(2, smoothing=1.0).fit(normal(20).reshape(20, -1, 8))


@pytest.mark.parametrize("shape", [(8,), (6, 8), (2, 3, 8)])
def test_maps_have_the_shape_of_the_patches(shape):
    X = normal(20, shape=shape)
    detector = PatchGaussianDetector(2).fit(X)
    assert detector.transform(X).shape == (20, *(shape[:-1] or (1,)))
    assert detector.score_samples(X).shape == detector.predict(X).shape == (20,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_in_torch_out_on_the_same_device_and_dtype(device, dtype):
    X = torch.from_numpy(normal(30)).to(device, dtype).requires_grad_()
    detector = PatchGaussianDetector(3).fit(X)
    for result in (detector.transform(X), detector.score_samples(X), detector.decision_function(X)):
        assert (result.device, result.dtype, result.requires_grad) == (X.device, dtype, False)
    assert detector.predict(X).device == X.device
    reference = PatchGaussianDetector(3).fit(normal(30))
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    np.testing.assert_allclose(detector.score_samples(X).cpu(), reference.score_samples(normal(30)), rtol=tolerance)
    assert detector.offset_ == pytest.approx(reference.offset_, rel=tolerance)


@given(seed=st.integers(0, 2**16), k=st.integers(1, 8))
def test_scores_equal_those_of_exact_pca_where_all_directions_are_kept(seed, k):
    rng = np.random.default_rng(seed)
    X = np.einsum("npk,pkm->npm", rng.normal(size=(25, 3, k)), rng.normal(size=(3, k, 8))) + rng.normal(size=8)
    detector = PatchGaussianDetector(k, step_size=4, distance="mahalanobis").fit(X)
    for patch in range(3):
        mean = X[:, patch].mean(0)
        _, values, right = np.linalg.svd(X[:, patch] - mean, full_matrices=False)
        new = rng.normal(size=(5, k)) @ right[:k] + mean
        expected = np.linalg.norm((new - mean) @ right[:k].T / values[:k] * np.sqrt(24), axis=1)
        sample = np.broadcast_to(new[:, None], (5, 3, 8))
        np.testing.assert_allclose(detector.transform(sample)[:, patch], expected, rtol=1e-5)


def test_fit_is_a_loop_of_partial_fit_threshold_included():
    X = normal(70)
    whole = PatchGaussianDetector(3, step_size=16).fit(X)
    parts = clone(whole)
    for start in range(0, 70, 16):
        parts.partial_fit(X[start : start + 16])
    assert_same(parts, snapshot(whole))


def test_partial_fit_after_fit_goes_on_learning():
    X = normal(90)
    whole = PatchGaussianDetector(3, step_size=10).fit(X)
    resumed = PatchGaussianDetector(3, step_size=10).fit(X[:60]).partial_fit(X[60:])
    assert_same(resumed, snapshot(whole))
    assert resumed.n_samples_seen_ == 90


def test_fit_forgets():
    detector = PatchGaussianDetector(3).fit(normal(90) * 50)
    detector.fit(normal(40))
    assert_same(detector, snapshot(PatchGaussianDetector(3).fit(normal(40))))


def test_merge_equals_seeing_all_images():
    X = normal(80)
    whole = PatchGaussianDetector(8).fit(X)
    merged = PatchGaussianDetector(8).fit(X[:30]).merge(PatchGaussianDetector(8).fit(X[30:]))
    assert merged.n_samples_seen_ == 80
    assert np.isfinite(merged.offset_)
    np.testing.assert_allclose(
        merged.set_params(distance="mahalanobis").score_samples(X),
        whole.set_params(distance="mahalanobis").score_samples(X),
    )


def test_merge_refuses_what_it_cannot_combine():
    detector = PatchGaussianDetector(3).fit(normal(30))
    before = snapshot(detector)
    with pytest.raises(TypeError, match="got BatchedIncrementalPCA"):
        detector.merge(BatchedIncrementalPCA(3).fit(normal(30)))
    with pytest.raises(NotFittedError):
        detector.merge(PatchGaussianDetector(3))
    with pytest.raises(ValueError, match="different distance 'factor_analysis' and 'ppca'"):
        detector.merge(PatchGaussianDetector(3, distance="ppca").fit(normal(30)))
    with pytest.raises(ValueError, match="different n_components_ 3 and 2"):
        detector.merge(PatchGaussianDetector(2).fit(normal(30)))
    assert_same(detector, before)


@pytest.mark.parametrize("n", [200, 60, 20, 9])
@pytest.mark.parametrize("false_positive_rate", [0.1, 0.3])
def test_false_positive_rate_is_about_the_share_of_new_normal_images_called_anomalous(n, false_positive_rate):
    rates = []
    for seed in range(12):
        detector = PatchGaussianDetector(3, false_positive_rate=false_positive_rate).fit(normal(n, seed=seed))
        rates.append(np.mean(detector.predict(normal(200, seed=100 + seed)) == -1))
    # In-sample quantiles would give nearly 1 for n = 9: the residual of a learnt image is almost 0 there. Held-out
    # scores of so few come from models with half of the images, which errs to the side of fewer alarms.
    assert np.mean(rates) < false_positive_rate + 0.1
    assert n < 100 or np.mean(rates) > false_positive_rate - 0.1


def test_auto_contamination_calls_few_new_normal_images_anomalous():
    detector = PatchGaussianDetector(3).fit(normal(200))
    assert np.mean(detector.predict(normal(500, seed=5)) == -1) < 0.05


def test_one_image_gives_no_threshold_and_says_so():
    with pytest.warns(UserWarning, match="1 images are few: .*there is no threshold"):
        detector = PatchGaussianDetector(3).fit(normal(1))
    assert detector.offset_ == -np.inf
    assert (detector.predict(with_defect(3)) == 1).all()
    detector.partial_fit(normal(30, seed=3))
    assert np.isfinite(detector.offset_)


def test_a_plain_fit_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PatchGaussianDetector(3).fit(normal(40)).predict(normal(4))


def test_the_scores_kept_for_the_threshold_are_bounded(monkeypatch):
    monkeypatch.setattr("ipca_sklearn.detection._calibration.MAX_IMAGES", 25)
    detector = PatchGaussianDetector(3, step_size=10).fit(normal(100))
    assert len(detector.calibration_scores_) == 25


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.full((3, *SHAPE), np.nan), "contains NaN or infinity"),
        (normal(3)[..., :5], "X has 5 features, but PatchGaussianDetector is expecting 8 features"),
        (normal(3)[:, :2], r"patches of shape \(2, 5\).*fitted on patches of shape \(4, 5\)"),
        (np.empty((0, *SHAPE)), "at least one sample"),
    ],
)
def test_bad_features_are_named_and_leave_the_detector_as_it_was(bad, message):
    detector = PatchGaussianDetector(3).fit(normal(30))
    before = snapshot(detector)
    with pytest.raises(ValueError, match=message):
        detector.partial_fit(bad)
    with pytest.raises(ValueError, match=message):
        detector.predict(bad)
    assert_same(detector, before)


def test_a_stream_that_breaks_off_leaves_the_detector_as_it_was():
    detector = PatchGaussianDetector(3, step_size=4).fit(normal(30))
    before = snapshot(detector)
    X = normal(40)
    X[37, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match=r"samples 36 to 39"):
        detector.partial_fit(X)
    with pytest.raises(ValueError, match="NaN"):
        detector.fit(X)
    assert_same(detector, before)


@pytest.mark.parametrize(
    "params",
    [
        {"distance": "mahalanobi"},
        {"false_positive_rate": 0.0},
        {"false_positive_rate": 0.6},
        {"image_score": 0},
        {"image_score": "median"},
        {"smoothing": -1},
        {"solver": "eigh"},
        {"step_size": 0},
        {"n_components": 9},
    ],
)
def test_bad_parameters_are_named_with_what_they_may_be(params):
    (name,) = params
    with pytest.raises(ValueError, match=name):
        PatchGaussianDetector(**{"n_components": 2} | params).fit(normal(20))


@pytest.mark.parametrize("method", ["predict", "score_samples", "decision_function", "transform", "score"])
def test_not_fitted_raises(method):
    detector = PatchGaussianDetector(3)
    assert not hasattr(detector, "n_samples_seen_")
    with pytest.raises(NotFittedError):
        getattr(detector, method)(normal(3))


def test_score_is_the_mean_log_likelihood_whatever_the_distance():
    detector = PatchGaussianDetector(3, distance="ppca").fit(normal(60))
    other = PatchGaussianDetector(3, distance="residual").fit(normal(60))
    assert detector.score(normal(20)) == other.score(normal(20))
    assert detector.score(normal(40, seed=3)) > detector.score(with_defect(40))
    basis = detector.pca_.fitted_.basis()
    expected = linalg.log_likelihood(basis, torch.from_numpy(normal(40, seed=3)).flatten(1, 2)).mean()
    assert detector.score(normal(40, seed=3)) == pytest.approx(float(expected))


def test_grid_search_without_defects_prefers_the_true_number_of_directions():
    rng = np.random.default_rng(0)
    signal = np.einsum("npk,pkm->npm", rng.normal(size=(200, 2, 2)), rng.normal(size=(2, 2, 6)))
    X = 3 * signal + rng.normal(size=(200, 2, 6))  # rank 2 and noise
    search = GridSearchCV(
        PatchGaussianDetector(), {"n_components": [1, 2, 5]}, cv=ShuffleSplit(2, test_size=0.5, random_state=0)
    )
    assert search.fit(X).best_params_ == {"n_components": 2}


def test_changing_the_distance_of_a_fitted_detector_reads_the_same_model():
    X = normal(40)
    detector = PatchGaussianDetector(3).fit(X)
    residual = detector.transform(X)
    detector.set_params(distance="mahalanobis")
    expected = PatchGaussianDetector(3, distance="mahalanobis").fit(X).transform(X)
    np.testing.assert_array_equal(detector.transform(X), expected)
    assert not np.allclose(expected, residual)


def test_pickles_hold_numpy_arrays_only_and_score_bit_identically(tmp_path):
    X = torch.from_numpy(normal(30))
    detector = PatchGaussianDetector(3).fit(X)
    assert b"torch" not in pickle.dumps(detector)
    joblib.dump(detector, tmp_path / "detector.joblib")
    for loaded in (pickle.loads(pickle.dumps(detector)), joblib.load(tmp_path / "detector.joblib", mmap_mode="r")):
        assert torch.equal(loaded.score_samples(X), detector.score_samples(X))
        np.testing.assert_array_equal(loaded.predict(X.numpy()), detector.predict(X).numpy())
        assert clone(detector).fit(X).partial_fit(X).offset_ == loaded.partial_fit(X).offset_


def test_a_pipeline_from_images_to_labels_persists(tmp_path):
    rng = np.random.default_rng(0)
    images = (rng.random((24, 64, 64, 3)) * 60 + 90).astype(np.uint8)
    defect = images[:4].copy()
    defect[:, 20:36, 20:36] = [255, 0, 0]
    pipe = make_pipeline(
        PatchFeatureExtractor("resnet18", weights=None, image_size=64, crop_size=64, random_state=0),
        PatchGaussianDetector(4),
    ).fit(images)
    assert pipe.transform(images).shape == (24, 16, 16)
    assert pipe.score_samples(defect).max() < pipe.score_samples(images).min()
    row, column = np.unravel_index(pipe.transform(defect)[0].argmax(), (16, 16))
    assert 3 <= row <= 10 and 3 <= column <= 10
    joblib.dump(pipe, tmp_path / "pipe.joblib")
    loaded = joblib.load(tmp_path / "pipe.joblib")
    np.testing.assert_array_equal(loaded.score_samples(defect), pipe.score_samples(defect))
    np.testing.assert_array_equal(loaded.predict(defect), pipe.predict(defect))
    np.testing.assert_array_equal(pipe.set_output(transform="pandas").transform(defect), loaded.transform(defect))


def padim_reference(X, new, columns, ridge):
    """Mahalanobis distances of `new` (n, P) with the covariance of every patch inverted as numpy does it."""
    X, new = X.reshape(len(X), -1, X.shape[-1])[..., columns], new.reshape(len(new), -1, X.shape[-1])[..., columns]
    maps = np.empty(new.shape[:2])
    for patch in range(X.shape[1]):
        inverse = np.linalg.inv(np.cov(X[:, patch], rowvar=False) + ridge * np.eye(len(columns)))
        deviation = new[:, patch] - X[:, patch].mean(0)
        maps[:, patch] = np.sqrt(np.einsum("nm,mo,no->n", deviation, inverse, deviation))
    return maps


@pytest.mark.parametrize("step_size", [1, 7, None])
def test_full_covariance_of_random_features_is_padim(step_size):
    X, new = normal(25) + 100, normal(6, seed=1) + 100.5
    detector = full_detector(n_random_features=5, step_size=step_size).fit(X)
    assert len(set(detector.feature_indices_)) == 5 == detector.pca_.n_features_in_
    expected = padim_reference(X, new, detector.feature_indices_, 0.01)
    np.testing.assert_allclose(detector.transform(new).reshape(6, -1), expected, rtol=1e-6)
    assert detector.n_features_in_ == 8


def full_detector(**parameters):
    return PatchGaussianDetector(covariance="full", distance="mahalanobis", random_state=0, **parameters)


def test_full_covariance_has_all_components_and_their_covariance():
    X = normal(40)
    pca = full_detector().fit(X).pca_
    flat = X.reshape(40, -1, 8)
    for patch in (0, 7):
        np.testing.assert_allclose(pca.covariance_[patch], np.cov(flat[:, patch], rowvar=False), atol=1e-10)
    rebuilt = np.einsum("pkm,pk,pkn->pmn", pca.components_, pca.explained_variance_, pca.components_)
    np.testing.assert_allclose(rebuilt, pca.covariance_, atol=1e-10)
    np.testing.assert_allclose(pca.inverse_transform(pca.transform(X)), X, atol=1e-9)


def test_full_covariance_needs_mahalanobis():
    with pytest.raises(ValueError, match=r"covariance='full' leaves no residual, so distance='residual'.*mahalanobis"):
        PatchGaussianDetector(covariance="full", distance="residual").fit(normal(10))


def test_fewer_images_than_features_are_enough_with_a_ridge():
    detector = full_detector(smoothing=0).fit(normal(3))
    np.testing.assert_allclose(
        detector.transform(normal(2, seed=1)).reshape(2, -1),
        padim_reference(normal(3), normal(2, seed=1), np.arange(8), 0.01),
        rtol=1e-6,
    )


def test_full_covariance_merges_pickles_and_goes_on_learning():
    X = normal(60)
    whole = full_detector(n_random_features=4).fit(X)
    parts = [clone(whole).fit(X[:20]), clone(whole).fit(X[20:])]
    merged = parts[0].merge(parts[1])
    np.testing.assert_allclose(merged.transform(X), whole.transform(X), rtol=1e-9)
    again = pickle.loads(pickle.dumps(clone(whole).fit(X[:20])))
    np.testing.assert_allclose(again.partial_fit(X[20:]).transform(X), whole.transform(X), rtol=1e-9)


def test_random_features_follow_the_seed_and_serve_every_score():
    X = normal(50)
    first, same, other = (PatchGaussianDetector(2, n_random_features=5, random_state=s).fit(X) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.feature_indices_, same.feature_indices_)
    assert not np.array_equal(first.feature_indices_, other.feature_indices_)
    alone = PatchGaussianDetector(2).fit(X[..., first.feature_indices_])
    np.testing.assert_allclose(first.transform(X), alone.transform(X[..., first.feature_indices_]))
    np.testing.assert_allclose(first.score(X), alone.score(X[..., first.feature_indices_]))
    with pytest.raises(ValueError, match="different random features"):
        first.merge(other)
    assert not hasattr(first.set_params(n_random_features=None).fit(X), "feature_indices_")
    with pytest.raises(ValueError, match="n_random_features=9 of n_features=8"):
        PatchGaussianDetector(2, n_random_features=9).fit(X)


def test_noise_shrinkage_one_is_one_noise_for_all_places():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3, 6)) * np.array([1.0, 10.0, 0.1])[:, None]
    own, shared = (PatchGaussianDetector(1, noise_shrinkage=s).fit(X).transform(X).mean(0) for s in (0, 1))
    assert own.max() / own.min() < 1.2  # every place is as far from itself as any other
    assert shared[1] / shared[2] > 4  # what varies more is farther away


def test_a_merge_leaves_a_copy_of_the_detector_as_it_was():
    detector = PatchGaussianDetector(3).fit(normal(40))
    before = snapshot(detector)
    merged = copy.copy(detector).merge(PatchGaussianDetector(3).fit(normal(40, seed=1)))
    assert merged.n_samples_seen_ == 80
    assert_same(detector, before)


def test_a_warning_that_is_an_error_leaves_the_detector_unfitted():
    detector = PatchGaussianDetector(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="1 images are few"):
            detector.fit(normal(1))
    with pytest.raises(NotFittedError):
        detector.predict(normal(1))


@pytest.mark.parametrize("bad", [{"false_positive_rate": 0.0}, {"noise_shrinkage": 2.0}, {"image_score": 5.0}])
def test_partial_fit_refuses_parameters_that_were_set_after_fit(bad):
    detector = PatchGaussianDetector(3).fit(normal(40))
    before = snapshot(detector)
    kept = detector.get_params()
    with pytest.raises(ValueError, match=f"The '{next(iter(bad))}' parameter"):
        detector.set_params(**bad).partial_fit(normal(40))
    assert_same(detector.set_params(**kept), before)


@pytest.mark.parametrize(
    ("learnt", "now", "message"),
    [
        ({"n_components": 3, "n_gaussians": None}, {"n_components": 5}, "n_components=5 .* has kept 3 directions"),
        ({"n_components": 3}, {"covariance": "full", "distance": "mahalanobis"}, "learnt covariance='low_rank'"),
        (
            {"covariance": "full", "distance": "mahalanobis"},
            {"covariance": "low_rank"},
            "learnt covariance='full': fit",
        ),
    ],
)
def test_what_only_a_fit_can_change_is_refused_until_then(learnt, now, message):
    detector = PatchGaussianDetector(**learnt).fit(normal(40))
    before = detector.score_samples(normal(8))
    then = {name: getattr(detector, name) for name in now}
    detector.set_params(**now)
    for call in (detector.score_samples, detector.transform, detector.predict, detector.calibrate):
        with pytest.raises(ValueError, match=message):
            call(normal(8))
    if "covariance" in now:
        with pytest.raises(ValueError, match=message):
            detector.partial_fit(normal(8))
    np.testing.assert_array_equal(detector.set_params(**then).score_samples(normal(8)), before)


def test_scores_of_read_only_maps_make_no_warning():
    detector = PatchGaussianDetector(3).fit(normal(40))
    maps = detector.transform(normal(3))
    maps.flags.writeable = False  # as of a memory map
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scores = detector.score_maps(maps)
    finally:
        torch.set_warn_always(before)
    np.testing.assert_array_equal(scores, detector.score_samples(normal(3)))
