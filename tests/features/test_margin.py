"""The network sees mirrored pixels beyond the edges, and maps are of the image alone."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from ipca_sklearn import PatchFeatureExtractor
from ipca_sklearn.features._grid import resize_matrix
from ipca_sklearn.persistence import load_skops, save_skops


def pictures(n=3, height=64, width=96):
    return np.random.default_rng(0).integers(0, 255, (n, height, width, 3), dtype=np.uint8)


def mirrored(images, margin):
    return np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect")


def extractor(**parameters):
    parameters = {"layers": ["layer1", "layer3"], "image_size": (64, 96)} | parameters
    return PatchFeatureExtractor("resnet18", weights=None, random_state=0, **parameters)


@pytest.mark.parametrize("pooling_size", [1, 3, 5])
@pytest.mark.parametrize("map_interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("grid_size", [None, (8, 12)])
def test_features_are_those_in_the_middle_of_images_mirrored_by_hand(pooling_size, map_interpolation, grid_size):
    images, settings = pictures(), {"pooling_size": pooling_size, "map_interpolation": map_interpolation}
    made = extractor(margin=16, grid_size=grid_size, **settings).fit(images)
    rows, columns = (16, 24) if grid_size is None else grid_size
    assert made.grid_size_ == (rows, columns)
    assert made.image_size_ == made.crop_size_ == (64, 96)
    sizes = {"image_size": (96, 128), "grid_size": (rows * 96 // 64, columns * 128 // 96)}
    larger = extractor(**sizes, margin=0, **settings)
    by_hand = np.asarray(larger.fit(images).transform(mirrored(images, 16)))
    around = rows // 4
    expected = by_hand[:, around : around + rows, around : around + columns]
    np.testing.assert_allclose(np.asarray(made.transform(images)), expected, rtol=1e-4, atol=1e-4)


def test_with_a_margin_an_even_image_looks_the_same_at_its_edge():
    images = np.full((1, 64, 64, 3), 200, dtype=np.uint8)

    def spread(margin):
        features = extractor(layers=["layer1"], image_size=64, margin=margin).fit(images).transform(images)
        return np.ptp(np.asarray(features), axis=(1, 2)).max()

    assert spread(32) < 1e-4
    assert spread(0) > 0.1


def test_patches_far_from_the_edge_are_not_changed():
    images = pictures(height=128, width=128)
    with_margin, without = (
        np.asarray(extractor(layers=["layer1"], image_size=128, margin=margin).fit(images).transform(images))
        for margin in (16, 0)
    )
    np.testing.assert_allclose(with_margin[:, 12:-12, 12:-12], without[:, 12:-12, 12:-12], rtol=1e-4, atol=1e-5)
    assert np.abs(with_margin[:, 0] - without[:, 0]).max() > 0.01


@pytest.mark.parametrize("side", [1, 7, 18])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize(("margin", "length"), [(0, 64), (5, 64), (16, 33)])
def test_each_patch_is_a_weighted_mean_of_values(side, interpolation, margin, length):
    matrix = resize_matrix(side, 9, interpolation, 3, margin, length, torch.device("cpu"))
    assert matrix.shape == (9, side)
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(1), torch.ones(9))
    if interpolation == "bilinear":  # the nearest of two values as near is the one on the right
        torch.testing.assert_close(matrix, matrix.flip(0, 1), rtol=0, atol=1e-6)


def test_a_matrix_finds_the_middle_of_a_ramp_with_a_margin():
    """Values at the middles of 10 pixels each, of 20 pixels and a margin of 40 at either end."""
    values = torch.arange(-35.0, 60.0, 10.0)
    matrix = resize_matrix(len(values), 4, "bilinear", 1, 40, 20, torch.device("cpu"))
    torch.testing.assert_close(matrix @ values, torch.tensor([2.5, 7.5, 12.5, 17.5]))


def test_the_grid_leaves_out_the_margin_where_strides_do_not_divide_it():
    images = pictures(height=50, width=70)
    made = extractor(image_size=(50, 70), margin=5).fit(images)
    assert made.grid_size_ == (12, 18)
    assert np.isfinite(np.asarray(made.transform(images))).all()


def test_a_margin_survives_files_and_has_its_own_place_in_the_cache(tmp_path):
    images = pictures()
    made = extractor(margin=16, cache=tmp_path / "cache").fit(images)
    expected = np.asarray(made.transform(images))
    without = np.asarray(extractor(margin=0, cache=tmp_path / "cache").fit(images).transform(images))
    assert np.abs(expected - without).max() > 0.01
    save_skops(made, tmp_path / "extractor.skops")
    for again in (pickle.loads(pickle.dumps(made)), load_skops(tmp_path / "extractor.skops")):
        np.testing.assert_array_equal(np.asarray(again.transform(images)), expected)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"image_size": 64}, 16),
        ({"image_size": (20, 64)}, 10),
        ({"image_size": 1}, 0),
        ({"image_size": 64, "crop_size": 64}, 0),
        ({"image_size": 64, "crop_size": 64, "margin": 4}, 4),
    ],
)
def test_the_automatic_margin(parameters, expected):
    assert extractor(**parameters).fit(pictures()).margin_ == expected


def test_networks_of_patches_have_no_automatic_margin():
    made = PatchFeatureExtractor("vit_b_32", weights=None, layers=["encoder.layers.encoder_layer_0"], image_size=64)
    assert made.fit(pictures()).margin_ == 0


def test_a_network_of_one_size_says_what_leaves_the_margin_out():
    class OneSize(nn.Sequential):
        def forward(self, x):
            if x.shape[-1] != 32:
                raise RuntimeError("32 pixels, please")
            return super().forward(x)

    made = PatchFeatureExtractor(OneSize(nn.Conv2d(3, 4, 3, 2, 1)), layers=["0"], image_size=32)
    with pytest.raises(ValueError, match=r"64 x 64 pixels .*, and margin=16 at each edge; 0 leaves it out\): 32 pix"):
        made.fit(pictures())
    assert made.set_params(margin=0).fit(pictures()).margin_ == 0


def test_more_than_an_image_cannot_be_mirrored():
    with pytest.raises(
        ValueError, match=r"margin=64 mirrors more pixels than images of 64 x 96 have; it is 63 at most"
    ):
        extractor(margin=64).fit(pictures())


def test_a_network_of_the_users_own_has_a_margin_too():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
    made = PatchFeatureExtractor(network, layers=["1"], image_size=32, margin=8).fit(pictures())
    assert made.transform(pictures()).shape == (3, 16, 16, 4)


def test_patches_of_a_transformer_must_fit_with_the_margin():
    with pytest.raises(ValueError, match=r"images of 240 x 240 pixels .* less a margin at both sides"):
        PatchFeatureExtractor("vit_b_32", weights=None, image_size=224, margin=8).fit(pictures())
