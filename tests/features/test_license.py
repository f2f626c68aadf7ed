"""The licence of weights, as their libraries say, and the warning about files that hold them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torchvision
from sklearn.pipeline import Pipeline
from torch import nn

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.features import weights_license
from ipca_sklearn.persistence import save


def license_of(backbone, weights="DEFAULT"):
    return weights_license(PatchFeatureExtractor(backbone, weights=weights))


def test_each_library_says_the_licence_of_its_weights():
    assert license_of("efficientnet_lite1") == "apache-2.0"
    assert license_of("resnet18") == license_of("wide_resnet50_2", "IMAGENET1K_V1") == "bsd-3-clause"
    swag = torchvision.models.ViT_B_16_Weights.IMAGENET1K_SWAG_LINEAR_V1
    assert "SWAG" in license_of("vit_b_16", swag) and license_of("vit_b_16", swag.name) == license_of("vit_b_16", swag)


def test_timm_says_the_licence_of_each_of_its_weights():
    pytest.importorskip("timm")
    assert license_of("timm:vit_small_patch16_dinov3") == "dinov3-license"
    assert license_of("timm:vit_small_patch14_dinov2") == "apache-2.0"


def test_random_weights_have_none_and_those_of_files_and_modules_are_unknown():
    assert license_of("resnet18", None) == "none: random weights"
    assert license_of("resnet18", Path("weights.pth")) == license_of(nn.Conv2d(3, 4, 4)) == "unknown"
    module = nn.Conv2d(3, 4, 4)
    module.pretrained_cfg = {"license": "CC-BY-NC-4.0"}  # as networks of timm have it
    assert license_of(module) == "cc-by-nc-4.0"


def test_a_file_with_conditions_is_saved_with_a_warning_that_names_the_licence(tmp_path):
    pytest.importorskip("timm")
    pipe = Pipeline(
        [("network", PatchFeatureExtractor("timm:vit_small_patch16_dinov3")), ("detector", PatchGaussianDetector())]
    )
    with pytest.warns(UserWarning, match=r"dinov3\.joblib holds the weights .*dinov3-license: .*must travel"):
        save(pipe, tmp_path / "dinov3.joblib")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(pipe.set_params(network__backbone="efficientnet_lite0"), tmp_path / "free.joblib")
    assert (tmp_path / "free.joblib").is_file()
