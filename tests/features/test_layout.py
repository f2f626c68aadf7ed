"""Rows, columns and channels of a layer are read in the order that the network gives them, or it is asked for."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from ipca_sklearn import PatchFeatureExtractor
from ipca_sklearn.features.backbones._backbone import Backbone
from ipca_sklearn.features.backbones._shapes import order_by_sizes, possible_orders

SIZES = [(32, 32), (48, 32), (32, 64)]


class Ordered(nn.Module):
    """A map of stride 4 with its axes in some order, alone or in a container; `side` is the only one it takes."""

    def __init__(self, order, n_channels=8, form=None, is_traceable=True, side=None, asks_numbers=False):
        super().__init__()
        self.map = nn.Conv2d(3, n_channels, 4, 4)
        self.out = Rearranged(order, form)
        self.is_traceable, self.side, self.asks_numbers = is_traceable, side, asks_numbers

    def forward(self, x):
        if not self.is_traceable:
            assert x.shape[1] == 3
        if self.side is not None and x.shape[2] != self.side:
            raise ValueError("one size only")
        if self.asks_numbers and float(x.mean()) > 99:
            return None
        return self.out(self.map(x))


class Rearranged(nn.Module):
    def __init__(self, order, form):
        super().__init__()
        self.order, self.form = order, form

    def forward(self, x):
        if self.order == "NHWC":
            x = x.permute(0, 2, 3, 1)
        elif self.order == "NCL":
            x = x.flatten(2)
        elif self.order == "NLC":
            x = x.flatten(2).transpose(1, 2)
        return {None: x, "tuple": (x, 3), "list": [x], "dict": {"map": x}}[self.form]


def check(network, size, layer="out"):
    """The layer is what the convolution gives."""
    backbone = Backbone(network, [layer], None, 0, size)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for again in (backbone, pickle.loads(pickle.dumps(backbone))):
            np.testing.assert_allclose(again(images)[0], network.map(images), atol=1e-5)
    assert backbone.shapes_of_maps() == [tuple(network.map(images).shape[1:])]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", ["NCHW", "NHWC", "NLC", "NCL"])
@pytest.mark.parametrize("n_channels", [7, 8, 9, 12, 16, 64, 96, 128])  # among them all sides, and numbers of tokens
def test_each_order_is_read_whatever_the_number_of_channels(order, n_channels, size):
    check(Ordered(order, n_channels), size)


@pytest.mark.parametrize("asks_numbers", [True, False])
@pytest.mark.parametrize("order", ["NCHW", "NHWC", "NLC", "NCL"])
@pytest.mark.parametrize("form", ["tuple", "list", "dict"])
def test_containers_and_networks_that_tracing_or_meta_cannot_follow(order, form, asks_numbers):
    n_channels = 64 if "L" in order else 8
    check(Ordered(order, n_channels, form, is_traceable=False, asks_numbers=asks_numbers), (32, 32))


def test_a_large_image_is_read_in_the_right_order_too():
    for asks_numbers in (False, True):
        check(Ordered("NHWC", 136, is_traceable=False, asks_numbers=asks_numbers), (544, 544))


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_a_square_of_a_network_with_one_size_is_asked_for_and_can_be_stated(order):
    network = Ordered(order, 8, is_traceable=False, side=32)
    with pytest.raises(
        ValueError, match=r"'out' of backbone Ordered gives \(1, 8, 8, 8\).*first or last is not known.*output_fmt"
    ):
        Backbone(network, ["out"], None, 0, (32, 32)).shapes_of_maps()
    extractor = PatchFeatureExtractor(network, layers=["out"], image_size=32, margin=0)
    with pytest.raises(ValueError, match="first or last is not known"):
        extractor.fit(np.zeros((1, 32, 32, 3), dtype=np.uint8))
    network.output_fmt = order
    check(network, (32, 32))
    check(Ordered(order, 12, is_traceable=False, side=32), (32, 32))  # 12 is no side of the map


def test_tokens_of_one_size_are_rows_of_channels_as_transformers_give_them():
    check(Ordered("NLC", 64, is_traceable=False, side=32), (32, 32))
    network = Ordered("NCL", 64, is_traceable=False, side=32)
    network.output_fmt = "NCL"
    check(network, (32, 32))


def test_a_small_swin_as_a_module_with_as_many_channels_as_rows():
    network = torchvision.models.SwinTransformer([4, 4], 16, [1, 1, 1, 1], [2, 2, 2, 2], [4, 4]).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = [network.features[0][0](images), network.features[:2](images), network.features[:4](images)]
        assert expected[0].shape == expected[1].shape == (1, 16, 16, 16)
        found = Backbone(network, ["features.0.0", "features.1", "features.3"], None, 0, (64, 64))(images)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    for ours, last in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(ours, last.permute(0, 3, 1, 2), atol=1e-5)


@pytest.mark.parametrize(("index", "order"), [(0, "NCHW"), (1, "NHWC"), (2, "NHWC"), (5, "NHWC"), (6, "NCHW")])
def test_the_inside_of_a_block_of_convnext_is_read_as_it_is(index, order):
    blocks = [
        torchvision.models.convnext.CNBlockConfig(16, 16, 1),
        torchvision.models.convnext.CNBlockConfig(16, None, 1),
    ]
    network, layer, seen = torchvision.models.ConvNeXt(blocks).eval(), f"features.1.0.block.{index}", []
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (found,) = Backbone(network, [layer], None, 0, (64, 64))(images)
        network.get_submodule(layer).register_forward_hook(lambda *args: seen.append(args[2]))
        network(images)
    assert found.shape == seen[0].shape == (1, 16, 16, 16)
    np.testing.assert_allclose(found, seen[0] if order == "NCHW" else seen[0].permute(0, 3, 1, 2), atol=1e-5)


@pytest.mark.parametrize("side", [224, 384])  # 384 pixels: as many rows as channels, and no other size is taken
def test_a_swin_of_timm_is_read_by_its_name(side):
    pytest.importorskip("timm", reason="pip install timm")
    backbone = Backbone("timm:swin_tiny_patch4_window7_224", [0], None, 0, (side, side))
    assert backbone.shapes_of_maps() == [(96, side // 4, side // 4)]
    with torch.inference_mode():
        (found,) = backbone(torch.zeros(1, 3, side, side))
    assert found.shape == (1, 96, side // 4, side // 4)
    assert found.stride()[1] == 1  # the channels, which the network gives last


def test_orders_that_the_proportions_leave():
    assert possible_orders("list", (224, 224)) == possible_orders("dict", (224, 224)) == []
    assert possible_orders((1, 96, 56, 56), (224, 224)) == ["NCHW"]
    assert possible_orders((1, 56, 56, 96), (224, 224)) == ["NHWC"]
    assert possible_orders((1, 56, 56, 56), (224, 224)) == ["NCHW", "NHWC"]
    assert possible_orders((1, 56, 96, 56), (224, 224)) == possible_orders((1, 5), (224, 224)) == []
    assert possible_orders((1, 197, 768), (224, 224)) == ["NLC"]
    assert possible_orders((1, 768, 196), (224, 224)) == ["NCL"]
    assert order_by_sizes((1, 8, 8, 8), (1, 8, 10, 10)) == "NCHW"
    assert order_by_sizes((1, 8, 8, 8), (1, 10, 10, 8)) == "NHWC"
    assert order_by_sizes((1, 7, 7, 7), (1, 7, 7, 7)) is None  # pooled to one size
    assert order_by_sizes((1, 8, 8, 8), (1, 8, 10)) is None
