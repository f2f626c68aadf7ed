from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from ipca_sklearn import BatchedIncrementalPCA, PatchGaussianDetector
from ipca_sklearn.detection._cells import Cells, partition


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_any_region_of_any_grid_is_divided_into_cells_of_almost_equal_size(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(8, 8), (37, 37), (3, 50), (1, 9), (13,), (40, 24)]))
    region = None
    if data.draw(st.booleans()):
        rng = np.random.default_rng(data.draw(st.integers(0, 99)))
        region = rng.random(shape) < 0.6
        region.flat[0] = True
    n_patches = int(np.prod(shape)) if region is None else int(region.sum())
    wanted = data.draw(st.integers(1, n_patches))
    labels = partition(shape, region, wanted)
    assert ((labels >= 0) == (True if region is None else region)).all()
    counts = np.bincount(labels[labels >= 0])
    assert len(counts) <= wanted
    assert len(counts) == wanted or (0.75 * wanted <= len(counts) and len(set(counts)) == 1)
    assert counts.max() - counts.min() <= 1

    cells = Cells.of(labels)
    step = torch.randn(3, n_patches, 2)
    samples = cells.samples(step)[:, :]
    assert samples.shape == cells.samples(step).shape == (3 * counts.max(), len(counts), 2)
    assert torch.equal(cells.on_patches(samples[..., 0]), step[..., 0])  # each patch once, in its own place
    of_patch = torch.from_numpy(labels[labels >= 0].astype(np.int64))
    numbers = torch.arange(n_patches)
    for cell, slots in enumerate(cells.slots):
        assert set(numbers[of_patch == cell].tolist()) <= set(slots.tolist())
        assert len(set(slots.tolist())) == len(slots)


@pytest.mark.parametrize(
    ("shape", "n_cells", "sides"), [((64, 64), 256, (4, 4)), ((80, 56), 256, (5, 4)), ((40, 40), 100, (4, 4))]
)
def test_rectangles_are_taken_where_they_fill_the_grid(
    shape: tuple[int, int], n_cells: int, sides: tuple[int, int]
) -> None:
    labels = partition(shape, None, n_cells)
    for cell in range(labels.max() + 1):
        rows, columns = np.nonzero(labels == cell)
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == sides


