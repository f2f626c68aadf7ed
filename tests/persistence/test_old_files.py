"""Files written before the modules moved (data/README.md): one clear error that names the file."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import joblib
import numpy as np
import pytest
import skops.io
from typer.testing import CliRunner

from ipca_sklearn import PatchGaussianDetector, decomposition
from ipca_sklearn.cli import app
from ipca_sklearn.persistence import fit_resumable, load, load_skops

DATA = Path(__file__).parent / "data"
OLD = r"was written by an older, unreleased version of ipca_sklearn.*fit again"


@pytest.mark.parametrize("name", ["pca.joblib", "detector.joblib", "fit.checkpoint"])
@pytest.mark.parametrize("mmap_mode", [None, "r"])
def test_an_old_joblib_file_is_named(name, mmap_mode):
    with pytest.raises(ValueError, match=rf"{name} {OLD}"):
        load(DATA / name, mmap_mode=mmap_mode)


OLD_TYPES = [
    "ipca_sklearn._batched_ipca.BatchedIncrementalPCA",
    "ipca_sklearn._calibration.Calibration",
    "ipca_sklearn._calibration.Reference",
    "ipca_sklearn._model.Model",
    "ipca_sklearn._patch_gaussian.PatchGaussianDetector",
]


@pytest.mark.parametrize("name", ["pca.skops", "detector.skops"])
@pytest.mark.parametrize("trusted", [[], OLD_TYPES])
def test_an_old_skops_file_is_named(name, trusted):
    with pytest.raises(ValueError, match=rf"{name} {OLD}"):
        load_skops(DATA / name, trusted=trusted)


def test_an_old_checkpoint_is_named_and_stays(tmp_path):
    X = np.random.default_rng(0).normal(size=(8, 2, 3)).astype(np.float32)
    path = shutil.copy(DATA / "fit.checkpoint", tmp_path)
    before = Path(path).read_bytes()
    detector = PatchGaussianDetector(1, step_size=4)
    with pytest.raises(ValueError, match=rf"fit\.checkpoint {OLD}"):
        fit_resumable(detector, X, path, every=4)
    assert Path(path).read_bytes() == before and not hasattr(detector, "pca_")


def test_the_command_line_says_so_in_one_line():
    result = CliRunner().invoke(app, ["info", str(DATA / "detector.joblib")])
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 1
    assert "older, unreleased version" in result.output


def test_a_class_that_has_been_renamed_is_recognised(tmp_path, monkeypatch):
    renamed = type("Renamed", (), {"__module__": decomposition.__name__})
    monkeypatch.setattr(decomposition, "Renamed", renamed, raising=False)
    joblib.dump(renamed(), tmp_path / "model.joblib")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=rf"model\.joblib {OLD}"):
        load(tmp_path / "model.joblib")


@pytest.mark.parametrize("name", ["noise_shrinkage", "n_gaussians"])
def test_an_estimator_without_its_parameters_is_recognised(tmp_path, name):
    detector = PatchGaussianDetector(1)
    delattr(detector, name)
    joblib.dump(detector, tmp_path / "model.joblib")
    skops.io.dump(detector, tmp_path / "model.skops")
    for reader, path in ((load, tmp_path / "model.joblib"), (load_skops, tmp_path / "model.skops")):
        with pytest.raises(ValueError, match=rf"{path.name} {OLD}"):
            reader(path)
    with pytest.raises(ValueError, match=f"PatchGaussianDetector was stored without {name}"):
        pickle.loads(pickle.dumps(detector))
