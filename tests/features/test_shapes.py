"""Shapes of large images are known without a pass over them, and they are those of the pass."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from ipca_sklearn import PatchFeatureExtractor
from ipca_sklearn.features.backbones import _shapes
from ipca_sklearn.features.backbones._backbone import Backbone


class Recording(nn.Module):
    """Tells how many pixels with numbers it was given."""

    def __init__(self, asks_numbers=False, is_traceable=True, one_size=False):
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2)
        self.asks_numbers, self.is_traceable, self.one_size = asks_numbers, is_traceable, one_size

    def forward(self, x):
        if not self.is_traceable or self.one_size:
            if not x.is_meta:
                SEEN.append(math.prod(x.shape[2:]))
            if self.one_size and x.shape[2] != 640:
                raise RuntimeError("640 only")
        if self.asks_numbers:
            assert x.isfinite().all()
        return self.pool(self.network(x))


SEEN: list[int] = []


@pytest.fixture(autouse=True)
def nothing_seen():
    SEEN.clear()


def run_of(backbone):
    return backbone.network, backbone._named


NETWORKS = {
    "resnet18": ("resnet18", None),
    "odd strides": ("squeezenet1_1", ["features.3", "features.6"]),
    "own": (nn.Sequential(nn.Conv2d(3, 4, 5, 3, 1), nn.Conv2d(4, 5, 3, 2)), ["0", "1"]),
    "hooks": (Recording(is_traceable=False), ["network.0", "pool"]),
    "numbers": (Recording(asks_numbers=True), ["network.1", "pool"]),
}


@pytest.mark.parametrize("case", NETWORKS)
@pytest.mark.parametrize("size", [(704, 512), (650, 451)])
def test_they_are_those_of_a_pass(case, size, monkeypatch):
    network, layers = NETWORKS[case]
    network, run = run_of(Backbone(network, layers, None, 0, size))
    expected = _shapes._pass(network, run, size)
    extrapolated = _shapes._from_smaller(network, run, size)
    for found in (_shapes.shapes_of_copy(network, run, size), *([] if case == "own" else [extrapolated])):
        assert found.layers == expected.layers
        assert found.n_bytes == pytest.approx(expected.n_bytes, rel=0.05)


def test_tokens_are_counted_from_smaller_images():
    embed = nn.Sequential(nn.Conv2d(3, 6, 16, 16), nn.Flatten(2))
    network, run = run_of(Backbone(embed, ["1"], None, 0, (64, 64)))
    for size in ((1024, 512), (512, 1024), (80, 4096)):
        found = _shapes._from_smaller(network, run, size)
        assert (
            found.layers == {"1": (1, 6, size[0] // 16 * (size[1] // 16))} == _shapes._pass(network, run, size).layers
        )


@pytest.mark.parametrize("asks_numbers", [True, False])
def test_a_large_image_is_not_passed_through_the_network(asks_numbers):
    network = Recording(asks_numbers, is_traceable=False)
    extractor = PatchFeatureExtractor(network, layers=["network.0", "pool"], image_size=(2048, 1024), margin=0)
    images = np.zeros((1, 64, 32, 3), dtype=np.uint8)
    extractor.fit(images)
    assert (extractor.grid_size_, extractor.n_features_out_) == ((1024, 512), 8)
    small = PatchFeatureExtractor(network, layers=["network.0", "pool"], image_size=256, margin=0).fit(images)
    needed, of_small = (one.transform(images).memory_needed for one in (extractor, small))
    assert pickle.loads(pickle.dumps(extractor)).transform(images).memory_needed == needed
    assert 3 * of_small < needed < 40 * of_small
    assert max(SEEN) <= 512 * 512


def test_a_network_of_one_size_that_asks_for_numbers_gets_the_image():
    network = Recording(asks_numbers=True, is_traceable=False, one_size=True)
    extractor = PatchFeatureExtractor(network, layers=["pool"], image_size=640, margin=0)
    extractor.fit(np.zeros((1, 64, 64, 3), dtype=np.uint8))
    assert extractor.grid_size_ == (159, 159)
    assert max(SEEN) == 640 * 640


@pytest.mark.parametrize("asks_numbers", [True, False])
def test_a_large_image_that_the_network_refuses_is_named_with_its_reason(asks_numbers):
    network = nn.Sequential(Recording(asks_numbers, is_traceable=False, one_size=True))
    extractor = PatchFeatureExtractor(network, layers=["0"], image_size=768, margin=0)
    with pytest.raises(ValueError, match=r"backbone Sequential fails on images of 768 x 768 pixels .*: 640 only"):
        extractor.fit(np.zeros((1, 64, 64, 3), dtype=np.uint8))


def test_a_transformer_of_a_fixed_large_size_has_no_pass():
    network = torchvision.models.VisionTransformer(1024, 32, 1, 2, 16, 32).eval()
    calls = []
    network.conv_proj.register_forward_hook(lambda _, given, __: calls.append(given[0].is_meta))
    backbone = Backbone(network, ["encoder.layers.encoder_layer_0"], None, 0, (1024, 1024))
    assert backbone.shapes_of_maps() == [(16, 32, 32)]
    assert all(calls)


def test_asking_changes_nothing_in_the_network():
    network = Recording(is_traceable=False)
    backbone = Backbone(network, ["pool"], None, 0, (1024, 1024))
    before = {name: value.clone() for name, value in backbone.network.state_dict().items()}
    backbone.shapes_of_maps()
    assert all(torch.equal(value, before[name]) for name, value in backbone.network.state_dict().items())
    assert not any(
        part._forward_hooks for part in backbone.network.modules() if part is not backbone.network.network.pool
    )