def features(
    n: int, shape: tuple[int, ...] = (8, 8), m: int = 12, dtype: type = np.float64, seed: int = 0
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(m, m))
    return (rng.normal(size=(n, *shape, m)) @ mixing + rng.normal(size=m)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_gaussians", [1, 7, 16])
def test_the_gaussians_are_the_exact_pcas_of_the_patches_of_their_cells(
    n_gaussians: int, dtype: type, global_random_seed: int
) -> None:
    X = features(50, dtype=dtype, seed=global_random_seed)
    detector = PatchGaussianDetector(4, n_gaussians=n_gaussians).fit(X)
    assert detector.n_gaussians_ == n_gaussians and detector.n_samples_seen_ == 50
    tolerance = 1e-4 if dtype is np.float32 else 1e-9
    slots = Cells.of(detector.cells_).slots.numpy()
    for cell in range(n_gaussians):
        samples = X.reshape(50, 64, 12)[:, slots[cell]].reshape(-1, 12).astype(np.float64)
        values, vectors = np.linalg.eigh(np.cov(samples.T))
        pca = detector.pca_
        np.testing.assert_allclose(pca.explained_variance_[cell], values[::-1][:4], rtol=tolerance)
        np.testing.assert_allclose(pca.mean_[cell], samples.mean(0), atol=tolerance)
        alignment = np.abs(np.sum(pca.components_[cell] * vectors.T[::-1][:4], axis=1))
        np.testing.assert_allclose(alignment, 1, atol=tolerance)
        np.testing.assert_allclose(pca.noise_variance_[cell], values[:-4].mean(), rtol=10 * tolerance)


def test_steps_order_partitions_and_merges_make_no_difference_to_what_is_learnt(global_random_seed: int) -> None:
    X = features(90, seed=global_random_seed)
    whole = PatchGaussianDetector(3, n_gaussians=16).fit(X)
    shuffled = np.random.default_rng(global_random_seed).permutation(90)
    others = {
        "step": PatchGaussianDetector(3, n_gaussians=16, step_size=7).fit(X),
        "all at once": PatchGaussianDetector(3, n_gaussians=16, step_size=None).fit(X),
        "order": PatchGaussianDetector(3, n_gaussians=16).fit(X[shuffled]),
        "calls": PatchGaussianDetector(3, n_gaussians=16).fit(X[:1]).partial_fit(X[1:30]).partial_fit(X[30:]),
        "merges": PatchGaussianDetector(3, n_gaussians=16)
        .fit(X[:20])
        .merge(PatchGaussianDetector(3, n_gaussians=16).fit(X[20:])),
        "patches": PatchGaussianDetector(3, n_gaussians=16).fit(torch.from_numpy(X)),
    }
    new = features(5, seed=global_random_seed + 1)
    for name, other in others.items():
        scores = np.asarray(other.transform(new))
        np.testing.assert_allclose(scores, whole.transform(new), rtol=1e-7, err_msg=name)


def test_a_loop_of_partial_fit_over_the_steps_is_fit_bit_by_bit_and_thresholds_too(global_random_seed: int) -> None:
    X = features(200, dtype=np.float32, seed=global_random_seed)
    whole, loop = PatchGaussianDetector(3, n_gaussians=16).fit(X), PatchGaussianDetector(3, n_gaussians=16)
    for start in range(0, 200, 16):
        loop.partial_fit(X[start : start + 16])
    assert np.array_equal(whole.transform(X[:3]), loop.transform(X[:3]))
    assert whole.offset_ == loop.offset_ and whole.map_threshold_ == loop.map_threshold_


def test_a_pickle_gives_the_same_bits_in_a_third_of_the_bytes_and_learns_on(global_random_seed: int) -> None:
    X = features(120, m=60, dtype=np.float32, seed=global_random_seed)
    detector = PatchGaussianDetector(5, n_gaussians=16).fit(X)
    stored = pickle.dumps(detector)
    assert len(stored) < 16 * 60 * 60 * 4 / 3 + 60_000  # the matrices as they are in memory
    loaded = pickle.loads(stored)
    new = features(4, m=60, dtype=np.float32, seed=global_random_seed + 1)
    assert np.array_equal(loaded.transform(new), detector.transform(new))
    assert loaded.offset_ == detector.offset_
    more = features(30, m=60, dtype=np.float32, seed=global_random_seed + 2)
    np.testing.assert_allclose(
        loaded.partial_fit(more).transform(new), copy.deepcopy(detector).partial_fit(more).transform(new), rtol=1e-4
    )


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_goes_on_like_the_original_bit_by_bit_and_leaves_it_as_it_was(copied, global_random_seed: int) -> None:
    X = features(300, dtype=np.float32, seed=global_random_seed)
    detector = PatchGaussianDetector(3, n_gaussians=16).fit(X[:220])
    other, before = copied(detector), detector.offset_
    other.partial_fit(X[220:])
    assert detector.offset_ == before != other.offset_
    detector.partial_fit(X[220:])
    assert (other.offset_, other.map_threshold_) == (detector.offset_, detector.map_threshold_)
    assert np.array_equal(other.transform(X[:3]), detector.transform(X[:3]))
    assert clone(other).get_params() == detector.get_params()


def test_another_number_of_components_takes_effect_without_learning_and_thresholds_say_so() -> None:
    X = features(100)
    detector = PatchGaussianDetector(3, n_gaussians=16).fit(X)
    other = PatchGaussianDetector(6, n_gaussians=16).fit(X)
    detector.set_params(n_components=6)
    assert np.array_equal(detector.transform(X[:3]), other.transform(X[:3]))
    with pytest.raises(ValueError, match="n_components=3, now 6"):
        detector.predict(X[:3])
    assert detector.partial_fit(X[:20]).pca_.n_components_ == 6


def test_more_components_than_features_are_refused_and_leave_the_detector_as_it_was() -> None:
    X = features(100)
    detector, same = (PatchGaussianDetector(3, n_gaussians=16).fit(X) for _ in range(2))
    detector.set_params(n_components=13)
    with pytest.raises(ValueError, match="n_components=13 is larger than n_features=12"):
        detector.score_samples(X[:3])
    detector.set_params(n_components=3)
    np.testing.assert_array_equal(detector.score_samples(X[:3]), same.score_samples(X[:3]))


@pytest.mark.parametrize("n_gaussians", [None, 64, 1000])
def test_a_gaussian_for_each_patch_is_the_batched_pca(n_gaussians: int | None) -> None:
    X = features(60)
    detector = PatchGaussianDetector(3, n_gaussians=n_gaussians).fit(X)
    assert detector.cells_ is None and detector.n_gaussians_ == 64
    pca = BatchedIncrementalPCA(3).fit(X)
    assert np.array_equal(detector.pca_.components_, pca.components_)


def test_the_papers_update_learns_cells_in_steps_of_a_patch() -> None:
    X = features(60, m=12)
    detector = PatchGaussianDetector(8, n_gaussians=16, solver="gram_eigh").fit(X)
    exact = PatchGaussianDetector(8, n_gaussians=16).fit(X)
    assert detector.n_samples_seen_ == 60
    np.testing.assert_allclose(detector.pca_.mean_, exact.pca_.mean_)
    np.testing.assert_allclose(detector.pca_.var_, exact.pca_.var_)
    np.testing.assert_allclose(detector.pca_.explained_variance_[:, 0], exact.pca_.explained_variance_[:, 0], rtol=0.05)


def test_one_image_teaches_what_its_patches_have_in_common() -> None:
    X = features(41, m=6)
    detector = PatchGaussianDetector(2, n_gaussians=4).fit(X[:1])
    defect = X[1:2].copy()
    defect[0, 3, 5] += 100
    assert np.unravel_index(detector.transform(defect)[0].argmax(), (8, 8)) == (3, 5)


@pytest.mark.parametrize("n_gaussians", [0, -1, 2.5, "many"])
def test_a_number_of_gaussians_that_cannot_be_is_named(n_gaussians: object) -> None:
    with pytest.raises(ValueError, match="'n_gaussians' parameter"):
        PatchGaussianDetector(2, n_gaussians=n_gaussians).fit(features(20))


def test_models_of_other_cells_do_not_merge_and_stay_as_they_were() -> None:
    X = features(40)
    one, other = PatchGaussianDetector(2, n_gaussians=16).fit(X), PatchGaussianDetector(2, n_gaussians=4).fit(X)
    before = one.transform(X[:2])
    with pytest.raises(ValueError, match="n_gaussians=16 and 4"):
        one.merge(other)
    assert np.array_equal(one.transform(X[:2]), before)


def test_a_share_that_needs_more_directions_than_are_kept_is_refused_and_nothing_is_lost() -> None:
    X = np.random.default_rng(0).normal(size=(400, 2, 200))
    detector = PatchGaussianDetector(0.5, solver="gram_eigh").fit(X)
    before = detector.transform(X[:2])
    with pytest.raises(ValueError, match=r"n_components=0.99 is a share .* set solver='covariance'"):
        detector.set_params(n_components=0.99).fit(X)
    detector.set_params(n_components=0.5)
    assert np.array_equal(detector.transform(X[:2]), before)
    assert BatchedIncrementalPCA(0.99, solver="covariance").fit(X).n_components_ > 128


def test_forgetting_counts_images_whatever_the_size_of_the_cells() -> None:
    X = features(100)
    detector = PatchGaussianDetector(3, n_gaussians=4, forgetting_factor=0.9, step_size=1).fit(X)
    weights = 0.9 ** np.arange(99, -1, -1)
    for cell in range(4):
        samples = X[:, detector.cells_ == cell]
        np.testing.assert_allclose(
            detector.pca_.mean_[cell], np.average(samples.mean(1), weights=weights, axis=0), rtol=1e-1, atol=0.05
        )
