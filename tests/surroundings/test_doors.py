"""Models that were made in a program's own surroundings serve in others, and code of the user keeps its own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.pipeline import Pipeline
from torch import Tensor, nn

from ipca_sklearn import BatchedIncrementalPCA, PatchFeatureExtractor, PatchGaussianDetector, export, linalg
from ipca_sklearn._utils._surroundings import as_in_a_fresh_process, default_device
from tests.surroundings.bits import forget_derived

IMAGES = np.random.default_rng(0).integers(0, 255, (24, 40, 40, 3), dtype=np.uint8)
SAMPLES = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


class OneConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, stride=4, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.convolution(images)


class DataDependent(OneConvolution):
    """Networks that torch.fx cannot trace run their own code, with what it sets, each time."""

    dtype = torch.float32

    def forward(self, images: Tensor) -> Tensor:
        if float(images.sum()) == np.inf:
            raise ValueError
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype != torch.float32):
            return self.convolution(images)


class OwnAutocast(DataDependent):
    dtype = torch.bfloat16


class NamesNoDevice(DataDependent):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + torch.zeros(1) * float(images.sum()))


@contextmanager
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def meta_by_default() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


def extractor(network: Any, **options: Any) -> PatchFeatureExtractor:
    options = {"layers": ["convolution"], "image_size": 32, "crop_size": 32, "random_state": 0, **options}
    return PatchFeatureExtractor(network, **options)


def features(network: Any, **options: Any) -> np.ndarray:
    return np.asarray(extractor(network, **options).fit_transform(IMAGES))


def new_pipe() -> Pipeline:
    return Pipeline([("features", extractor(OneConvolution())), ("detector", PatchGaussianDetector(2, smoothing=1))])


def test_what_is_learnt_in_inference_mode_trains_and_pickles_outside_of_it() -> None:
    forget_derived()
    with torch.inference_mode():
        pca = BatchedIncrementalPCA(2).fit(SAMPLES)
        pca.transform(SAMPLES)
        read = pickle.loads(pickle.dumps(pca))
        pipe = new_pipe().fit(IMAGES)
        module = export.to_torch(pipe)
    for name in ("components_", "mean_", "explained_variance_", "noise_variance_"):
        assert not getattr(pca, name).is_inference(), name
    pca.partial_fit(SAMPLES).merge(read.partial_fit(SAMPLES))
    weight = torch.ones(8, requires_grad=True)
    (pca.components_ * weight).sum().backward()
    assert weight.grad is not None
    images = torch.rand(1, 3, 40, 40, requires_grad=True)
    module(images)[1].sum().backward()
    assert images.grad is not None and float(images.grad.abs().sum()) > 0
    assert not [name for name, value in module.state_dict().items() if value.is_inference()]
    pipe[-1].partial_fit(pipe[0].transform(IMAGES))


def test_a_sample_that_needs_gradients_is_learnt_with_any_number_of_threads() -> None:
    samples = torch.randn(16, 5000, 8, generator=torch.Generator().manual_seed(0))
    state = linalg.empty_state(5000, 8)
    expected = linalg.update(state, samples, n_rows=2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            found = linalg.update(state, samples.requires_grad_(), n_rows=2)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found.mean, expected.mean)


def test_a_network_keeps_its_own_autocast_and_has_none_of_the_program() -> None:
    torch.manual_seed(0)
    plain, own = DataDependent(), OwnAutocast()
    own.load_state_dict(plain.state_dict())
    expected, rounded = features(plain), features(own)
    assert 0 < np.abs(rounded - expected).max() < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(features(plain), expected)
        np.testing.assert_array_equal(features(own), rounded)


def test_amp_means_the_same_within_autocast() -> None:
    network = DataDependent()
    expected, mixed = features(network), features(OneConvolution(), amp=True)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.float16):
        np.testing.assert_array_equal(features(network), expected)
    assert np.isfinite(mixed).all()


def test_a_network_that_names_no_device_runs_where_its_images_are() -> None:
    network = NamesNoDevice()
    expected = features(network)
    with meta_by_default():
        np.testing.assert_array_equal(features(network), expected)


def test_a_network_of_doubles_is_given_doubles() -> None:
    network = OneConvolution()
    expected = features(network)
    double = copy.deepcopy(network).double()
    found = features(double)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with double_by_default():
        np.testing.assert_array_equal(features(double), found)


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0", "timm:resnet10t"])
def test_a_named_network_is_the_same_in_a_program_of_doubles_on_another_device(backbone: str) -> None:
    if backbone.startswith("timm"):
        pytest.importorskip("timm")
    options = {"layers": None, "weights": None, "random_state": 3}
    expected = features(backbone, **options)
    with double_by_default(), meta_by_default(), torch.inference_mode():
        made = extractor(backbone, **options).fit(IMAGES)
        np.testing.assert_array_equal(np.asarray(made.transform(IMAGES)), expected)
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(made)).transform(IMAGES)), expected)


def test_an_augmentation_draws_the_same_numbers() -> None:
    def noisy(image: Tensor) -> Tensor:
        turned = image.float().flatten(1) @ torch.eye(image[0].numel())  # a product, which autocast rounds
        return (turned.view(image.shape) / 255 + 0.1 * torch.rand(image.shape)).clamp(0, 1)

    network = OneConvolution()
    expected = features(network, augment=noisy)
    with double_by_default(), meta_by_default(), torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(features(network, augment=noisy), expected)


def test_an_exported_file_does_not_depend_on_the_program(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pipe = new_pipe().fit(IMAGES)
    export.to_onnx(pipe, tmp_path / "plain.onnx")
    with double_by_default(), meta_by_default(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        export.to_onnx(pipe, tmp_path / "other.onnx", check=list(IMAGES[:2]))
    given = {"images": IMAGES.transpose(0, 3, 1, 2)}
    results = [
        onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run(None, given)
        for name in ("plain.onnx", "other.onnx")
    ]
    for plain, other in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, other)


def test_a_default_dtype_that_is_changed_meanwhile_is_kept() -> None:
    with double_by_default():
        with as_in_a_fresh_process(CPU):
            assert torch.get_default_dtype() == torch.float32
            with as_in_a_fresh_process(CPU):
                pass
            assert torch.get_default_dtype() == torch.float32
            torch.set_default_dtype(torch.bfloat16)
        assert torch.get_default_dtype() == torch.bfloat16


def test_no_default_device_is_set_where_the_program_has_none() -> None:
    with default_device(torch.device("meta")):
        assert torch.zeros(1).device == CPU
    with meta_by_default(), default_device(CPU):
        assert torch.zeros(1).device == CPU
