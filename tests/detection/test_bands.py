"""Large pictures are learnt and scored band by band, with the results of whole ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.persistence import load, load_skops, save, save_skops

SHAPE = (24, 18, 10)


class InBands:
    """An array of features that also comes in bands of so many patches, whatever the rows."""

    may_skip = False
    device = torch.device("cpu")
    bytes_of_band = 1000

    def __init__(self, array, n_patches=50, region=None):
        self.array, self.n_patches, self.region = array, n_patches, region
        self.shape, self.dtype = array.shape, array.dtype
        self.largest = 0

    def __len__(self):
        return len(self.array)

    def __getitem__(self, key):
        return InBands(self.array[key], self.n_patches, self.region)

    def read(self, size, *, reuse=False):
        for start in range(0, len(self), size):
            batch = torch.from_numpy(self.array[start : start + size])
            yield (batch if self.region is None else batch[:, self.region]), {}

    def read_bands(self, size):
        for batch, skipped in self.read(size):
            yield [one.flatten(0, -2).split(self.n_patches) for one in batch], skipped


def features(n=24, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(SHAPE[2], SHAPE[2]))
    return (np.random.default_rng(seed + 1).normal(size=(n, *SHAPE)) @ mixing + 5 + shift).astype(np.float32)


@pytest.mark.parametrize(
    ("n_patches", "n_gaussians", "covariance"),
    [(7, 5, "low_rank"), (18, 12, "low_rank"), (50, 1, "low_rank"), (50, 48, "full"), (1000, 5, "low_rank")],
)
def test_bands_of_any_size_give_the_model_of_whole_pictures(n_patches, n_gaussians, covariance):
    how = {"covariance": "full", "distance": "mahalanobis", "dtype": "float64"} if covariance == "full" else {}
    expected = PatchGaussianDetector(4, n_gaussians=n_gaussians, **how).fit(features())
    found = PatchGaussianDetector(4, n_gaussians=n_gaussians, **how).fit(InBands(features(), n_patches))
    assert found.n_samples_seen_ == 24
    new = features(5, seed=1, shift=0.3)
    np.testing.assert_allclose(found.transform(InBands(new, n_patches)), expected.transform(new), rtol=2e-4)
    np.testing.assert_allclose(found.score_samples(InBands(new)), expected.score_samples(new), rtol=2e-4)
    np.testing.assert_allclose(found.score(InBands(new)), expected.score(new), rtol=2e-4)
    np.testing.assert_allclose(found.offset_, expected.offset_, rtol=2e-3)
    np.testing.assert_allclose(found.map_threshold_, expected.map_threshold_, rtol=2e-3)


def test_a_region_is_learnt_and_scored_alone():
    region = np.zeros(SHAPE[:2], bool)
    region[3:20, 2:9] = True
    detector = PatchGaussianDetector(4, n_gaussians=6).fit(InBands(features(), 23, region))
    maps = detector.transform(InBands(features(2, seed=1), 23, region))
    assert (maps[:, ~region] == 0).all()
    assert (maps[:, region] > 0).all()


@pytest.mark.parametrize("parameters", [{"n_gaussians": None}, {"centering": "deferred"}, {"n_random_features": 6}])
def test_detectors_that_need_whole_pictures_take_them(parameters):
    how = {"n_gaussians": 12} | parameters
    expected = PatchGaussianDetector(4, random_state=0, **how).fit(features())
    found = PatchGaussianDetector(4, random_state=0, **how).fit(InBands(features()))
    new = features(3, seed=1)
    np.testing.assert_allclose(found.transform(InBands(new)), expected.transform(new), rtol=2e-4)


def test_partial_fit_goes_on_and_leaves_a_model_as_it_was_after_an_error():
    images = features(30)
    expected = PatchGaussianDetector(4, n_gaussians=12).fit(images)
    found = PatchGaussianDetector(4, n_gaussians=12).fit(InBands(images[:16]))
    matrix = found.pca_.fitted_.state.matrix.clone()
    broken = images[16:].copy()
    broken[3, -1, -1, 0] = np.nan
    with pytest.raises(ValueError, match="contains NaN or infinity"):
        found.partial_fit(InBands(broken))
    assert torch.equal(found.pca_.fitted_.state.matrix, matrix)
    assert found.n_samples_seen_ == 16
    found.partial_fit(InBands(images[16:]))
    np.testing.assert_allclose(found.transform(images[:3]), expected.transform(images[:3]), rtol=2e-4)


def test_memory_needed_counts_no_whole_pictures():
    images = features(40)
    detector = PatchGaussianDetector(4, n_gaussians=12)
    whole, banded = detector.memory_needed(images), detector.memory_needed(InBands(images))
    assert whole.model == banded.model
    assert whole.learning - banded.learning > 40 * images[0].nbytes


@pytest.mark.parametrize(("store", "restore"), [(save, load), (save_skops, load_skops)])
def test_a_pipeline_with_tiles_is_stored_and_finds_a_small_defect_where_it_is(store, restore, tmp_path):
    from sklearn.pipeline import Pipeline

    rng = np.random.default_rng(0)
    images = rng.integers(90, 130, (6, 131, 194, 3), dtype=np.uint8)
    extractor = PatchFeatureExtractor(
        "resnet18", layers=["layer1"], weights=None, tile_size=96, tile_overlap=32, random_state=0
    )
    pipe = Pipeline([("features", extractor), ("detector", PatchGaussianDetector(4, image_score="max"))]).fit(images)
    damaged = images[:1].copy()
    damaged[0, 70:76, 100:106] = 255
    store(pipe, tmp_path / "model")
    again = restore(tmp_path / "model")
    np.testing.assert_array_equal(again[:-1].transform(damaged), pipe[:-1].transform(damaged))
    assert again.score_samples(damaged)[0] < pipe.score_samples(images).min()
    worst = again[-1].predict_regions(again[:-1].transform(damaged))[0][0]
    top, left, height, width = worst.box
    assert top <= 70
    assert left <= 100
    assert 76 <= top + height < 100
    assert 106 <= left + width < 140
