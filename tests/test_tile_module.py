"""The network of a tile in a program that stitches by itself, as the user guide does."""

from __future__ import annotations

import re
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.export import tile_module, to_torch

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "guide_tasks.md"


def fitted():
    pictures = np.random.default_rng(0).integers(0, 255, (6, 140, 200, 3), dtype=np.uint8)
    extractor = PatchFeatureExtractor(
        "resnet18", layers=["layer1", "layer2"], weights=None, tile_size=96, tile_overlap=32, random_state=0
    )
    return pictures, Pipeline([("features", extractor), ("detector", PatchGaussianDetector(4))]).fit(pictures)


@pytest.mark.skipif(not GUIDE.is_file(), reason="docs/ is part of the repository, not of a package")
def test_the_program_of_the_guide_gives_the_map_of_the_pipeline(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    section = GUIDE.read_text(encoding="utf-8").partition("**Without Python's torch**")[2]
    writing, reading = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[:2]
    pictures, pipe = fitted()
    monkeypatch.chdir(tmp_path)
    exec(writing, {"pipe": pipe, "tile_module": tile_module, "torch": torch, "joblib": joblib})
    program = {"np": np, "onnxruntime": onnxruntime}
    exec(reading, program)
    tiles, cells, arrays, threshold = joblib.load("stitching.joblib")
    found = program["map_of"](pictures[0].transpose(2, 0, 1), tiles, cells, **arrays)
    np.testing.assert_allclose(found, pipe.transform(pictures[:1])[0], rtol=1e-3)
    assert threshold == pipe[-1].map_threshold_


def test_tiles_cover_each_patch_once():
    _, pipe = fitted()
    counts = np.zeros(pipe[0].grid_size_, int)
    for tile in tile_module(pipe[0]).tiles:
        counts[tile.patches] += 1
        assert (len(tile.rows), len(tile.columns)) == pipe[0].tile_size_
    assert (counts == 1).all()


def test_exports_say_which_of_them_takes_a_pipeline():
    pictures, pipe = fitted()
    with pytest.raises(
        ValueError, match=r"tile_size=96: a module or a file takes a whole image at once; .*tile_module"
    ):
        to_torch(pipe)
    with pytest.raises(ValueError, match="tile_module takes an extractor that was fitted with tile_size="):
        tile_module(PatchFeatureExtractor("resnet18", weights=None).fit(pictures))
    with pytest.raises(NotFittedError):
        tile_module(PatchFeatureExtractor(tile_size=96))
