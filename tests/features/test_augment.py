"""Training images as they could have looked too, and copies of each that are learnt beside it."""

from __future__ import annotations

import math
import pickle
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from torch import nn

from ipca_sklearn import PatchFeatureExtractor
from ipca_sklearn.features._alignment import moved_back
from ipca_sklearn.features._registration import Pose


def pixels(**params):
    """An extractor whose features are known: the mean colour of each block of 8 x 8 pixels, not normalised."""
    given = {"image_size": 48, "margin": 0, "normalization": (0.0, 1.0), "pooling_size": 1, "random_state": 0}
    return PatchFeatureExtractor(nn.Sequential(nn.AvgPool2d(8)), layers=["0"], **given | params)


def pictures(n=4, size=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def with_copies(extractor, X, size=3):
    """Return the features (n, 1 + copies, H, W, m) of training images and their copies."""
    features = extractor.fit_transform(X)
    return torch.cat([batch for batch, _ in features.read_copies(size)]).unflatten(0, (len(X), -1)).numpy()


@pytest.mark.parametrize("quarter", range(4))
def test_a_quarter_turn_moves_pixels_and_changes_none(quarter):
    image = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    expected = torch.rot90(image, quarter, dims=(1, 2))
    torch.testing.assert_close(moved_back(image, Pose(quarter * math.pi / 2)), expected, atol=1e-4, rtol=0)


def test_a_half_turn_of_an_oblong_image_moves_pixels_and_changes_none():
    image = torch.rand(3, 12, 30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(moved_back(image, Pose(math.pi)), image.flip(1, 2), atol=1e-4, rtol=0)


def test_a_turned_disc_in_an_oblong_image_stays_a_disc():
    y, x = np.mgrid[:41, :61]
    disc = torch.from_numpy((np.hypot(y - 20, x - 30) < 12).astype(np.float32)).repeat(3, 1, 1)
    assert (moved_back(disc, Pose(0.7)) - disc)[:, 5:36, 15:46].abs().mean() < 0.02
    bar = torch.from_numpy(((abs(y - 20) < 2) & (abs(x - 30) < 15)).astype(np.float32)).repeat(3, 1, 1)
    turned = moved_back(bar, Pose(math.pi / 2))
    assert turned[0, 8, 30] == 1 and turned[0, 20, 42] == 0


def test_corners_are_mirrored_pixels_of_the_image():
    image = torch.full((3, 30, 30), 100, dtype=torch.uint8)
    torch.testing.assert_close(moved_back(image, Pose(0.5)), torch.full((3, 30, 30), 100 / 255), atol=1e-6, rtol=0)


def test_flips_are_one_of_the_four_sides_and_copies_are_all_others():
    X = pictures(30, size=16)
    plain = np.asarray(pixels(image_size=16).fit(X).transform(X))
    sides = [plain[:, ::down, ::right] for down, right in product((1, -1), (1, -1))]
    found = np.asarray(pixels(image_size=16, augment="flip").fit_transform(X))
    nearest = np.argmin([abs(found - side).max((1, 2, 3)) for side in sides], axis=0)
    np.testing.assert_allclose(np.array(sides)[nearest, np.arange(30)], found, atol=1e-6)
    assert set(nearest) == {0, 1, 2, 3}
    copies = with_copies(pixels(image_size=16, augment=("flip",), n_augmented=3), X)
    np.testing.assert_allclose(copies[:, 0], plain, atol=1e-6)
    distances = [[abs(copy - side).max() for side in sides] for copy in np.moveaxis(copies, 1, 0)]
    assert sorted(np.argmin(distances, axis=1)) == [0, 1, 2, 3]


def test_copies_are_augmented_alike_whatever_the_batches_and_slices(tmp_path):
    X = pictures(5, size=64)
    extractor = pixels(augment=["random_crop", "rotation", "flip"], n_augmented=3, image_size=64, crop_size=48)
    expected = with_copies(clone(extractor), X)
    assert expected.shape == (5, 4, 6, 6, 3)
    for index in range(1, 4):
        assert np.abs(expected[:, index] - expected[:, index - 1]).max() > 0.05
    for params, size in (({"batch_size": 2}, 1), ({"n_jobs": 2, "batch_size": 7}, 5), ({"cache": tmp_path}, 2)):
        np.testing.assert_allclose(with_copies(clone(extractor).set_params(**params), X, size), expected, atol=1e-6)
    files = [tmp_path / f"{index}.png" for index in range(5)]
    for file, image in zip(files, X, strict=True):
        Image.fromarray(image).save(file)
    np.testing.assert_allclose(with_copies(clone(extractor), files), expected, atol=1e-6)
    features = pickle.loads(pickle.dumps(extractor.fit_transform(X)))[2:]
    part = torch.cat([batch for batch, _ in features.read_copies(2)]).unflatten(0, (3, -1))
    np.testing.assert_allclose(part.numpy(), expected[2:], atol=1e-6)
    np.testing.assert_allclose(np.asarray(features), expected[2:, 0], atol=1e-6)
    other = with_copies(clone(extractor).set_params(random_state=1), X)
    assert np.abs(other[:, 1:] - expected[:, 1:]).max() > 0.05


def test_the_images_beside_their_copies_are_kept_in_the_cache(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extractor = pixels(augment="rotation", n_augmented=2, cache=tmp_path)
        with_copies(extractor, pictures())
    assert len([path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 100]) >= 4


def test_each_copy_of_a_function_has_random_numbers_of_its_own():
    found = with_copies(pixels(augment=lambda image: torch.rand(image.shape), n_augmented=2), pictures())
    values = found[:, 1:].reshape(8, -1)
    assert len(np.unique(values[:, 0])) == 8


def test_an_image_that_cannot_be_read_is_skipped_with_its_copies(tmp_path):
    files = [tmp_path / f"{index}.png" for index in range(4)]
    for file, image in zip(files, pictures(), strict=True):
        Image.fromarray(image).save(file)
    extractor = pixels(augment="rotation", n_augmented=2, on_error="skip").fit(files)
    files[2].write_bytes(b"no image")
    with pytest.warns(UserWarning, match="1 of 4 images could not be read") as caught:
        batches = list(extractor.training_features(files).read_copies(3))
    assert len(caught) == 1
    assert [sorted(skipped) for _, skipped in batches] == [[2], []]
    assert list(extractor.skipped_) == [2]
    assert torch.isnan(batches[0][0][6:]).all() and torch.isfinite(batches[0][0][:6]).all()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_augmented": 2}, "n_augmented=2 copies of each training image need an augment"),
        ({"n_augmented": -1}, "'n_augmented' parameter"),
        ({"augment": ("rotation", "zoom")}, r"augment=\('rotation', 'zoom'\): name one or several of 'flip', "),
        ({"augment": ()}, r"augment=\(\): name one or several"),
        ({"augment": ["rotation", "random_crop"]}, "has nothing to choose from"),
    ],
)
def test_augmentations_that_cannot_be_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        pixels(**params).fit_transform(pictures())
    if "'n_augmented' parameter" not in message:
        with pytest.raises(ValueError, match=message):
            pixels().fit(pictures()).set_params(**params).training_features(pictures())
