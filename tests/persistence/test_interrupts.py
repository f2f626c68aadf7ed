"""Ctrl-C in fit_resumable: what was learnt is kept, also before the first regular checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.pipeline import make_pipeline

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.decomposition._batched_ipca import _PCALearning
from ipca_sklearn.persistence import fit_resumable
from ipca_sklearn.persistence._checkpoints import load_checkpoint


class Interrupting(np.ndarray):
    """An array that acts like a user who presses Ctrl-C when a sample is read for learning."""

    stop_at = 0

    def __getitem__(self, key):
        if isinstance(key, slice) and key.start is not None and key.start <= self.stop_at < key.stop:
            self.stop_at = -1
            raise KeyboardInterrupt
        return np.asarray(super().__getitem__(key))


def interrupting(X, stop_at):
    X = X.view(Interrupting)
    X.stop_at = stop_at
    return X


@pytest.mark.parametrize(("stop_at", "n_kept"), [(150, 128), (127, 0), (299, 256)])
def test_ctrl_c_keeps_the_blocks_that_are_complete(stop_at, n_kept, tmp_path):
    X = np.random.default_rng(0).normal(size=(300, 6, 8)).astype(np.float32)
    path, detector = tmp_path / "checkpoint", PatchGaussianDetector(3)
    with pytest.raises(KeyboardInterrupt):
        fit_resumable(detector, interrupting(X, stop_at), path)
    assert path.exists() == (n_kept > 0)
    if n_kept:
        assert load_checkpoint(path).n_done == detector.n_samples_seen_ == n_kept
    resumed, whole = fit_resumable(PatchGaussianDetector(3), X, path), PatchGaussianDetector(3).fit(X)
    assert resumed.offset_ == whole.offset_
    np.testing.assert_array_equal(resumed.score_samples(X), whole.score_samples(X))


@pytest.mark.parametrize("n_steps", [9, 12, 15])
def test_ctrl_c_between_steps_leaves_the_last_whole_block(n_steps, tmp_path, monkeypatch):
    X = np.random.default_rng(0).normal(size=(300, 6, 8)).astype(np.float32)
    advance, calls = _PCALearning.advance, []

    def interrupted(self, step):
        calls.append(len(step))
        if len(calls) > n_steps:
            raise KeyboardInterrupt
        return advance(self, step)

    path, detector = tmp_path / "checkpoint", PatchGaussianDetector(3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_PCALearning, "advance", interrupted)
        fit_resumable(detector, X, path)
    assert load_checkpoint(path).n_done == 128
    expected = PatchGaussianDetector(3).fit(X[:128])
    np.testing.assert_array_equal(detector.score_samples(X), expected.score_samples(X))
    resumed, whole = fit_resumable(PatchGaussianDetector(3), X, path), PatchGaussianDetector(3).fit(X)
    np.testing.assert_array_equal(resumed.score_samples(X), whole.score_samples(X))


def test_other_samples_are_refused_with_the_name_of_the_file_to_remove(tmp_path):
    X = np.random.default_rng(0).normal(size=(300, 6, 8)).astype(np.float32)
    path = tmp_path / "check\x1bpoint"
    with pytest.raises(KeyboardInterrupt):
        fit_resumable(PatchGaussianDetector(3), interrupting(X, 200), path)
    for samples in (X[1:], X[:100]):
        with pytest.raises(ValueError, match=r"remove .*check\\x1bpoint to start again"):
            fit_resumable(PatchGaussianDetector(3), samples, path)
    with pytest.raises(ValueError, match=r"remove .*check\\x1bpoint to start again"):
        fit_resumable(PatchGaussianDetector(2), X, path)


def test_files_in_a_column_of_paths_are_compared(tmp_path):
    pandas = pytest.importorskip("pandas")
    paths = [str(tmp_path / f"{number}.png") for number in range(20)]
    for path, image in zip(paths, np.random.default_rng(0).integers(0, 255, (20, 16, 16, 3), np.uint8), strict=True):
        Image.fromarray(image).save(path)
    extractor = PatchFeatureExtractor("resnet18", weights=None, image_size=16, crop_size=16, random_state=0)
    pipe, path = make_pipeline(extractor, PatchGaussianDetector(2)), tmp_path / "checkpoint"
    fit_resumable(pipe, pandas.DataFrame({"path": paths}), path)
    fit_resumable(pipe, pandas.DataFrame({"path": paths}), path, callback=pytest.fail)  # it is complete
    (tmp_path / "3.png").write_bytes(b"another image")
    with pytest.raises(ValueError, match="the checkpoint has other samples"):
        fit_resumable(pipe, pandas.DataFrame({"path": paths}), path)
