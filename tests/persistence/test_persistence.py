"""Models on disk: the same bits, small files, maps, versions, kills while writing."""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile

import joblib
import numpy as np
import pytest
import skops.io
import torch
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.pipeline import Pipeline, make_pipeline
from skops.io.exceptions import UntrustedTypesFoundException

from ipca_sklearn import BatchedIncrementalPCA, FeatureCache, PatchFeatureExtractor, PatchGaussianDetector, _version
from ipca_sklearn.persistence import load, load_skops, save, save_skops, trusted_types

DETECTORS = {
    "default": {},
    "paper": {"distance": "mahalanobis", "centering": "deferred"},
    "padim": {"covariance": "full", "distance": "mahalanobis", "n_random_features": 5, "random_state": 0},
    "forgetting": {"forgetting_factor": 0.95, "calibration": 0.25},
    "cells": {"n_gaussians": 6, "image_score": 0.2},
    "all": {"n_gaussians": 1, "calibration": 0.25},
}

# Files hold scatter matrices with correlations of 20 bits: what is scored has the same bits, what is learnt later not.
ROUNDED = {"padim", "cells", "all"}


def assert_nearly(found, expected):
    scores = np.ndim(found) == 1 and len(found) > 2
    # Images that come next are scored by a model as of the file, and not by an older one: other thresholds.
    np.testing.assert_allclose(found, expected, rtol=1e-4 if scores else 0.05)


def normal(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 4, 5, 8)).astype(np.float32)


