"""scikit-learn's callbacks are told of every step; without them `verbose` prints a line."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from ipca_sklearn import BatchedIncrementalPCA, PatchFeatureExtractor, PatchGaussianDetector

pytest.importorskip("sklearn.callback", reason="scikit-learn has callbacks from 1.9 on")

X = np.random.default_rng(0).normal(size=(100, 4, 6))


class Recorder:
    """A callback that keeps what it is told, and asks to stop, in vain."""

    def __init__(self):
        self.events = []

    def setup(self, estimator, context):
        self.events.append("setup")

    def on_fit_task_begin(self, estimator, context, *, X=None):
        self.events.append(("begin", context.task_name, context.max_subtasks, X))

    def on_fit_task_end(self, estimator, context, *, X=None):
        self.events.append(("end", context.task_name, context.max_subtasks, X))
        return True

    def teardown(self, estimator, context):
        self.events.append("teardown")


class Propagated(Recorder):
    max_propagation_depth = None


def names(recorder):
    return [event if isinstance(event, str) else event[:2] for event in recorder.events]


STEP = [("begin", "step"), ("end", "step")]


@pytest.mark.parametrize(("parameters", "n_steps"), [({}, 7), ({"calibration": 0.2}, 5), ({"step_size": None}, 1)])
def test_every_step_of_a_fit_is_told(parameters, n_steps):
    recorder = Recorder()
    detector = PatchGaussianDetector(2, **parameters).set_callbacks(recorder).fit(X)
    assert names(recorder) == ["setup", ("begin", "fit"), *(STEP * n_steps), ("end", "fit"), "teardown"]
    assert recorder.events[1][2] == n_steps and recorder.events[1][3] is X
    assert detector.n_samples_seen_ == (80 if "calibration" in parameters else 100)
    recorder.events.clear()
    detector.partial_fit(X[:20])
    assert names(recorder)[0] == "setup" and names(recorder)[-1] == "teardown"


def test_a_failed_fit_tears_down_and_leaves_the_detector():
    recorder = Recorder()
    detector = PatchGaussianDetector(2).set_callbacks(recorder).fit(X)
    before = detector.offset_
    recorder.events.clear()
    with pytest.raises(ValueError, match="NaN"):
        detector.partial_fit(np.where(np.arange(100)[:, None, None] == 50, np.nan, X))
    assert names(recorder)[-1] == "teardown" and ("end", "fit") not in names(recorder)
    assert detector.offset_ == before


def test_results_do_not_depend_on_callbacks():
    plain, watched = PatchGaussianDetector(2).fit(X), PatchGaussianDetector(2).set_callbacks(Recorder()).fit(X)
    np.testing.assert_array_equal(plain.pca_.components_, watched.pca_.components_)
    assert plain.offset_ == watched.offset_


def test_a_pca_tells_its_steps_too():
    recorder = Recorder()
    BatchedIncrementalPCA(2, step_size=30).set_callbacks(recorder).fit(X)
    assert names(recorder) == ["setup", ("begin", "fit"), *(STEP * 4), ("end", "fit"), "teardown"]


@pytest.mark.filterwarnings("error")
def test_a_pipeline_hands_its_callbacks_on():
    recorder = Propagated()
    extractor = PatchFeatureExtractor("resnet18", weights=None, layers=["layer1"], image_size=32)
    pipe = Pipeline([("features", extractor), ("detector", PatchGaussianDetector(2, step_size=5))])
    pipe.set_callbacks(recorder).fit(np.zeros((70, 32, 32, 3), dtype=np.uint8))
    assert names(recorder).count(("end", "step")) == 14
    assert names(recorder).count("setup") == names(recorder).count("teardown") == 1


def test_verbose_prints_one_line_unless_callbacks_are_there(capsys):
    detector = PatchGaussianDetector(2, verbose=1).fit(X)
    assert capsys.readouterr().out.startswith("[PatchGaussianDetector] 100 images learnt, the last ones in ")
    clone(detector).set_callbacks(Recorder()).fit(X)
    PatchGaussianDetector(2).fit(X)
    assert capsys.readouterr().out == ""


def test_scikit_learns_bar_counts_the_steps(capsys):
    pytest.importorskip("rich")
    from sklearn.callback import ProgressBar

    PatchGaussianDetector(2).set_callbacks(ProgressBar()).fit(X)
    assert "100%" in capsys.readouterr().out
