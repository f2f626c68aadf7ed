"""Pipelines as torch modules and ONNX files: the same scores, other sizes and numbers of images, bad input."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from functools import cache
from unittest import mock

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from torch import nn

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.exceptions import ImageReadError
from ipca_sklearn.export import to_onnx, to_torch
from ipca_sklearn.features._settings import settings_of

DETECTORS = {
    "default": {},
    "smoothed": {"distance": "residual", "smoothing": 1.0, "image_score": 0.1},
    "mean": {"distance": "ppca", "image_score": "mean", "n_random_features": 8, "random_state": 0},
    "padim": {"covariance": "full", "distance": "mahalanobis", "n_random_features": 8, "random_state": 0},
    "paper": {"distance": "mahalanobis", "centering": "deferred", "dtype": "float64"},
}

# Patches that share a Gaussian, on a grid of 8 x 8.
SHARED = {
    "cells": {"n_gaussians": 16},
    "uneven": {"n_gaussians": 7, "distance": "ppca", "image_score": 0.05},
    "one": {"n_gaussians": 1, "distance": "residual", "image_score": "max"},
    "none": {"n_gaussians": None, "image_score": 0.1},
    "region": {"n_gaussians": 6, "smoothing": 1.0, "image_score": 0.2},
    "features": {"n_gaussians": 5, "n_random_features": 40, "random_state": 0, "distance": "mahalanobis"},
    "padim": {
        "n_gaussians": 4, "covariance": "full", "distance": "mahalanobis", "n_random_features": 8, "random_state": 0
    },
}  # fmt: skip


def pictures(n, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (n, height, width, 3), dtype=np.uint8)


def fitted(detector="default", interpolation="nearest"):
    """Return a pipeline of its own for each test: copies of one fit for each pair of parameters."""
    return copy.deepcopy(_fitted(detector, interpolation))


@cache
def _fitted(detector, interpolation):
    extractor = PatchFeatureExtractor(
        "resnet18",
        weights=None,
        layers=["layer1", "layer2"],
        image_size=40,
        crop_size=32,
        margin=8 if interpolation == "bilinear" else 0,
        interpolation=interpolation,
        random_state=0,
    )
    steps = [("features", extractor), ("detector", PatchGaussianDetector(3, **DETECTORS[detector]))]
    return Pipeline(steps).fit(pictures(20, 90, 70))


def sharing(detector):
    region = None
    if detector == "region":
        region = np.zeros((90, 70), bool)
        region[20:70, 15:60] = True
    extractor = PatchFeatureExtractor(
        "resnet18", weights=None, layers=["layer1", "layer2"], image_size=40, crop_size=32, region=region,
        random_state=0,
    )  # fmt: skip
    steps = [("features", extractor), ("detector", PatchGaussianDetector(**SHARED[detector]))]
    return Pipeline(steps).fit(pictures(20, 90, 70))


def channels_first(images):
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_the_module_scores_as_the_pipeline(detector, interpolation):
    pipe = fitted(detector, interpolation)
    module = to_torch(pipe)
    for images in (pictures(5, 90, 70, seed=1), pictures(1, 33, 217, seed=2)):
        score, maps = module(torch.from_numpy(channels_first(images)))
        np.testing.assert_allclose(score, pipe.score_samples(images), rtol=1e-5)
        np.testing.assert_allclose(maps, pipe.transform(images), rtol=1e-4, atol=1e-5)
        score, _ = module(torch.from_numpy(channels_first(images)).float() / 255)
        floats = images.astype(np.float32) / 255
        np.testing.assert_allclose(score, pipe.score_samples(floats), rtol=1e-4)


@pytest.mark.parametrize("detector", SHARED)
def test_patches_that_share_a_gaussian_score_in_modules_and_files_as_in_the_pipeline(detector, tmp_path):
    pipe = sharing(detector)
    module, images = to_torch(pipe), pictures(5, 90, 70, seed=1)
    n_gaussians = SHARED[detector]["n_gaussians"] or 64
    assert module._distances._rows.shape[0] == pipe[-1].n_gaussians_ <= n_gaussians
    expected = pipe.score_samples(images), pipe.transform(images)
    score, maps = module(torch.from_numpy(channels_first(images)))
    np.testing.assert_allclose(score, expected[0], rtol=1e-5)
    np.testing.assert_allclose(maps, expected[1], rtol=1e-4, atol=1e-5)
    if detector not in ("uneven", "region", "features"):  # files of the others differ by the shapes of their tensors
        return
    to_onnx(pipe, tmp_path / "model.onnx", check=images[:2])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    score, maps = session.run(None, {"images": channels_first(images)})
    np.testing.assert_allclose(score, expected[0], rtol=1e-4)
    np.testing.assert_allclose(maps, expected[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_exports_that_take_floats_score_as_the_pipeline_scores_files(interpolation, tmp_path):
    pipe = fitted("default", interpolation)
    rows, columns = np.mgrid[:90, :70] / 90
    wave = 0.5 + 0.3 * np.sin(6 * columns) * np.cos(5 * rows)  # rounding would move its levels together
    image = (255 * wave[..., None] * [1, 0.9, 0.8]).round().astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    expected = pipe.score_samples([tmp_path / "x.png"])
    floats = channels_first(image[None].astype(np.float32) / 255)
    score, _ = to_torch(pipe)(torch.from_numpy(floats))
    np.testing.assert_allclose(score, expected, rtol=1e-4)
    to_onnx(pipe, tmp_path / "x.onnx", dtype="float32", check=[tmp_path / "x.png"])
    score, _ = onnxruntime.InferenceSession(tmp_path / "x.onnx").run(None, {"images": floats})
    np.testing.assert_allclose(score, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("detector", "interpolation", "dtype"),
    [
        ("default", "nearest", "uint8"),
        ("smoothed", "bilinear", "uint8"),
        ("paper", "bilinear", "float32"),
        ("padim", "nearest", "uint8"),
    ],
)
def test_the_file_scores_as_the_pipeline_for_any_number_and_size_of_images(tmp_path, detector, interpolation, dtype):
    pipe = fitted(detector, interpolation)
    to_onnx(pipe, tmp_path / "model.onnx", dtype=dtype)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for images in (pictures(1, 20, 30, seed=1), pictures(7, 151, 64, seed=2)):
        images = images if dtype == "uint8" else images.astype(np.float32) / 255
        score, maps = session.run(None, {"images": channels_first(images)})
        np.testing.assert_allclose(score, pipe.score_samples(images), rtol=1e-4)
        np.testing.assert_allclose(maps, pipe.transform(images), rtol=1e-3, atol=1e-4)
    stored = session.get_modelmeta().custom_metadata_map
    assert float(stored["offset"]) == pipe[-1].offset_
    assert float(stored["map_threshold"]) == pipe[-1].map_threshold_
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_file_is_written_if_given_images_have_the_same_scores(tmp_path, monkeypatch):
    pipe, images = fitted(), pictures(2, 50, 60, seed=3)
    Image.fromarray(images[0]).save(tmp_path / "real.png")
    checked = [tmp_path / "real.png", images[1], Image.fromarray(images[1])]
    to_onnx(pipe, tmp_path / "checked.onnx", check=checked)
    to_onnx(pipe, tmp_path / "floats.onnx", check=images, dtype="float32")
    assert (tmp_path / "checked.onnx").is_file() and (tmp_path / "floats.onnx").is_file()
    with monkeypatch.context() as patch:
        patch.setattr("ipca_sklearn.export._onnx.LARGEST_DIFFERENCE", 1e-12)
        with pytest.raises(ValueError, match=r"real\.png: the exported file differs .*1e-12 is allowed"):
            to_onnx(pipe, tmp_path / "new.onnx", check=checked)
    monkeypatch.setattr(torch.onnx, "export", mock.Mock(side_effect=AssertionError("images are read first")))
    with pytest.raises(ImageReadError, match="gone"):
        to_onnx(pipe, tmp_path / "new.onnx", check=[tmp_path / "gone.png"])
    assert not (tmp_path / "new.onnx").exists()


def test_a_module_is_as_small_as_its_components_and_network():
    pipe = fitted()
    module = to_torch(pipe)
    network = sum(value.numel() for value in settings_of(pipe[0]).backbone.state_dict().values())
    n_patches, n_components, n_features = pipe[-1].pca_.components_.shape
    numbers = sum(value.numel() for value in module.state_dict().values())
    gaussians = n_patches * (n_components + 2) * n_features
    assert gaussians < numbers - network < 1.05 * gaussians + 1000


@pytest.mark.parametrize("detector", ["default", "padim", "paper"])
def test_components_in_float16_take_half_of_the_bytes_and_score_alike(detector):
    pipe = fitted(detector)
    images = torch.from_numpy(channels_first(pictures(5, 90, 70, seed=1)))
    whole, half = to_torch(pipe), to_torch(pipe, components_dtype="float16")
    assert half._distances._rows.dtype == torch.float16
    assert whole._distances._rows.nbytes == 2 * half._distances._rows.nbytes
    for expected, found in zip(whole(images), half(images), strict=True):
        assert found.dtype == torch.float32
        assert not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_components_that_float16_cannot_hold_are_refused(monkeypatch):
    pipe = fitted()
    with pytest.raises(ValueError, match="'float16'"):
        to_torch(pipe, components_dtype="bfloat16")
    operator = pipe[1].distance_operator()
    large = replace(operator, rows=operator.rows * 1e6)
    monkeypatch.setattr(PatchGaussianDetector, "distance_operator", lambda *_: large)
    with pytest.raises(ValueError, match="beyond 65504"):
        to_torch(pipe, components_dtype="float16")


def test_what_the_pipeline_learns_later_has_no_effect():
    pipe, images = fitted(), pictures(3, 90, 70, seed=1)
    module = to_torch(pipe)
    before, _ = module(torch.from_numpy(channels_first(images)))
    pipe[-1].partial_fit(pipe[0].transform(images))
    after, _ = module(torch.from_numpy(channels_first(images)))
    assert torch.equal(before, after)
    assert not np.allclose(after, pipe.score_samples(images))


class Branching(nn.Module):
    """torch.fx cannot trace either condition; torch.export can follow the one that depends on the shape alone."""

    def __init__(self, on_values):
        super().__init__()
        self.on_values = on_values
        self.stem, self.act = nn.Conv2d(3, 4, 4, 4), nn.ReLU(inplace=True)
        self.norm, self.body = nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)
        self.head = nn.Linear(8, 30_000)  # for images of another size

    def forward(self, x):
        if x.shape[1] != 3 or (self.on_values and x.sum() > 1e9):
            raise ValueError("no image")
        return self.head(self.body(self.act(self.norm(self.stem(x)))))


def branching(on_values):
    torch.manual_seed(0)
    extractor = PatchFeatureExtractor(
        Branching(on_values), layers=["norm", "body"], image_size=40, crop_size=32, random_state=0
    )
    return Pipeline([("features", extractor), ("detector", PatchGaussianDetector(3))]).fit(pictures(20, 90, 70))


@pytest.mark.parametrize("on_values", [False, True])
def test_a_network_with_hooks_scores_in_a_module_as_in_the_pipeline(on_values):
    pipe, images = branching(on_values), pictures(5, 90, 70, seed=1)
    score, maps = to_torch(pipe)(torch.from_numpy(channels_first(images)))
    np.testing.assert_allclose(score, pipe.score_samples(images), rtol=1e-4)
    np.testing.assert_allclose(maps, pipe.transform(images), rtol=1e-3, atol=1e-4)


def test_a_network_with_hooks_is_written_if_torch_export_can_follow_it(tmp_path):
    pipe = branching(on_values=False)
    to_onnx(pipe, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for images in (pictures(1, 20, 30, seed=1), pictures(7, 151, 64, seed=2)):
        score, maps = session.run(None, {"images": channels_first(images)})
        np.testing.assert_allclose(score, pipe.score_samples(images), rtol=1e-4)
        np.testing.assert_allclose(maps, pipe.transform(images), rtol=1e-3, atol=1e-4)
    assert (tmp_path / "model.onnx").stat().st_size < 4 * 8 * 30_000  # the head is not in it


def test_a_network_that_torch_export_cannot_follow_is_named(tmp_path):
    message = r"(?s)backbone Branching cannot be written as ONNX.*GuardOnDataDependent.*persistence\.save"
    with pytest.raises(RuntimeError, match=message) as raised:
        to_onnx(branching(on_values=True), tmp_path / "model.onnx")
    assert len(str(raised.value)) < 1000
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        to_onnx(fitted(), path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_model_beyond_two_gigabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ipca_sklearn.export._onnx._MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="lower n_components"):
        to_onnx(fitted(), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "wrong", [PatchGaussianDetector(), Pipeline([("network", PatchFeatureExtractor())]), nn.ReLU()]
)
def test_other_things_than_a_pipeline_of_both_are_refused(wrong):
    with pytest.raises(TypeError, match="Pipeline of PatchFeatureExtractor and PatchGaussianDetector"):
        to_torch(wrong)


def test_an_unfitted_pipeline_and_an_unknown_dtype_are_refused(tmp_path):
    pipe = Pipeline([("features", PatchFeatureExtractor()), ("detector", PatchGaussianDetector())])
    with pytest.raises(NotFittedError):
        to_torch(pipe)
    with pytest.raises(ValueError, match="'uint8' or 'float32'"):
        to_onnx(pipe, tmp_path / "model.onnx", dtype="int8")
