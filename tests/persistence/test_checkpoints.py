"""fit_resumable: killed at any moment, the result is that of an uninterrupted fit, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.pipeline import Pipeline

from ipca_sklearn import BatchedIncrementalPCA, PatchFeatureExtractor, PatchGaussianDetector, _version
from ipca_sklearn._utils._files import replacing
from ipca_sklearn.persistence import fit_resumable, load, save


def normal(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 3, 4, 8))


def assert_same(found, expected, X):
    np.testing.assert_array_equal(found.score_samples(X), expected.score_samples(X))
    assert (found.offset_, found.map_threshold_) == (expected.offset_, expected.map_threshold_)


def stop_after(n):
    def callback(done):
        if done >= n:
            raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize("every", [1, 16, 40])
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"forgetting_factor": 0.98},
        {"covariance": "full", "distance": "mahalanobis"},
        {"n_gaussians": 5},
        {"n_gaussians": 1, "dtype": "float32", "forgetting_factor": 0.98},
    ],
)
def test_an_interrupted_fit_goes_on_and_ends_as_if_it_had_not_been(tmp_path, every, parameters):
    X = normal(150)
    expected = PatchGaussianDetector(3, **parameters).fit(X)
    interrupted = PatchGaussianDetector(3, **parameters)
    with pytest.raises(KeyboardInterrupt):
        fit_resumable(interrupted, X, tmp_path / "c", every=every, callback=stop_after(48))
    assert 48 <= interrupted.n_samples_seen_ < 150  # usable
    assert interrupted.predict(X).shape == (150,)
    seen = []
    resumed = PatchGaussianDetector(3, **parameters)
    assert fit_resumable(resumed, X, tmp_path / "c", every=every, callback=seen.append) is resumed
    assert min(seen) > 48 and seen[-1] == 150
    assert_same(resumed, expected, X)
    fit_resumable(
        again := PatchGaussianDetector(3, **parameters), X, tmp_path / "c", every=every, callback=stop_after(0)
    )
    assert_same(again, expected, X)


def test_a_bare_pca_goes_on_too(tmp_path):
    X = normal(100)
    with pytest.raises(KeyboardInterrupt):
        fit_resumable(BatchedIncrementalPCA(3), X, tmp_path / "c", every=32, callback=stop_after(64))
    pca = fit_resumable(BatchedIncrementalPCA(3), X, tmp_path / "c", every=32)
    np.testing.assert_array_equal(pca.components_, BatchedIncrementalPCA(3).fit(X).components_)


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(0)
    found = [tmp_path / f"{index}.png" for index in range(72)]
    for path in found:
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    return found


def pipeline(augment=None, random_state=0):
    extractor = PatchFeatureExtractor(
        "resnet18", weights=None, image_size=40, crop_size=32, augment=augment, random_state=random_state
    )
    return Pipeline([("features", extractor), ("detector", PatchGaussianDetector(3, step_size=8))])


@pytest.mark.parametrize("augment", [None, "random_crop"])
def test_a_pipeline_goes_on_from_paths_with_the_same_crops(tmp_path, paths, augment):
    expected = pipeline(augment).fit(paths)
    with pytest.raises(KeyboardInterrupt):
        fit_resumable(pipeline(augment), paths, tmp_path / "c", every=10, callback=stop_after(16))
    resumed = fit_resumable(pipeline(augment), paths, tmp_path / "c", every=10)
    np.testing.assert_array_equal(resumed.score_samples(paths), expected.score_samples(paths))
    assert resumed[-1].offset_ == expected[-1].offset_


def test_other_samples_parameters_and_files_are_refused(tmp_path):
    X = normal(80)
    with pytest.raises(KeyboardInterrupt):
        fit_resumable(PatchGaussianDetector(3), X, tmp_path / "c", every=16, callback=stop_after(32))
    detector = PatchGaussianDetector(3).fit(X)
    before = detector.score_samples(X)
    with pytest.raises(ValueError, match="the first 32 of X are not those"):
        fit_resumable(detector, normal(80, seed=1), tmp_path / "c", every=16)
    with pytest.raises(ValueError, match="X has 20"):
        fit_resumable(detector, X[:20], tmp_path / "c", every=16)
    with pytest.raises(ValueError, match="n_components=3 then, 2 now"):
        fit_resumable(PatchGaussianDetector(2), X, tmp_path / "c", every=16)
    np.testing.assert_array_equal(detector.score_samples(X), before)
    save(detector, tmp_path / "model")
    with pytest.raises(ValueError, match=r"model .* holds no checkpoint: it has no checksum .* name another file"):
        fit_resumable(detector, X, tmp_path / "model")


def interrupt(model, X, path, every=16):
    with pytest.raises(KeyboardInterrupt):
        fit_resumable(model, X, path, every=every, callback=stop_after(32))


PICTURES = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)
KINDS = {
    "data frame": lambda X: pytest.importorskip("pandas").DataFrame(X[:, 0, 0]),
    "tensor": lambda X: torch.from_numpy(X),
    "bfloat16": lambda X: torch.from_numpy(X).bfloat16(),
    "list": lambda X: list(X),
    "objects": lambda X: X[:, 0, 0].astype(object),
    "Fortran": lambda X: np.asfortranarray(X),
}


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_any_kind_are_told_from_others_by_their_values(tmp_path, kind):
    X, other = normal(80), normal(80, seed=1)
    make = KINDS[kind]
    interrupt(BatchedIncrementalPCA(3), make(X), tmp_path / "c")
    with pytest.raises(ValueError, match="the first 32 of X are not those"):
        fit_resumable(BatchedIncrementalPCA(3), make(other), tmp_path / "c")
    resumed = fit_resumable(BatchedIncrementalPCA(3), make(X.copy()), tmp_path / "c")
    np.testing.assert_array_equal(
        np.asarray(resumed.components_), np.asarray(BatchedIncrementalPCA(3).fit(make(X)).components_)
    )


@pytest.mark.parametrize(
    "make", [list, lambda X: [Image.fromarray(x) for x in X], lambda X: [torch.from_numpy(x).movedim(2, 0) for x in X]]
)
def test_images_in_lists_are_told_from_others_by_their_pixels(tmp_path, make):
    pictures = np.concatenate([PICTURES, PICTURES[::-1]])
    interrupt(pipeline(), make(pictures), tmp_path / "c", every=8)
    with pytest.raises(ValueError, match="the first 32 of X are not those"):
        fit_resumable(pipeline(), make(pictures[1:].copy()), tmp_path / "c", every=8)
    assert fit_resumable(pipeline(), make(pictures.copy()), tmp_path / "c", every=8)[-1].n_samples_seen_ == 80


def test_files_that_were_replaced_are_refused_by_their_size(tmp_path, paths):
    interrupt(pipeline(), paths, tmp_path / "c", every=8)
    Image.new("RGB", (40, 40)).save(paths[3])
    with pytest.raises(ValueError, match="the first 32 of X are not those"):
        fit_resumable(pipeline(), np.array(paths, dtype=str), tmp_path / "c", every=8)


def test_the_distance_between_checkpoints_may_change(tmp_path):
    X = normal(150)
    interrupt(PatchGaussianDetector(3), X, tmp_path / "c", every=16)
    assert_same(
        fit_resumable(PatchGaussianDetector(3), X, tmp_path / "c", every=50), PatchGaussianDetector(3).fit(X), X
    )


def test_batches_of_the_network_are_those_of_one_fit(tmp_path):
    pipe = pipeline().set_params(features__batch_size=24)  # three steps of 8 at once
    seen = []
    fit_resumable(pipe, np.concatenate([PICTURES, PICTURES]), tmp_path / "c", every=1, callback=seen.append)
    assert seen == [24, 48, 72, 80]


def test_a_complete_fit_with_more_samples_is_refused(tmp_path):
    X = normal(80)
    fit_resumable(PatchGaussianDetector(3), X[:40], tmp_path / "c")
    with pytest.raises(ValueError, match="complete, with 40 samples, and X has 80"):
        fit_resumable(PatchGaussianDetector(3), X, tmp_path / "c")


def test_nothing_of_an_earlier_fit_is_left(tmp_path):
    X = normal(80)
    detector = PatchGaussianDetector(3, n_random_features=4, random_state=0).fit(X).set_params(n_random_features=None)
    assert_same(fit_resumable(detector, X, tmp_path / "c"), PatchGaussianDetector(3).fit(X), X)
    assert not hasattr(detector, "feature_indices_")


def test_another_version_and_other_weights_are_refused(tmp_path, monkeypatch):
    def own(seed):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=4, padding=1), torch.nn.ReLU())
        return pipeline().set_params(features__backbone=network, features__layers=["1"])

    interrupt(own(0), PICTURES, tmp_path / "c", every=8)
    with pytest.raises(ValueError, match="weights of features"):
        fit_resumable(own(1), PICTURES, tmp_path / "c", every=8)
    monkeypatch.setattr(_version, "__version__", "99.0")
    with (
        pytest.warns(InconsistentVersionWarning),
        pytest.raises(ValueError, match=r"made by ipca_sklearn 0\.1\.0, this is 99\.0"),
    ):
        fit_resumable(own(0), PICTURES, tmp_path / "c", every=8)
    monkeypatch.undo()
    assert fit_resumable(own(0), PICTURES, tmp_path / "c", every=8)[-1].n_samples_seen_ == 40


def test_features_without_their_pipeline_are_refused(tmp_path):
    features = pipeline()[0].fit(PICTURES).transform(PICTURES)
    with pytest.raises(TypeError, match="pass the pipeline and its images"):
        fit_resumable(PatchGaussianDetector(3), features, tmp_path / "c")


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_ctrl_c_in_a_plain_fit_leaves_the_model_as_it_was(method):
    class Interrupted:
        shape, dtype, ndim = (60, 3, 4, 8), np.dtype(float), 4

        def __getitem__(self, key):
            if key.start and key.start >= 32:
                signal.raise_signal(signal.SIGINT)
            return normal(80)[key]

    X = normal(80, seed=1)
    detector = PatchGaussianDetector(3).fit(X)
    expected = PatchGaussianDetector(3).fit(X)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born ignoring it
    try:
        with pytest.raises(KeyboardInterrupt):
            getattr(detector, method)(Interrupted())
    finally:
        signal.signal(signal.SIGINT, before)
    assert_same(detector, expected, X)


@pytest.mark.parametrize(
    ("model", "every", "message"),
    [
        (PatchGaussianDetector(2, step_size=None), 10, "cannot be resumed"),
        (PatchGaussianDetector(2, calibration=0.5), 10, "calibration='prequential'"),
        (PatchGaussianDetector(2), 0, "every=0"),
        (pipeline(random_state=None), 10, "features__random_state"),
    ],
)
def test_what_cannot_be_resumed_is_refused_at_once(tmp_path, model, every, message):
    with pytest.raises(ValueError, match=message):
        fit_resumable(model, normal(30), tmp_path / "c", every=every)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, random, signal, sys, time
import numpy as np, torch
from ipca_sklearn import PatchGaussianDetector
from ipca_sklearn._utils._files import replacing
from ipca_sklearn.persistence import fit_resumable, save

folder = sys.argv[1]
X = np.random.default_rng(0).normal(size=(1600, 6, 6, 16))  # before any thread runs, so that forks are safe
moments = random.Random(0)
kills = fits = 0
while kills < 20 or fits == 0:
    checkpoint = os.path.join(folder, f"checkpoint{fits}")
    child = os.fork()
    if child == 0:
        save(fit_resumable(PatchGaussianDetector(4), X, checkpoint, every=16), os.path.join(folder, f"model{fits}"))
        os._exit(0)
    if kills < 20:
        time.sleep(moments.uniform(0.02, 0.3))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        kills += 1
    else:
        assert status == 0
        fits += 1
print(kills, fits)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked, so that they start at once")
def test_killed_twenty_times_at_random_moments_the_result_is_that_of_one_fit(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    kills, fits = map(int, done.stdout.split())
    assert kills == 20 and fits >= 1
    X = np.random.default_rng(0).normal(size=(1600, 6, 6, 16))
    expected = PatchGaussianDetector(4).fit(X)
    for number in range(fits):
        assert_same(load(tmp_path / f"model{number}"), expected, X[:50])


def test_one_flipped_bit_anywhere_in_a_checkpoint_is_found(tmp_path):
    X = normal(60)
    interrupt(PatchGaussianDetector(3), X, tmp_path / "c")
    whole = (tmp_path / "c").read_bytes()
    for position in np.random.default_rng(0).choice(len(whole), 60, replace=False):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(position % 8)
        (tmp_path / "c").write_bytes(damaged)
        detector = PatchGaussianDetector(3)
        with pytest.raises(ValueError, match=r"(is damaged: its checksum|no checksum at its end).* Remove"):
            fit_resumable(detector, X, tmp_path / "c", every=16)
        assert not hasattr(detector, "pca_")
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:10], b"", whole + b"x"):
        (tmp_path / "c").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"c (is damaged|was written by an older).* Remove"):
            fit_resumable(PatchGaussianDetector(3), X, tmp_path / "c", every=16)
    (tmp_path / "c").write_bytes(whole)
    assert_same(
        fit_resumable(PatchGaussianDetector(3), X, tmp_path / "c", every=16), PatchGaussianDetector(3).fit(X), X
    )


def test_names_that_are_not_utf_8_are_learnt_and_compared(tmp_path, paths):
    named = [path.rename(os.fsdecode(os.fsencode(path)[:-4] + b"\xe9.png")) for path in paths]
    interrupt(pipeline(), named, tmp_path / "c", every=8)
    with pytest.raises(ValueError, match="the first 32 of X are not those"):
        fit_resumable(pipeline(), [str(path) for path in named[::-1]], tmp_path / "c", every=8)
    assert fit_resumable(pipeline(), named, tmp_path / "c", every=8)[-1].n_samples_seen_ == 72


def test_a_second_fit_leaves_the_unfinished_file_of_the_first_alone(tmp_path):
    X = normal(40)
    with pytest.raises(RuntimeError, match="stop"), replacing(tmp_path / "c") as first:
        first.write(b"half a checkpoint")
        fit_resumable(PatchGaussianDetector(3), X, tmp_path / "c", every=16)
        assert os.path.exists(first.name)
        raise RuntimeError("stop")
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("kind", ["folder", "missing folder", "device"])
def test_a_checkpoint_that_cannot_be_written_is_refused_before_anything_is_learnt(tmp_path, kind):
    path = {"folder": tmp_path, "missing folder": tmp_path / "no" / "c", "device": os.devnull}[kind]
    with pytest.raises(OSError, match=f"{os.path.basename(path)} cannot be written"):
        fit_resumable(PatchGaussianDetector(3), UNREAD, path)


class Unread:
    """Samples that must not be read."""

    def __len__(self):
        raise AssertionError("samples were read")


UNREAD = Unread()


@pytest.mark.parametrize("every", [4, 16])
def test_thresholds_of_shared_gaussians_are_those_of_one_fit(tmp_path, every):
    X = np.random.default_rng(0).normal(size=(70, 6, 6, 12))
    detector = PatchGaussianDetector(1, n_gaussians=4, step_size=4)
    resumed = fit_resumable(clone(detector), X, tmp_path / "checkpoint", every=every)
    assert resumed.offset_ == detector.fit(X).offset_
