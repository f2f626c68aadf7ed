"""Several threads and one estimator: nothing that is learnt is lost, and what is read is of one state."""

from __future__ import annotations

import copy
import os
import pickle
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from ipca_sklearn import BatchedIncrementalPCA, PatchGaussianDetector
from ipca_sklearn._utils._turns import in_turn, snapshot
from ipca_sklearn.decomposition import FullCovariance
from ipca_sklearn.exceptions import FewImagesWarning
from ipca_sklearn.monitoring import DriftMonitor

PATIENCE = 60  # seconds until a test that hangs fails
pytestmark = pytest.mark.filterwarnings("ignore::ipca_sklearn.exceptions.FewImagesWarning")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(130, 4, 6))
ESTIMATORS: dict[str, Callable[[], Any]] = {
    "pca": lambda: BatchedIncrementalPCA(6),  # nothing is truncated: the order of the threads does not matter
    "full covariance": FullCovariance,
    "detector": lambda: PatchGaussianDetector(6),
}


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Begin all calls at once, each in a thread of its own, and return their results."""
    ready = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        ready.wait(PATIENCE)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(run, call) for call in calls]
        return [future.result(PATIENCE) for future in futures]


def gaussians(estimator: Any) -> Any:
    return getattr(estimator, "pca_", estimator)


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "fitted"])
@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_no_sample_is_lost_when_threads_learn_at_once(make: Callable[[], Any], is_new: bool) -> None:
    estimator = make() if is_new else make().fit(X[:26])
    rest = X if is_new else X[26:]
    parts = np.split(rest, len(rest) // 13)

    def learn(part: np.ndarray) -> None:
        for sample in np.split(part, 13):
            estimator.partial_fit(sample)

    together(*(lambda part=part: learn(part) for part in parts))
    assert estimator.n_samples_seen_ == len(X)
    np.testing.assert_allclose(gaussians(estimator).mean_, X.mean(0), atol=1e-12)
    np.testing.assert_allclose(gaussians(estimator).var_, X.var(0), rtol=1e-9)


@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_fit_merge_and_partial_fit_at_once_give_what_one_order_of_them_gives(make: Callable[[], Any]) -> None:
    others = [make().fit(part) for part in np.split(X[:120], 6)]
    estimator = make().fit(X[120:])
    parts = [RNG.normal(size=(10, 4, 6)) for _ in range(4)]
    together(
        *(lambda other=other: estimator.merge(other) for other in others),
        *(lambda part=part: estimator.partial_fit(part) for part in parts),
    )
    everything = np.concatenate([X, *parts])
    assert estimator.n_samples_seen_ == len(everything)
    np.testing.assert_allclose(gaussians(estimator).mean_, everything.mean(0), atol=1e-12)
    together(*[lambda: estimator.fit(X[:50]), lambda: estimator.partial_fit(X[50:])] * 2)
    assert estimator.n_samples_seen_ in {50, 130, 50 + 2 * 80}  # a fit forgets what came before it, and nothing else


@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_two_estimators_may_take_in_each_other_at_once(make: Callable[[], Any]) -> None:
    first, second = make().fit(X[:50]), make().fit(X[50:])
    together(lambda: first.merge(second), lambda: second.merge(first))
    assert {first.n_samples_seen_, second.n_samples_seen_} in ({130}, {130, 180}, {130, 210})


class Pausing:
    """An X of several steps that lets another thread run to its end before the second one is read."""

    def __init__(self, values: np.ndarray, between: Callable[[], Any]) -> None:
        self._values, self._between = values, between
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        return self._values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, key: slice) -> np.ndarray:
        if (key.start or 0) > 0:
            together(self._between)
        return self._values[key]


READERS = ["transform", "score_samples", "decision_function", "predict", "predict_masks", "p_values", "score"]


@pytest.mark.parametrize("reader", READERS)
def test_scores_are_of_one_model_while_another_thread_learns(reader: str) -> None:
    detector = PatchGaussianDetector(2, step_size=16, false_positive_rate=0.1).fit(X)
    expected = getattr(detector, reader)(X[:40])
    other = PatchGaussianDetector(2, step_size=16, false_positive_rate=0.1).fit(9 * X + 5)
    paused = Pausing(X[:40], lambda: detector.merge(other))
    np.testing.assert_array_equal(getattr(detector, reader)(paused), expected)
    assert detector.n_samples_seen_ == 2 * 130 + 130  # both of the later two steps were read after a merge


@pytest.mark.parametrize("make", [ESTIMATORS["pca"], ESTIMATORS["full covariance"]])
def test_coordinates_are_of_one_model_while_another_thread_learns(make: Callable[[], Any]) -> None:
    pca = make().fit(X)
    coordinates = pca.transform(X[:40])
    samples = pca.inverse_transform(coordinates)
    far = make().fit(9 * X[:, ::-1] + 5)
    np.testing.assert_array_equal(pca.transform(Pausing(X[:40], lambda: pca.merge(far))), coordinates)
    pca = make().fit(X)
    np.testing.assert_array_equal(pca.inverse_transform(Pausing(coordinates, lambda: pca.merge(far))), samples)


def test_a_threshold_that_is_set_while_another_thread_learns_is_kept() -> None:
    detector = PatchGaussianDetector(2, step_size=16).fit(X)
    started, go = threading.Event(), threading.Event()

    class Waiting(Pausing):
        def __getitem__(self, key: slice) -> np.ndarray:
            started.set()
            assert go.wait(PATIENCE)
            return self._values[key]

    with ThreadPoolExecutor(2) as pool:
        learning = pool.submit(detector.partial_fit, Waiting(X[:40], lambda: None))
        assert started.wait(PATIENCE)
        setting = pool.submit(detector.set_threshold, score=-12.5)
        go.set()
        learning.result(PATIENCE)
        setting.result(PATIENCE)
    assert detector.n_samples_seen_ == 170
    assert detector.offset_ == -12.5


def test_a_monitor_takes_the_frames_of_all_threads() -> None:
    scores = RNG.normal(size=300)
    monitor = DriftMonitor(random_state=0).fit(scores[:50])
    together(*(lambda part=part: [monitor.update_scores(score) for score in part] for part in np.split(scores[50:], 5)))
    assert monitor.n_seen_ == 250
    monitor = DriftMonitor(random_state=0)
    together(*(lambda: [monitor.update(p_value) for p_value in np.full(40, 0.5)] for _ in range(5)))
    same = DriftMonitor(random_state=0).update(np.full(200, 0.5))
    assert (monitor.n_seen_, monitor.log_statistic_) == (200, same.log_statistic_)


def in_another_thread(estimator: Any, part: np.ndarray) -> int:
    return int(estimator.partial_fit(part).n_samples_seen_)


class Holding(BatchedIncrementalPCA):
    """Runs something while it learns."""

    @in_turn
    def hold(self, call: Callable[[], Any]) -> Any:
        return call()


def test_copies_have_turns_of_their_own() -> None:
    pca = Holding(2).fit(X)
    copies = [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it)), snapshot]
    for make in copies:
        other = pca.hold(lambda make=make: make(pca))
        assert pca.hold(lambda other=other: together(lambda: in_another_thread(other, X))) == [260]
    assert pca.hold(lambda: together(lambda: in_another_thread(clone(pca), X))) == [130]
    assert pca.n_samples_seen_ == 130
    assert vars(pca).keys() == vars(Holding(2).fit(X)).keys() == vars(copy.deepcopy(pca)).keys()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_process_does_not_wait_for_threads_that_were_left_behind() -> None:
    pca = Holding(2).fit(X)
    forked, reading = threading.Event(), threading.Event()

    def hold() -> None:
        reading.set()
        assert forked.wait(PATIENCE)

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(pca.hold, hold)
        assert reading.wait(PATIENCE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python's own word about threads and forks
            child = os.fork()
        if child == 0:
            os._exit(pca.hold(lambda: 7))
        forked.set()
        held.result(PATIENCE)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_learning_in_a_method_that_has_its_turn_does_not_wait_for_itself() -> None:
    pca = Holding(2)
    assert pca.hold(lambda: pca.fit(X).partial_fit(X)).n_samples_seen_ == 260


def test_warnings_name_the_line_that_learns() -> None:
    with pytest.warns(FewImagesWarning) as few:
        detector = PatchGaussianDetector(2).fit(X[:5])
        detector.partial_fit(X[5:6])
    with pytest.warns(UserWarning, match="label -1") as labelled:
        detector.partial_fit(X, np.repeat([1, -1], [120, 10]))
    assert {warning.filename for warning in [*few, *labelled]} == {__file__}
