"""A layer's features do not depend on which other layers are asked for, whatever works in place behind it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from ipca_sklearn.features.backbones._backbone import Backbone
from ipca_sklearn.features.backbones._efficientnet_lite import EfficientNetLite
from ipca_sklearn.features.backbones._hooks import HookedNetwork
from ipca_sklearn.features.backbones._networks import default_layers

SIDE = 32


def noise(side=SIDE, seed=0):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def maps(network, layers, side=SIDE):
    """Layers by name, of a network of ours or of a module."""
    backbone = Backbone(network, list(layers), None, 0, (side, side))
    with torch.inference_mode():
        return dict(zip(layers, backbone(noise(side)), strict=True))


def whole(name, side=SIDE):
    """A network with running statistics that are not 0 and 1."""
    if name.startswith("efficientnet_lite"):
        network = EfficientNetLite(name)
    elif name.startswith("vit_"):  # smaller, with the same layers
        network = torchvision.models.VisionTransformer(side, 16, 9, 2, 16, 32)
    else:
        options = {"init_weights": False} if name == "googlenet" else {}
        network = torchvision.models.get_model(name, weights=None, **options)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.1, 0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return network.eval()


# One of each row of the table of default layers.
DEFAULTS = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_b0", "resnet18", "vit_b_32"]
DEFAULTS += ["mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "convnext_tiny", "swin_t", "swin_v2_t"]


@pytest.mark.parametrize("name", DEFAULTS)
def test_each_default_layer_has_the_same_bits_alone_and_beside_the_others(name):
    side = 64
    network, layers = whole(name, side), default_layers(name)
    together = maps(network, layers, side)
    for layer in layers:
        assert torch.equal(maps(network, [layer], side)[layer], together[layer])


@pytest.mark.parametrize("name", DEFAULTS)
def test_default_layers_need_no_copies(name):
    with torch.device("meta"):
        graph = Backbone(name, None, None, 0, (224, 224)).network.graph
    assert not [node for node in graph.nodes if node.target == "clone"]


class AsItRuns(torch.fx.Interpreter):
    """Keep what each node of a graph gives, before others overwrite it."""

    def run_node(self, node):
        result = super().run_node(node)
        self.kept[node] = result.clone() if isinstance(result, torch.Tensor) else result
        return result


@pytest.mark.parametrize("name", ["resnet18", "mnasnet0_5", "squeezenet1_1", "shufflenet_v2_x0_5", "googlenet"])
def test_all_layers_together_are_what_each_was_when_it_ran(name):
    network = whole(name)
    graph = torch.fx.GraphModule(network, torch.fx.Tracer().trace(network))
    run = AsItRuns(graph)
    run.kept = {}
    with torch.inference_mode():
        run.run(noise())
    expected = {
        node.target: value
        for node, value in run.kept.items()
        if node.op == "call_module" and isinstance(value, torch.Tensor) and value.ndim == 4
    }
    # Of a module that is called several times, the first call has the name: torchvision counts the others.
    first = {node.target: run.kept[node] for node in reversed(graph.graph.nodes) if node.target in expected}
    known = set(get_graph_node_names(network, suppress_diff_warning=True)[1])
    names = [target for target, value in first.items() if target in known and value.shape[2] > 1]
    assert len(names) > 15
    cut = Backbone(network, names, None, 0, (SIDE, SIDE)).network
    with torch.inference_mode():
        found = cut(noise())
    for target in names:
        np.testing.assert_allclose(
            found[target], first[target], rtol=1e-3, atol=1e-4 * float(first[target].abs().max())
        )


PAIRS = [
    ("conv1", "bn1"),
    ("bn1", "relu"),
    ("layer1", "layer1.1"),
    ("layer1.1", "layer1.1.bn2"),
    ("layer1.0", "layer2"),
]
PAIRS += [("layer1.1", "layer1.1.relu_1"), ("layer1.1.add", "layer1.1"), ("layer1.0.bn2", "layer1.0.add")]


@pytest.mark.parametrize(("layer", "other"), [*PAIRS, *(pair[::-1] for pair in PAIRS)])
def test_nested_and_neighbouring_layers_have_the_same_bits_alone(layer, other):
    network = whole("resnet18")
    together = maps(network, [layer, other])
    assert torch.equal(together[layer], maps(network, [layer])[layer])


class View(nn.Module):
    def forward(self, x):
        return x[:, ::2]


class Working(nn.Module):
    """A convolution, something in place behind it, and another convolution."""

    def __init__(self, work, is_traceable):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, padding=1)
        self.same, self.view, self.drop = nn.Identity(), View(), nn.Dropout(inplace=True)
        self.act, self.last = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.work, self.is_traceable = work, is_traceable

    def forward(self, x):
        if not self.is_traceable:
            assert x.isfinite().all()
        x = self.first(x)
        x = self.drop(self.same(x))
        view = self.view(x)
        x = self.work(self, x, view)
        return self.last(self.second(x))


def statement(of):
    """Work whose result is not used, but for what it did in place."""

    def work(network, x, view):
        of(network, x, view)
        return x

    return work


def add_in_place(network, x, view):
    x += 1
    return x


WORK = {
    "nothing": lambda network, x, view: x,
    "module": lambda network, x, view: network.act(x),
    "function": lambda network, x, view: F.relu(x, inplace=True),
    "positional flag": lambda network, x, view: F.relu(x, True),
    "hardtanh": lambda network, x, view: F.relu6(x, inplace=True),
    "method": lambda network, x, view: x.relu_(),
    "function of torch": lambda network, x, view: torch.relu_(x),
    "out": lambda network, x, view: torch.add(x, 1, out=x),
    "augmented": add_in_place,
    "through a view": lambda network, x, view: x + view.mul_(2).repeat(1, 2, 1, 1),
    "through a view of a view": lambda network, x, view: view.flatten(2).zero_().sum() + x,
    "statement with a module": statement(lambda network, x, view: network.act(x)),
    "statement with a function": statement(lambda network, x, view: F.relu(x, inplace=True)),
    "statement with a method": statement(lambda network, x, view: x.clamp_(min=0.5)),
    "statement with out": statement(lambda network, x, view: torch.mul(x, 2, out=x)),
    "statement with a view": statement(lambda network, x, view: view.zero_()),
}


@pytest.mark.parametrize("is_traceable", [True, False])
@pytest.mark.parametrize("work", WORK)
def test_layers_are_what_the_modules_returned_whatever_works_in_place(work, is_traceable):
    network, expected = Working(WORK[work], is_traceable).eval(), {}
    layers = ["first", "same", "drop", "view", "second"]
    for layer in layers:
        network.get_submodule(layer).register_forward_hook(
            lambda _, __, result, layer=layer: expected.update({layer: result.clone()})
        )
    with torch.inference_mode():
        network.to(memory_format=torch.channels_last)(noise())
    # The hooks above make copies, and the copies must not have them.
    network = Working(WORK[work], is_traceable).eval()
    alone = {layer: maps(network, [layer])[layer] for layer in layers}
    for chosen in [*itertools.permutations(layers, 2), layers, layers[::-1]]:
        together = maps(network, chosen)
        for layer in chosen:
            np.testing.assert_allclose(together[layer], expected[layer], atol=1e-6)
            assert torch.equal(together[layer], alone[layer])


def test_work_that_tracing_would_lose_is_left_to_hooks():
    lost = Working(WORK["statement with a method"], True).eval()
    traced = create_feature_extractor(lost, ["second"])
    with torch.inference_mode():
        assert not torch.allclose(traced(noise())["second"], maps(lost, ["second"])["second"])
    assert isinstance(Backbone(lost, ["second"], None, 0, (SIDE, SIDE)).network, HookedNetwork)
    assert not isinstance(
        Backbone(Working(WORK["method"], True), ["second"], None, 0, (SIDE, SIDE)).network, HookedNetwork
    )
    with pytest.raises(
        ValueError, match=r"cannot trace it \(the result of clamp_, which works in place, is not used\)"
    ):
        maps(lost, ["clamp_"])


class Shared(nn.Module):
    """One convolution before two norms."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])
        for norm in self.norms:
            nn.init.uniform_(norm.running_mean)

    def forward(self, x):
        for norm in self.norms:
            x = norm(self.conv(x))
        return x


