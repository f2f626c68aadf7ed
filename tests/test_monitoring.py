"""DriftMonitor: the probability of a false alarm, changes that are found, defects that are none, restarts."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

from ipca_sklearn import BatchedIncrementalPCA, PatchGaussianDetector
from ipca_sklearn.monitoring import DriftMonitor, _drift
from ipca_sklearn.persistence import load, load_skops, save, save_skops

# scipy's exact 99.9 % limits for 300 streams at alpha = 0.1: 300 * 0.1 = 30 on average, 47 at most.
STREAMS, ALPHA, MOST = 300, 0.1, 47


def alarms(streams: Any, **parameters: Any) -> int:
    """Count the streams (calibration scores, scores) with an alarm."""
    monitors = (DriftMonitor(ALPHA, random_state=seed, **parameters) for seed in range(STREAMS))
    return sum(m.fit(first).update_scores(later).alarm_ for m, (first, later) in zip(monitors, streams, strict=True))


@pytest.mark.parametrize("defect_rate", [0, 0.01])
def test_uniform_p_values_raise_an_alarm_as_rarely_as_ville_says(defect_rate: float, global_random_seed: int) -> None:
    rng = np.random.default_rng(global_random_seed)
    monitor = DriftMonitor(ALPHA, defect_rate=defect_rate)
    assert sum(monitor.reset().update(rng.random(1500)).alarm_ for _ in range(STREAMS)) <= MOST


@pytest.mark.parametrize("calibration", [0, 5, 100])
@pytest.mark.parametrize("max_scores", [100, 10_000])
def test_exchangeable_scores_with_ties_raise_an_alarm_as_rarely(
    calibration: int, max_scores: int, global_random_seed: int
) -> None:
    rng = np.random.default_rng(global_random_seed)
    scores = (rng.poisson(2, calibration + 600).astype(float) for _ in range(STREAMS))
    streams = ((values[:calibration], values[calibration:]) for values in scores)
    assert alarms(streams, defect_rate=0, max_scores=max_scores) <= MOST


@pytest.mark.parametrize("max_scores", [20, 10_000])
@pytest.mark.parametrize("ties", [False, True])
def test_p_values_of_exchangeable_scores_are_independent_and_uniform(
    max_scores: int, ties: bool, monkeypatch: pytest.MonkeyPatch, global_random_seed: int
) -> None:
    rng = np.random.default_rng(global_random_seed)
    seen: list[np.ndarray] = []
    original = _drift.log_payoffs
    monkeypatch.setattr(_drift, "log_payoffs", lambda p, rate: [seen.append(p), original(p, rate)][1])
    # An integer would give the same random numbers after each start.
    monitor = DriftMonitor(max_scores=max_scores, random_state=np.random.RandomState(global_random_seed))
    for _ in range(1000):
        scores = rng.permutation(40) // (8 if ties else 1)
        monitor.fit(scores[:15]).update_scores(scores[15:])
    p_values = np.array(seen)
    assert kstest(p_values.ravel(), "uniform").pvalue > 1e-4
    for lag in (1, 2, 10):
        products = (p_values[:, lag:] - 0.5) * (p_values[:, :-lag] - 0.5)  # variance 1 / 144
        assert abs(products.mean()) < 4 / 12 / np.sqrt(products.size)


def test_each_bet_is_fair_and_the_fee_covers_defects_anywhere() -> None:
    grid = (np.arange(200_000) + 0.5) / 200_000
    free, paid = (np.exp(_drift.log_payoffs(grid, rate)) for rate in (0, 0.01))
    np.testing.assert_allclose(free.mean(0), 1, rtol=1e-6)
    good = (1 - 0.01 * paid.min(0) / paid.mean(0)) / 0.99  # earlier defects rank a good frame too high
    assert (0.99 * good * paid.mean(0) + 0.01 * paid.max(0) <= 1 + 1e-5).all()
    assert (paid.mean(0) < 1).all()


def test_the_statistic_is_the_mixture_over_all_beginnings(global_random_seed: int) -> None:
    rng = np.random.default_rng(global_random_seed)
    p_values = rng.random(30) ** 2
    monitor = DriftMonitor(defect_rate=0.02).update(p_values)
    payoffs = np.exp(_drift.log_payoffs(p_values, 0.02))
    waiting = np.log(100) / np.log(100 + np.arange(31))
    expected = waiting[-1] + sum(
        (waiting[s] - waiting[s + 1]) * payoffs[s:].prod(0).mean() for s in range(len(p_values))
    )
    assert monitor.statistic_ == pytest.approx(expected, rel=1e-10)
    assert monitor.log_statistic_ == pytest.approx(np.log(expected), rel=1e-10)


def test_one_percent_of_defects_is_no_alarm_in_10000_frames(global_random_seed: int) -> None:
    rng = np.random.default_rng(global_random_seed)
    for seed in range(40):  # false alarms have a probability of at most 1 % each
        p_values = np.where(rng.random(10_000) < 0.01, 1 / 201, rng.random(10_000))
        assert not DriftMonitor(alpha=0.01).update(p_values).alarm_, seed


def test_one_percent_of_defects_among_scores_is_no_alarm_in_10000_frames(global_random_seed: int) -> None:
    rng = np.random.default_rng(global_random_seed)
    for seed in range(20):
        scores = np.where(rng.random(10_000) < 0.01, -9.0, rng.normal(size=10_000))
        assert not DriftMonitor(random_state=seed).fit(rng.normal(size=200)).update_scores(scores).alarm_, seed


@pytest.mark.parametrize("quiet", [0, 5000])
@pytest.mark.parametrize(
    ("mean", "deviation", "direction", "most"),
    [(-2, 1, "lower", 30), (2, 1, "higher", 80), (0, 3, "more varied", 120), (0, 0.1, "less varied", 120)],
)
def test_a_change_is_found_early_and_late_and_named(
    quiet: int, mean: float, deviation: float, direction: str, most: int, global_random_seed: int
) -> None:
    rng = np.random.default_rng(global_random_seed)
    monitor = DriftMonitor(random_state=global_random_seed).fit(rng.normal(size=500))
    monitor.update_scores(rng.normal(size=quiet))
    assert not monitor.alarm_
    monitor.update_scores(rng.normal(mean, deviation, 300))
    assert monitor.alarm_ and monitor.statistic_ > 100
    assert quiet < monitor.alarm_at_ <= quiet + most
    assert monitor.direction_ == direction
    assert abs(monitor.changed_since_ - quiet) < 25


def test_an_alarm_stays_until_a_restart() -> None:
    rng = np.random.default_rng(0)
    first, frames = rng.normal(size=100), np.concatenate([rng.normal(-4, size=20), rng.normal(size=2000)])
    monitor = DriftMonitor(random_state=0).fit(first).update_scores(frames)
    assert monitor.alarm_ and monitor.alarm_at_ <= 20
    assert not monitor.reset().alarm_
    assert (monitor.n_seen_, monitor.alarm_at_, monitor.statistic_, len(monitor.history_)) == (0, None, 1.0, 0)
    np.testing.assert_array_equal(monitor.calibration_scores_, first)
    again = monitor.update_scores(frames).log_statistic_
    assert again == DriftMonitor(random_state=0).fit(first).update_scores(frames).log_statistic_


def through_pickle(monitor: DriftMonitor, folder: Any) -> DriftMonitor:
    return pickle.loads(pickle.dumps(monitor))


def through_joblib(monitor: DriftMonitor, folder: Any) -> DriftMonitor:
    save(monitor, folder / "monitor.joblib")
    return load(folder / "monitor.joblib")


def through_skops(monitor: DriftMonitor, folder: Any) -> DriftMonitor:
    save_skops(monitor, folder / "monitor.skops")
    return load_skops(folder / "monitor.skops")


def same(one: DriftMonitor, other: DriftMonitor) -> bool:
    names = ("log_statistic_", "alarm_at_", "n_seen_", "n_skipped_", "changed_since_", "direction_")
    return all(getattr(one, name) == getattr(other, name) for name in names) and np.array_equal(
        one.history_, other.history_
    )


@pytest.mark.parametrize("way", [through_pickle, through_joblib, through_skops])
def test_a_stored_monitor_goes_on_as_if_nothing_had_happened(way: Any, tmp_path: Any) -> None:
    scores = np.random.default_rng(0).poisson(3, 400).astype(float)
    monitor = (
        DriftMonitor(random_state=0, max_scores=120, n_history=50).fit(scores[:100]).update_scores(scores[100:250])
    )
    loaded = way(monitor, tmp_path)
    assert same(loaded, monitor)
    assert same(loaded.update_scores(scores[250:]), monitor.update_scores(scores[250:]))


@pytest.mark.parametrize("kind", [np.asarray, list, torch.tensor])
def test_one_call_equals_a_call_per_frame_bit_for_bit(kind: Any) -> None:
    scores = np.random.default_rng(0).poisson(3, 300).astype(float)
    scores[[7, 100]] = np.nan
    together = DriftMonitor(random_state=0, max_scores=90, n_history=20).fit(kind(scores[:50]))
    alone = clone(together).fit(scores[:50])
    together.update_scores(kind(scores[50:]))
    for score in scores[50:]:
        alone.update_scores(kind([score]) if kind is list else kind(score))
    assert same(together, alone) and together.n_skipped_ == 1
    p_values = np.random.default_rng(1).random(100)
    one_by_one = DriftMonitor()
    for p_value in p_values:
        one_by_one.update(float(p_value))
    assert same(DriftMonitor().update(kind(p_values)), one_by_one)


def test_what_a_monitor_keeps_does_not_grow() -> None:
    monitor = DriftMonitor(max_scores=300, n_history=64, random_state=0)
    sizes = []
    for _ in range(8):
        monitor.update_scores(np.random.default_rng(0).normal(size=1000))
        sizes.append(len(pickle.dumps(monitor)))
    assert max(sizes[1:]) < 1.2 * sizes[0]
    np.testing.assert_array_equal(monitor.history_[:, 0], [*range(128, 8000, 128), 8000])


def test_the_history_holds_the_largest_evidence_of_its_frames() -> None:
    p_values = np.random.default_rng(0).random(1000) ** 1.2
    full = DriftMonitor(n_history=1000).update(p_values).history_
    thin = DriftMonitor(n_history=10).update(p_values).history_
    np.testing.assert_array_equal(full[:, 0], np.arange(1, 1001))
    np.testing.assert_array_equal(thin[:, 0], [*range(128, 1000, 128), 1000])
    np.testing.assert_array_equal(thin[:, 1], np.maximum.reduceat(full[:, 1], range(0, 1000, 128)))


def test_evidence_beyond_the_largest_number_is_infinite_not_an_error() -> None:
    monitor = DriftMonitor().update(np.zeros(2000))
    assert monitor.statistic_ == np.inf and 2000 < monitor.log_statistic_ < np.inf


def test_a_monitor_begins_with_the_calibration_scores_of_a_detector() -> None:
    X = np.random.default_rng(0).normal(size=(300, 5, 8))
    detector = PatchGaussianDetector(2, calibration=0.5).fit(X[:200])
    for estimator in (detector, make_pipeline(FunctionTransformer(), detector)):
        monitor = DriftMonitor.from_detector(estimator, alpha=0.05, random_state=0)
        np.testing.assert_array_equal(monitor.calibration_scores_, detector.calibration_scores_)
        assert monitor.alpha == 0.05
    monitor.update_scores(detector.score_samples(torch.from_numpy(X[200:])))
    assert not monitor.alarm_ and monitor.n_seen_ == 100
    assert monitor.update_scores(detector.score_samples(1.5 * X[200:])).direction_ == "lower"
    assert monitor.alarm_


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.update(1.2), ValueError, r"p_values\[0\] = 1.2 is not in \[0, 1\]; scores are for update_scores"),
        (lambda m: m.update([0.5, -3.0]), ValueError, r"p_values\[1\] = -3.0"),
        (lambda m: m.update([[0.5]]), ValueError, r"p_values has shape \(1, 1\)"),
        (lambda m: m.update(["0.5"]), TypeError, "p_values has dtype"),
        (lambda m: m.update_scores([1.0, np.inf]), ValueError, r"scores\[1\] is infinite"),
        (lambda m: m.update_scores(np.zeros((2, 2))), ValueError, r"scores has shape \(2, 2\)"),
        (lambda m: m.fit([-np.inf]), ValueError, r"scores\[0\] is infinite"),
        (lambda m: m.fit(np.zeros(11)), ValueError, "11 calibration scores are more than max_scores=10"),
        (lambda m: m.set_params(alpha=1).update(0.5), ValueError, "'alpha' parameter"),
        (lambda m: m.set_params(defect_rate=0.5).update_scores(0.5), ValueError, "'defect_rate' parameter"),
        (lambda m: m.set_params(n_history=1).fit(), ValueError, "'n_history' parameter"),
    ],
)
def test_wrong_calls_change_nothing_and_say_what_is_wrong(call: Any, error: type, message: str) -> None:
    monitor = DriftMonitor(max_scores=10, random_state=0).fit([1.0, 2.0]).update_scores([1.5, 3.0])
    before = through_pickle(monitor, None)
    with pytest.raises(error, match=message):
        call(monitor)
    monitor.set_params(**before.get_params())
    assert same(monitor.update_scores([1.7, 1.5]), before.update_scores([1.7, 1.5]))


def test_what_is_not_started_or_no_detector_is_named() -> None:
    for name in ("alarm_", "statistic_", "changed_since_", "direction_"):
        with pytest.raises(NotFittedError):
            getattr(DriftMonitor(), name)
    with pytest.raises(NotFittedError):
        DriftMonitor.from_detector(PatchGaussianDetector())
    with pytest.raises(TypeError, match="has no calibration scores"):
        DriftMonitor.from_detector(BatchedIncrementalPCA())


def test_nothing_seen_is_no_change() -> None:
    monitor = DriftMonitor().update([]).update(np.nan).update_scores(np.nan)
    assert (monitor.n_seen_, monitor.n_skipped_, monitor.statistic_, monitor.alarm_) == (0, 2, 1.0, False)
    assert monitor.direction_ is None and monitor.changed_since_ is None


# They need no data: a monitor takes a stream of numbers, no X.
@pytest.mark.parametrize(
    "name",
    [
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_no_attributes_set_in_init",
        "check_get_params_invariance",
        "check_set_params",
        "check_mixin_order",
        "check_parameters_default_constructible",
    ],
)
def test_scikit_learn_checks_of_parameters(name: str) -> None:
    getattr(estimator_checks, name)("DriftMonitor", DriftMonitor())