@pytest.mark.parametrize("mmap_mode", [None, "r"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_a_loaded_detector_scores_and_goes_on_bit_for_bit(tmp_path, detector, mmap_mode):
    X, more = normal(60), normal(40, seed=1)
    fitted = PatchGaussianDetector(3, **DETECTORS[detector]).fit(X)
    expected = fitted.score_samples(X)
    save(fitted, tmp_path / "model.joblib")
    before = (tmp_path / "model.joblib").read_bytes()
    loaded = load(tmp_path / "model.joblib", mmap_mode=mmap_mode)
    np.testing.assert_array_equal(loaded.score_samples(X), expected)
    np.testing.assert_array_equal(loaded.score_samples(torch.from_numpy(X)), expected)
    assert (loaded.offset_, loaded.map_threshold_) == (fitted.offset_, fitted.map_threshold_)
    goes_on = np.testing.assert_array_equal if detector not in ROUNDED else assert_nearly
    goes_on(loaded.partial_fit(more).score_samples(X), fitted.partial_fit(more).score_samples(X))
    goes_on(loaded.offset_, fitted.offset_)
    assert (tmp_path / "model.joblib").read_bytes() == before


def test_learning_goes_on_after_loading_as_without_it(tmp_path):
    X = normal(96)
    save(PatchGaussianDetector(3).fit(X[:64]), tmp_path / "model.joblib")
    later = load(tmp_path / "model.joblib").partial_fit(X[64:])
    at_once = PatchGaussianDetector(3).fit(X)
    np.testing.assert_array_equal(later.score_samples(X), at_once.score_samples(X))
    assert later.offset_ == at_once.offset_ and later.map_threshold_ == at_once.map_threshold_


def test_a_pipeline_scores_the_same_in_another_process(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (20, 40, 40, 3), dtype=np.uint8)
    extractor = PatchFeatureExtractor("resnet18", weights=None, image_size=32, crop_size=32, random_state=0)
    pipe = Pipeline([("features", extractor), ("detector", PatchGaussianDetector(3))]).fit(images)
    save(pipe, tmp_path / "model.joblib")
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, numpy as np; from ipca_sklearn.persistence import load; import os; os.chdir(sys.argv[1]);"
        "np.save('scores.npy', load('model.joblib', mmap_mode='r').score_samples(np.load('images.npy')))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), pipe.score_samples(images))


def n_bytes_learnt(detector):
    return sum(value.nbytes for value in vars(detector.pca_.fitted_.state).values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("detector", ["default", "padim"])
def test_a_file_is_as_small_as_its_arrays_also_after_scoring(tmp_path, detector):
    X = np.random.default_rng(0).normal(size=(20, 20, 20, 100)).astype(np.float32)
    fitted = PatchGaussianDetector(16, **DETECTORS[detector]).fit(X)
    fitted.score_samples(X)
    save(fitted, tmp_path / "model.joblib")
    arrays = n_bytes_learnt(fitted)
    assert arrays < (tmp_path / "model.joblib").stat().st_size < 1.1 * arrays + 20_000


@pytest.mark.parametrize("estimator", [BatchedIncrementalPCA(2), PatchGaussianDetector(2)])
def test_another_version_is_warned_of(estimator, monkeypatch):
    stored = pickle.dumps(estimator.fit(normal(20)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pickle.loads(stored)
    monkeypatch.setattr(_version, "__version__", "99.0")
    with pytest.warns(InconsistentVersionWarning, match=r"stored by ipca_sklearn 0\.1\.0 and is loaded by 99\.0"):
        pickle.loads(stored)


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.joblib"
    save(PatchGaussianDetector(2), path)
    before = path.read_bytes()
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        save(Pipeline([("generator", (number for number in range(3)))]), path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        save(PatchGaussianDetector(2), tmp_path / "missing" / "model.joblib")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process that can be killed at once")
def test_killed_while_writing_the_old_file_is_intact(tmp_path):
    path = tmp_path / "model.joblib"
    save({"generation": 0}, path)
    killer = (
        "import sys, numpy as np; from ipca_sklearn.persistence import save\n"
        "model = {'generation': 1, 'array': np.ones(50_000_000)}\n"
        "print('ready', flush=True)\n"
        "while True: save(model, sys.argv[1])"
    )
    writer = subprocess.Popen([sys.executable, "-c", killer, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".model.joblib.*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.001)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert joblib.load(path)["generation"] in (0, 1)
    assert len(list(tmp_path.glob(".model.joblib.*.tmp"))) == 1
    save({"generation": 2}, path)
    assert joblib.load(path)["generation"] == 2
    assert [file.name for file in tmp_path.iterdir()] == ["model.joblib"]


@pytest.mark.parametrize("broken", [b"", b"no model", None])
def test_a_broken_or_missing_file_is_named(tmp_path, broken):
    path = tmp_path / "model.joblib"
    if broken is None:
        save(PatchGaussianDetector(2).fit(normal(30)), path)
        broken = path.read_bytes()[:-1000]
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=r"model\.joblib is not a whole model file"):
        load(path)
    with pytest.raises(FileNotFoundError, match="no model at"):
        load(tmp_path / "other.joblib")
    with pytest.raises(ValueError, match="mmap_mode='w\\+'"):
        load(path, mmap_mode="w+")


def test_a_module_that_the_model_needs_and_that_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "steps_of_my_own.py").write_text("class Step:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    save(__import__("steps_of_my_own").Step(), tmp_path / "model.joblib")
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "steps_of_my_own")
    with pytest.raises(ModuleNotFoundError, match="steps_of_my_own"):
        load(tmp_path / "model.joblib")


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_skops_file_gives_the_same_bits_and_goes_on(tmp_path, detector):
    X, more = normal(60), normal(40, seed=1)
    fitted = PatchGaussianDetector(3, **DETECTORS[detector]).fit(X)
    save_skops(fitted, tmp_path / "model.skops")
    loaded = load_skops(tmp_path / "model.skops")
    np.testing.assert_array_equal(loaded.score_samples(X), fitted.score_samples(X))
    np.testing.assert_array_equal(loaded.score_samples(torch.from_numpy(X)), fitted.score_samples(X))
    assert clone(loaded).get_params() == clone(fitted).get_params()
    goes_on = np.testing.assert_array_equal if detector not in ROUNDED else assert_nearly
    goes_on(loaded.partial_fit(more).score_samples(X), fitted.partial_fit(more).score_samples(X))
    goes_on((loaded.offset_, loaded.map_threshold_), (fitted.offset_, fitted.map_threshold_))


BACKBONES = {
    "torchvision": {"backbone": "resnet18", "weights": None, "augment": "random_crop"},
    "offline": {"backbone": "efficientnet_lite0"},
    "timm": {"backbone": "timm:resnet10t", "weights": None},
}


def pipeline(**parameters):
    parameters = {"image_size": 40, "crop_size": 32, "random_state": 0, **parameters}
    return Pipeline([("features", PatchFeatureExtractor(**parameters)), ("detector", PatchGaussianDetector(3))])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_pipeline_is_a_skops_file_of_known_types(tmp_path, backbone):
    images = np.random.default_rng(0).integers(0, 255, (20, 40, 40, 3), dtype=np.uint8)
    pipe = pipeline(**BACKBONES[backbone]).fit(images)
    skops.io.dump(pipe, tmp_path / "plain.skops")
    assert set(skops.io.get_untrusted_types(file=tmp_path / "plain.skops")) <= set(trusted_types())
    save_skops(pipe, tmp_path / "model.skops")
    expected = pipe.score_samples(images)
    np.testing.assert_array_equal(load_skops(tmp_path / "model.skops").score_samples(images), expected)
    plain = skops.io.load(tmp_path / "plain.skops", trusted=trusted_types())
    np.testing.assert_array_equal(plain.predict(images), pipe.predict(images))


class Branching(torch.nn.Module):
    """torch.fx cannot trace it."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = torch.nn.Conv2d(3, 4, 4, 4), torch.nn.Conv2d(4, 5, 3, padding=1)

    def forward(self, x):
        x = self.stem(x)
        return self.body(x if x.sum() > 0 else -x)


def test_a_network_that_is_read_by_hooks_is_saved_with_its_model(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (20, 40, 40, 3), dtype=np.uint8)
    network = Branching()
    pipe = pipeline(backbone=network, layers=["stem", "body"]).fit(images)
    expected = pipe.score_samples(images)
    torch.nn.init.zeros_(network.body.weight)  # what counts is the copy
    save(pipe, tmp_path / "model.joblib")
    np.testing.assert_array_equal(load(tmp_path / "model.joblib").score_samples(images), expected)
    with pytest.raises(TypeError, match="features__backbone is a module of your own, a Branching"):
        save_skops(pipe, tmp_path / "model.skops")


def test_trusted_types_are_there():
    for name in trusted_types():
        module, _, attribute = name.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), attribute), type)


@pytest.mark.parametrize("writer, reader", [(save, load), (save_skops, load_skops)])
def test_the_feature_cache_is_not_stored(tmp_path, writer, reader):
    images = np.random.default_rng(0).integers(0, 255, (20, 40, 40, 3), dtype=np.uint8)
    folder = tmp_path / "features_on_disk"
    pipe = pipeline(backbone="resnet18", weights=None, cache=FeatureCache(folder)).fit(images)
    assert any(folder.rglob("*.npy"))
    writer(pipe, tmp_path / "model")
    loaded = reader(tmp_path / "model")
    assert loaded[0].cache is None and isinstance(pipe[0].cache, FeatureCache)
    assert b"features_on_disk" not in (tmp_path / "model").read_bytes()
    np.testing.assert_allclose(loaded.score_samples(images), pipe.score_samples(images), rtol=1e-4)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"backbone": torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), "layers": ["0"]},
            "features__backbone is a module",
        ),
        ({"backbone": "resnet18", "weights": None, "augment": np.flipud}, "holds objects of numpy.*flipud"),
        ({"backbone": "resnet18", "weights": None, "device": torch.device("cpu")}, "features__device=.*as a string"),
    ],
)
def test_what_no_safe_file_can_hold_is_refused_when_it_is_saved(tmp_path, parameters, message):
    path = tmp_path / "model.skops"
    save_skops(PatchGaussianDetector(2), path)
    before = path.read_bytes()
    with pytest.raises(TypeError, match=message):
        save_skops(pipeline(**parameters), path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


class Executed(TransformerMixin, BaseEstimator):
    def __setstate__(self, state):
        raise AssertionError("code of the file was run")


def test_unknown_types_in_a_skops_file_are_named_and_not_made(tmp_path):
    model = make_pipeline(Executed(), PatchGaussianDetector(2))
    with pytest.raises(TypeError, match=r"holds objects of test_persistence\.Executed"):
        save_skops(model, tmp_path / "model.skops")
    save_skops(model, tmp_path / "model.skops", trusted=["test_persistence.Executed"])
    with pytest.raises(UntrustedTypesFoundException, match="Executed"):
        load_skops(tmp_path / "model.skops")
    joblib.dump(model, tmp_path / "model.joblib")
    with pytest.raises(ValueError, match="not a whole model file"):
        load_skops(tmp_path / "model.joblib")


def test_a_skops_file_is_small_and_another_version_is_warned_of(tmp_path, monkeypatch):
    X = np.random.default_rng(0).normal(size=(20, 20, 20, 100)).astype(np.float32)
    fitted = PatchGaussianDetector(16).fit(X)
    path = tmp_path / "model.skops"
    save_skops(fitted, path)
    arrays = n_bytes_learnt(fitted)
    assert arrays < path.stat().st_size < 1.1 * arrays + 20_000
    monkeypatch.setattr(_version, "__version__", "99.0")
    with pytest.warns(InconsistentVersionWarning, match=r"is loaded by 99\.0"):
        load_skops(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole model file"):
        load_skops(path)


def rewritten(path, change, compression=zipfile.ZIP_DEFLATED):
    """Change the members of a skops file, a dict of bytes, and write it anew."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def first_array(members):
    return next(name for name in members if name.endswith(".npy"))


def npy(shape, content=b"", dtype="<f4"):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + content


def zip_bomb(members):
    members[first_array(members)] = npy((50_000_000,), bytes(200_000_000))


def claimed_shape(members):
    members[first_array(members)] = npy((10**11,), bytes(400))


def wrapped_shape(members):
    members[first_array(members)] = npy((2**32, 2**32), b"")


def used_many_times(members):
    name = first_array(members)
    members[name] = npy((1_000_000,), bytes(4_000_000))
    schema = json.loads(members["schema.json"])
    schema["content"]["more"] = [{"file": name, "__id__": number} for number in range(100)]
    members["schema.json"] = json.dumps(schema).encode()


def long_description(members):
    members["schema.json"] = b"[" + b"[]," * 8_000_000 + b"[]]"


def archive_in_it(members):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", npy((50_000_000,), bytes(200_000_000)))
    members[first_array(members)] = inner.getvalue()


def peak_of(code, *arguments):
    """Run code in a process of its own; return what it prints, and how many bytes it took beyond the imports."""
    prelude = (
        "import sys, resource, torch; from ipca_sklearn.persistence import load_skops, save_skops; import skops.io\n"
        "import torchvision, timm; from ipca_sklearn.features import PatchFeatureExtractor\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\nbefore = peak()\n"
    )
    code = prelude + code + "\nprint(peak() - before)"
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text, _, number = done.stdout.strip().rpartition("\n")
    return text, int(number)


REFUSED = "try: load_skops(sys.argv[1])\nexcept ValueError as error: print(error)\nelse: print('loaded')"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (zip_bomb, "is refused: it unpacks to more than 67108864 bytes"),
        (claimed_shape, "of 400 bytes that claims to have 400000000000"),
        (wrapped_shape, "of 0 bytes that claims to have"),
        (used_many_times, "has arrays of .* bytes, as some are used many times"),
        (long_description, "has a description of"),
        (archive_in_it, "that unpacks to"),
    ],
)
def test_sizes_that_a_skops_file_has_no_room_for_are_refused_before_memory_is_taken(tmp_path, change, message):
    save_skops(PatchGaussianDetector(3).fit(normal(30)), tmp_path / "model.skops")
    path = rewritten(tmp_path / "model.skops", change)
    assert path.stat().st_size < 1_500_000
    tracemalloc.start()
    try:
        with pytest.raises(
            ValueError, match=rf"model\.skops is refused: it .*{message.removeprefix('is refused: it ')}"
        ):
            load_skops(path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_small_file_that_names_a_huge_network_is_refused_before_memory_is_taken(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (20, 40, 40, 3), dtype=np.uint8)
    save_skops(pipeline(backbone="resnet18", layers=["layer1"], weights=None).fit(images), tmp_path / "model.skops")

    def name_another(members):
        text = members["schema.json"].decode()
        text = text.replace('"\\"resnet18\\""', '"\\"vit_b_16\\""').replace('"content": "32"', '"content": "11200"')
        members["schema.json"] = text.replace('\\"layer1\\"', '\\"encoder.layers.encoder_layer_2\\"').encode()

    rewritten(tmp_path / "model.skops", name_another)
    text, n_bytes = peak_of(REFUSED, tmp_path / "model.skops")
    assert "model.skops is not a whole model file" in text and "the weights do not fit backbone 'vit_b_16'" in text
    assert n_bytes < 200_000_000


def test_a_compressed_skops_file_is_read(tmp_path):
    fitted = PatchGaussianDetector(3).fit(normal(30))
    skops.io.dump(fitted, tmp_path / "model.skops", compression=zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(
        load_skops(tmp_path / "model.skops").score_samples(normal(5)), fitted.score_samples(normal(5))
    )


@pytest.mark.parametrize("reader", [load, load_skops])
def test_a_model_is_read_from_a_regular_file_alone(tmp_path, reader):
    os.mkfifo(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="no regular file"):
        reader(tmp_path / "model")