def test_a_convolution_that_is_called_twice_is_not_folded_into_its_norms():
    network = Shared().eval()
    with torch.inference_mode():
        first = network.norms[0](network.conv(noise()))
        second = network.norms[1](network.conv(first))
    found = maps(network, ["norms.0", "norms.1"])
    np.testing.assert_allclose(found["norms.0"], first, atol=1e-5)
    np.testing.assert_allclose(found["norms.1"], second, atol=1e-5)


def test_the_flags_of_the_users_module_stay():
    network = Working(WORK["module"], True)
    maps(network, ["first", "second"])
    assert network.act.inplace and network.drop.inplace and network.training


def test_an_exported_network_of_hooks_gives_the_last_layer_as_it_was():
    network = Working(WORK["nothing"], False).eval()
    backbone = Backbone(network, ["first", "second"], None, 0, (SIDE, SIDE))
    with torch.inference_mode():
        expected = backbone(noise())
    assert expected[1].min() < 0
    network.is_traceable = True  # torch.export follows no assertion on values
    hooked = HookedNetwork(network, ["first", "second"])
    exported = torch.export.export(hooked, (noise(),)).module()(noise())
    np.testing.assert_allclose(exported["second"].detach(), expected[1], atol=1e-5)


@pytest.mark.parametrize(
    "name", ["resnet10t", "test_resnet", "test_convnext", "test_efficientnet", "test_nfnet", "test_vit"]
)
def test_layers_of_timm_have_the_same_bits_alone(name):
    timm = pytest.importorskip("timm", reason="pip install timm")
    if not timm.is_model(name):
        pytest.skip(f"this version of timm has no {name}")
    together = Backbone(f"timm:{name}", None, None, 0, (160, 160))
    with torch.inference_mode():
        for layer, value in zip(together.layers, together(noise(160)), strict=True):
            (alone,) = Backbone(f"timm:{name}", [layer], None, 0, (160, 160))(noise(160))
            assert torch.equal(alone, value)
