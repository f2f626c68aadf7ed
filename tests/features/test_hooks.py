"""Networks that torch.fx cannot trace: hooks read their layers, and the pass stops after the last one."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import get_graph_node_names

from ipca_sklearn import PatchFeatureExtractor
from ipca_sklearn.features.backbones._backbone import Backbone
from ipca_sklearn.features.backbones._hooks import HookedNetwork


def make(network, layers, weights=None):
    return Backbone(network, layers, weights, 0, (16, 16))


def noise(seed=0, n=2):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


class Branching(nn.Module):
    """Dark images take another way; whoever goes to the end of the pass is told so."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(3, 4, 3, 2, 1)
            self.norm = nn.BatchNorm2d(4)
            self.act = nn.ReLU(inplace=True)
            self.bright, self.dark = (nn.Sequential(nn.Conv2d(4, 5, 3, 2, 1), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(99999, 2)
        self.seen = []

    def forward(self, x):
        self.seen = [x.shape]  # tracing leaves a proxy here
        way = self.bright if x.mean() > -1 else self.dark
        return self.head(way(self.act(self.norm(self.stem(x)))))


def test_it_cannot_be_traced():
    with pytest.raises(torch.fx.proxy.TraceError):
        get_graph_node_names(Branching())


def test_layers_of_a_network_that_cannot_be_traced_are_what_its_modules_return():
    network = Branching().eval()
    backbone = make(network, ["bright.0", "norm", "stem"])
    assert isinstance(backbone.network, HookedNetwork) and backbone.layers == ("bright.0", "norm", "stem")
    with torch.inference_mode():
        bright, norm, stem = backbone(noise())
        expected = network.norm(network.stem(noise()))
        np.testing.assert_allclose(stem, network.stem(noise()), atol=1e-6)
        # The activation that follows works in place.
        np.testing.assert_allclose(norm, expected, atol=1e-6)
        assert norm.min() < 0
        np.testing.assert_allclose(bright, network.bright[0](expected.relu()), atol=1e-6)


def test_the_pass_stops_after_the_last_layer():
    network = Branching().eval()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        network(noise())
    assert make(network, ["bright"])(noise())[0].shape == (2, 5, 4, 4)
    calls = []
    network.act.register_forward_hook(lambda *_: calls.append("act"))
    make(network, ["norm", "stem"])(noise())
    assert calls == []
    make(network, ["norm", "act"])(noise())
    assert calls == ["act"]


class Careful(nn.Module):
    """Catches the exceptions of what it calls, and goes on."""

    def __init__(self):
        super().__init__()
        self.within = Branching()
        self.after = nn.Identity()

    def forward(self, x):
        try:
            return self.within(x)
        except Exception:
            return self.after(x)


def test_a_network_that_catches_exceptions_does_not_catch_the_end_of_the_pass():
    network, calls = Careful().eval(), []
    network.after.register_forward_hook(lambda *_: calls.append("after"))
    backbone = make(network, ["within.stem"])
    with torch.inference_mode():
        np.testing.assert_allclose(backbone(noise())[0], network.within.stem(noise()), atol=1e-6)
    assert calls == []


class Repeating(nn.Module):
    """Calls one module until its values are small, and another one that returns many things."""

    def __init__(self, form=tuple):
        super().__init__()
        self.halve = nn.AvgPool2d(1)
        self.many = Many(form)
        self.unused = nn.Conv2d(3, 3, 1)
        self.parts = nn.ModuleList([nn.Identity()])

    def forward(self, x):
        while x.abs().max() > 0.5:
            x = self.halve(x) * 0.5
        return self.many(self.parts[0](x))


class Many(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        forms = {
            "tuple": (x, None),
            "list": ["name", x],
            "dict": {"map": x},
            "two": (x, x),
            "none": None,
        }
        return forms[self.form]


def test_of_a_module_that_is_called_several_times_the_first_call_counts():
    images = noise().clamp(-4, 4) + 4
    for layers in (["halve"], ["halve", "parts.0"]):
        np.testing.assert_array_equal(make(Repeating("tuple"), layers)(images)[0], images)


@pytest.mark.parametrize("form", ["tuple", "list", "dict"])
def test_the_only_tensor_among_the_things_a_module_returns_is_its_map(form):
    np.testing.assert_array_equal(make(Repeating(form), ["many"])(noise() * 0.01)[0], noise() * 0.01)


@pytest.mark.parametrize(("form", "name"), [("two", "tuple"), ("none", "NoneType")])
def test_things_that_are_no_map_are_named(form, name):
    with pytest.raises(ValueError, match=f"layer 'many' of backbone Repeating gives {name}, not a map"):
        make(Repeating(form), ["many"])(noise())


@pytest.mark.parametrize("layer", ["unused", "parts"])
def test_a_module_that_does_not_run_is_named(layer):
    backbone = make(Repeating("tuple"), ["parts.0", layer])
    message = rf"layer '{layer}' of backbone Repeating does not run on images \(2, 3, 16, 16\); choose a module in lay"
    with pytest.raises(ValueError, match=message):
        backbone(noise())
    extractor = PatchFeatureExtractor(Repeating("tuple"), layers=[layer], image_size=16, crop_size=16)
    with pytest.raises(ValueError, match=f"layer '{layer}' of backbone Repeating does not run on"):
        extractor.fit(np.zeros((1, 16, 16, 3), dtype=np.uint8))


def test_a_branch_that_some_images_do_not_take_is_named_when_they_come():
    network = Branching()
    network.head = nn.Identity()
    backbone = make(network, ["bright"])
    backbone(noise())
    with pytest.raises(ValueError, match="layer 'bright' of backbone Branching does not run on images"):
        backbone(noise() - 9)


@pytest.mark.parametrize(
    ("layer", "near"),
    [("bright.2", r" \(nearest: bright\.\d.*"), ("stem_1", r" \(nearest: stem"), (3, ""), ("seen", "")],
)
def test_names_that_do_not_exist_are_named_with_what_is_near_and_why_modules_count(layer, near):
    with pytest.raises(
        ValueError, match=rf"Branching has no layer {layer!r}{near}.*named_modules\(\), because torch.fx"
    ):
        make(Branching(), ["stem", layer])


class Whole(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_the_empty_name_is_the_network_itself():
    images = noise().abs()
    np.testing.assert_array_equal(make(Whole(), [""])(-images)[0], images)
    traceable = nn.Sequential(nn.Identity(), nn.ReLU())
    np.testing.assert_array_equal(make(traceable, ["", "0"])(-images)[0], images * 0)


class Untold(nn.Module):
    """One module that the tracer takes as a whole (it comes from torch.nn), and one function."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.inner = nn.Conv2d(3, 4, 4, 4)

    def forward(self, x):
        return self.encoder((self.inner(x) * 2).flatten(2).transpose(1, 2))


def test_modules_that_tracing_does_not_show_are_read_by_hooks():
    network = Untold().eval()
    assert "encoder.layers.0" not in get_graph_node_names(network)[1]
    backbone, seen = make(network, ["encoder.layers.0", "inner"]), []
    network.encoder.layers[0].register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.inference_mode():
        found = backbone(noise())
        network.to(memory_format=torch.channels_last)(noise())  # as the backbone: the order of sums depends on it
        np.testing.assert_allclose(found[0].flatten(2).transpose(1, 2), seen[0], atol=1e-6)
        np.testing.assert_allclose(found[1], network.inner(noise()), atol=1e-6)
    assert not isinstance(make(network, ["mul", "inner"]).network, HookedNetwork)
    message = r"cannot give layers=\['mul', 'encoder.layers.0'\] together: \['mul'\] are no modules, and \['encoder"
    with pytest.raises(ValueError, match=message):
        make(network, ["mul", "encoder.layers.0"])


def test_the_module_of_the_user_gets_no_hooks_and_no_proxies(device):
    network = Branching().train().to(device)
    before = copy.deepcopy(network.state_dict())
    backbone = make(network, ["stem", "bright"])
    first = backbone(noise().to(device))
    assert not any(part._forward_hooks for part in network.modules())
    assert network.training and network.seen == []
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert backbone.network.network.seen == [(2, 3, 16, 16)]  # of the pass, not of the tracer
    assert not backbone.network.network.training
    nn.init.zeros_(network.stem.weight)
    for again, value in zip(backbone(noise().to(device)), first, strict=True):
        np.testing.assert_array_equal(again.cpu(), value.cpu())


def test_the_weights_go_when_the_backbone_goes():
    backbone = make(Branching(), ["stem", "bright"])
    backbone(noise())
    weight = weakref.ref(backbone.network.network.stem.weight)
    gc.collect()  # what the tracer has left
    gc.disable()  # on a GPU, memory must not wait for the collector
    try:
        del backbone
        assert weight() is None
    finally:
        gc.enable()


class Meeting(nn.Module):
    """Two passes meet in the middle, so that each sees the other one's layers run."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Identity()
        self.meet = [lambda: None]

    def forward(self, x):
        x = self.first(x)
        assert x.isfinite().all()  # which cannot be traced
        self.meet[0]()
        return self.second(x + 1)


def test_threads_run_one_network_at_once():
    backbone, barrier = make(Meeting(), ["first", "second"]), threading.Barrier(2, timeout=60)
    backbone.network.network.meet[0] = barrier.wait
    batches = [noise(seed) for seed in range(8)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(backbone, batches))
    for (first, second), images in zip(found, batches, strict=True):
        np.testing.assert_array_equal(first, images)
        np.testing.assert_array_equal(second, images + 1)


def test_a_pass_that_fails_leaves_nothing_behind():
    backbone = make(Branching(), ["stem", "bright"])
    with pytest.raises(RuntimeError):
        backbone(torch.zeros(1, 2, 16, 16))
    assert backbone.network._passes == {}
    assert [value.shape[1] for value in backbone(noise())] == [4, 5]


def test_a_file_of_weights_is_used(tmp_path):
    torch.save(Branching(5).state_dict(), tmp_path / "own.pt")
    found = make(Branching(6), ["bright"], tmp_path / "own.pt")(noise())[0]
    np.testing.assert_array_equal(found, make(Branching(5), ["bright"])(noise())[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda backbone: pickle.loads(pickle.dumps(backbone))])
def test_a_copy_and_a_pickle_have_hooks_of_their_own(copied):
    backbone = make(Branching(), ["bright", "stem"])
    again = copied(backbone)
    nn.init.zeros_(backbone.network.network.stem.weight)
    for found, expected in zip(again(noise()), make(Branching(), ["bright", "stem"])(noise()), strict=True):
        np.testing.assert_array_equal(found, expected)
    biases_alone = backbone(noise())[1]
    assert torch.equal(biases_alone, biases_alone[:, :, :1, :1].expand_as(biases_alone))


def test_a_compiled_network_gives_the_same_maps(monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    backbone = make(Branching(), ["stem", "bright"])
    with torch.inference_mode():
        expected = backbone(noise())
        for found, want in zip(backbone(noise(), compiled=True), expected, strict=True):
            np.testing.assert_allclose(found, want, atol=1e-6)
    torch.compiler.reset()
    assert len(graphs) >= 2
