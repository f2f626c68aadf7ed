"""Large pictures pass through the network tile by tile, and have the features of the whole picture."""

from __future__ import annotations

import pickle
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ipca_sklearn import FeatureCache, PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.exceptions import AspectRatioWarning, ImageReadError, SkippedImagesWarning
from ipca_sklearn.features import _tiled
from ipca_sklearn.features._tiling import _along


class Small(nn.Module):
    """Strides 4 and 8; each value sees 19 pixels at most."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        )
        self.second = nn.Conv2d(8, 5, 3, stride=2, padding=1)

    def forward(self, images):
        return self.second(self.first(images).relu())


torch.manual_seed(0)
NETWORK = Small()


def pictures(n=2, height=200, width=264, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (n, height, width, 3), dtype=np.uint8)


def extractor(**parameters):
    parameters = {"tile_size": 96, "tile_overlap": 32} | parameters
    return PatchFeatureExtractor(NETWORK, layers=["first", "second"], random_state=0, **parameters)


def whole(size, margin=16, **parameters):
    return extractor(tile_size=None, image_size=size, margin=margin, **parameters)


@pytest.mark.parametrize(
    ("size", "pooling_size", "map_interpolation"),
    [
        ((200, 264), 3, "bilinear"),
        ((200, 264), 1, "nearest"),
        ((192, 256), 3, "nearest"),
        ((64, 400), 3, "bilinear"),
        ((96, 96), 1, "bilinear"),
    ],
)
def test_stitched_features_are_those_of_the_whole_picture(size, pooling_size, map_interpolation):
    images, how = pictures(2, *size), {"pooling_size": pooling_size, "map_interpolation": map_interpolation}
    tiled = extractor(**how).fit(images)
    features = tiled.transform(images)
    assert tiled.image_size_ == tiled.crop_size_ == size
    assert tiled.grid_size_ == (size[0] // 4, size[1] // 4)
    assert tiled.margin_ == 16
    expected = np.asarray(whole(size, **how).fit(images).transform(images))
    np.testing.assert_allclose(np.asarray(features), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.asarray(features[1:]), expected[1:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features[0], expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tile_size", [(64, 128), 160])
def test_the_size_of_tiles_changes_nothing(tile_size):
    images = pictures()
    np.testing.assert_allclose(
        np.asarray(extractor(tile_size=tile_size).fit(images).transform(images)),
        np.asarray(extractor().fit(images).transform(images)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_an_overlap_smaller_than_what_the_network_sees_shows_at_seams_only():
    images = pictures(1)
    made = extractor(tile_overlap=0).fit(images)
    expected = np.asarray(whole((200, 264), margin=0).fit(images).transform(images))
    different = np.abs(np.asarray(made.transform(images)) - expected).max((0, 3)) > 1e-4
    assert different[:, 21:27].any()  # tiles of 96 pixels meet at patch 24
    assert not different[4:20, 4:20].any()


def test_coarser_patches_can_be_asked_for():
    images = pictures(2, 192, 256)
    tiled = np.asarray(extractor(grid_size=(24, 32)).fit(images).transform(images))
    expected = np.asarray(whole((192, 256), grid_size=(24, 32)).fit(images).transform(images))
    np.testing.assert_allclose(tiled, expected, rtol=1e-4, atol=1e-5)


def test_a_region_leaves_out_the_same_patches():
    images, region = pictures(), np.zeros((200, 264), bool)
    region[90:150, 100:250] = True
    tiled = extractor(region=region).fit(images)
    whole_ones = whole((200, 264), region=region).fit(images)
    np.testing.assert_array_equal(tiled.region_, whole_ones.region_)
    expected = np.asarray(whole_ones.transform(images))
    np.testing.assert_allclose(np.asarray(tiled.transform(images)), expected, rtol=1e-4, atol=1e-5)
    bands = [sum(map(len, picture)) for (picture, *_), _ in tiled.transform(images).read_bands(1)]
    assert bands == [tiled.region_.sum()] * 2


def test_bands_follow_each_other_and_can_be_read_again():
    images = pictures(3)
    features = extractor().fit(images).transform(images)
    flat = np.asarray(features).reshape(3, -1, features.shape[-1])
    seen = 0
    for pictures_of_step, skipped in features.read_bands(2):
        for picture in pictures_of_step:
            for _ in range(2):
                bands = list(picture)
                assert 1 < len(bands) == len({id(band) for band in bands})
                np.testing.assert_array_equal(torch.cat(bands), flat[seen])
            seen += 1
        assert skipped == {}
    assert seen == 3


@pytest.fixture
def network(monkeypatch):
    """The number of tiles that pass through the network at a time."""
    seen, original = [], _tiled._run_network
    monkeypatch.setattr(_tiled, "_run_network", lambda tiles, *rest: (seen.append(len(tiles)), original(tiles, *rest)))
    return seen


@pytest.mark.parametrize("with_region", [False, True])
def test_bands_are_kept_in_a_cache_and_read_from_it(tmp_path, network, with_region):
    images, how = pictures(3), {"on_error": "skip"}
    if with_region:
        how["region"] = np.zeros((200, 264), bool)
        how["region"][90:150, 100:250] = True
    cache = FeatureCache(tmp_path)
    made = extractor(cache=cache, **how).fit(images)
    expected = np.asarray(extractor(**how).fit(images).transform(images))
    n_tiles = sum(network)
    network.clear()
    for _ in range(2):
        np.testing.assert_array_equal(np.asarray(made.transform(images)), expected)
        assert sum(network) == n_tiles
    assert cache.n_images == 3
    files = sorted(tmp_path.glob("*/*/*.npy"))
    assert len(files) == 3 * (2 if with_region else 4)
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-9] + bytes(9))
    found = np.asarray(made.transform(images[[2, 0, 1]]))
    assert sum(network) == n_tiles + 2 * n_tiles // len(files)
    np.testing.assert_array_equal(found, expected[[2, 0, 1]])
    other = extractor(cache=cache, tile_size=160, **how).fit(images)
    np.testing.assert_allclose(np.asarray(other.transform(images)), expected, rtol=1e-4, atol=1e-5)
    assert cache.n_images == 6  # other tiles round otherwise


def test_a_fit_with_a_cache_runs_the_network_once_for_each_picture(tmp_path, network):
    images = pictures(10)
    expected, cached = (
        PatchGaussianDetector(2, n_gaussians=12).fit(extractor(cache=cache).fit(images).transform(images))
        for cache in (None, tmp_path)
    )
    n_tiles = 10 * 4 * 5
    assert sum(network) > 5 * n_tiles
    network.clear()
    again = PatchGaussianDetector(2, n_gaussians=12).fit(extractor(cache=tmp_path).fit(images).transform(images))
    assert network == []
    for detector in (cached, again):
        assert detector.offset_ == expected.offset_
        np.testing.assert_array_equal(detector.calibration_scores_, expected.calibration_scores_)


def test_the_largest_picture_that_patches_fill_is_inspected_in_native_pixels():
    images = pictures(2, 203, 266)
    made = extractor().fit(images)
    assert made.image_size_ == (203, 266)
    assert made.crop_size_ == (200, 264)
    assert made.covered_box((203, 266)) == (2, 1, 200, 264)
    cut = images[:, 2:202, 1:265]
    expected = np.asarray(extractor().fit(cut).transform(cut))
    np.testing.assert_allclose(np.asarray(made.transform(images)), expected, rtol=1e-4, atol=1e-5)


def test_pictures_of_other_sizes_are_resized_to_the_first_one():
    images = [pictures(1)[0], pictures(1, 100, 132)[0], pictures(1, 200, 400)[0]]
    made = extractor().fit(images)
    with pytest.warns(AspectRatioWarning, match="1 of 3 images"):
        assert np.asarray(made.transform(images)).shape == (3, 50, 66, 13)


def test_pictures_that_cannot_be_read_are_skipped(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(paths, pictures(3), strict=True):
        Image.fromarray(image).save(path)
    expected = np.asarray(extractor().fit(paths).transform(paths))
    paths[1].write_bytes(paths[1].read_bytes()[:2000])
    features = extractor(on_error="skip").fit(paths).transform(paths)
    with pytest.warns(SkippedImagesWarning, match="1 of 3 images"):
        found = np.asarray(features)
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[::2], expected[::2])
    assert list(features.skipped) == [1]
    with pytest.raises(ImageReadError, match=r"1\.png"):
        np.asarray(extractor().fit(paths).transform(paths))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"tile_size": 64, "tile_overlap": 64},
            "tile_overlap=64 leaves nothing of tiles of 64 x 64 pixels: take tile_overlap=32 or larger tiles",
        ),
        (
            {"tile_size": (96, 512), "tile_overlap": "auto"},
            "tile_overlap=auto, here 128 pixels, leaves nothing of tiles of 96 x 512 pixels: take tile_overlap=32 or",
        ),
        ({"tile_size": 32, "tile_overlap": 32}, r"leaves nothing of tiles of 32 x 32 pixels: take larger tiles"),
        ({"tile_size": 100}, "multiples of 32; take 96 and 32"),
        ({"tile_overlap": 20}, "multiples of 32; take 96 and 32"),
        ({"margin": 8}, "margin=8: with tile_size the margin is half of tile_overlap"),
        ({"n_augmented": 2, "augment": "flip"}, "n_augmented=2: copies are of whole pictures"),
        ({"crop_size": (198, 264)}, r"crop_size=\(198, 264\) holds no whole number of patches .* take \(196, 264\)"),
        ({"grid_size": 7}, "grid_size=.* gives patches of .* which do not divide"),
        ({"tile_size": (1, 2, 3)}, r"tile_size=\(1, 2, 3\) is neither an integer nor two"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(parameters, message):
    with pytest.raises(ValueError, match=message):
        extractor(**parameters).fit(pictures())


def test_a_transformer_that_takes_one_size_says_which_tiles_it_takes():
    made = PatchFeatureExtractor("vit_b_16", weights=None, tile_size=512, tile_overlap=32)
    with pytest.raises(ValueError, match="takes 224 x 224 pixels only: set tile_size=224"):
        made.fit(pictures(1))


def test_a_tile_that_holds_the_whole_picture_is_told():
    with pytest.warns(UserWarning, match="holds the whole picture of 64 x 96 pixels"):
        made = extractor(tile_size=256).fit(pictures(1, 64, 96))
    assert made.grid_size_ == (16, 24)


def test_nothing_is_told_of_pictures_of_several_tiles():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.asarray(extractor().fit(pictures(1)).transform(pictures(1)))


def test_a_fitted_extractor_can_be_pickled_and_its_features_too():
    images = pictures(1)
    made = extractor().fit(images)
    expected = np.asarray(made.transform(images))
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(made)).transform(images)), expected)
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(made.transform(images)))), expected)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("length", [40, 96, 97, 1000, 3000, 4000])
@pytest.mark.parametrize("side", [32, 96, 480])
def test_tiles_cover_a_side_on_the_strides(length, side, fixed):
    inner, starts = _along(length, side, 32, fixed=fixed)
    assert inner == side if fixed else inner <= side
    assert all(start % 32 == 0 for start in (inner, *starts))
    assert starts[0] == 0
    assert starts[-1] + inner >= length
    assert all(0 < later - earlier <= inner for earlier, later in pairwise(starts))
    if not fixed:
        assert inner * len(starts) < length + 32 * len(starts)


def test_memory_needed_follows_the_band_and_not_the_picture():
    images = [np.zeros((rows, 264, 3), np.uint8) for rows in (400, 4000)]
    small, large = (extractor().fit([image]).transform([image]) for image in images)
    grids = [4 * np.prod(features.shape) for features in (small, large)]
    floats = 2 * 4 * 3 * 264 * (4000 - 400)  # of the picture itself
    decoded = 12 * 264 * (4000 - 400)
    assert large.memory_needed - small.memory_needed == pytest.approx(floats + decoded, rel=0.1)
    assert grids[1] - grids[0] > 3 * small.bytes_of_band
