"""An interrupt at any line leaves an estimator as it was before the call."""

from __future__ import annotations

import copy
import linecache
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

import ipca_sklearn
from ipca_sklearn import BatchedIncrementalPCA, PatchGaussianDetector

PACKAGE = ipca_sklearn.__path__[0]


class Interrupter:
    """Raises KeyboardInterrupt at one of the lines of this package that run."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.n_lines = 0

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and not _enters_or_leaves_a_block(frame):
            self.n_lines += 1
            if self.n_lines > self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


def _enters_or_leaves_a_block(frame: Any) -> bool:
    """Whether the line is a `with`: traced, an error there would skip the end of the block, and signals cannot."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")


def lines_of(call: Callable[[], Any], at: float = np.inf) -> int:
    """Run a call up to a line, and return how many lines it ran."""
    interrupter = Interrupter(at)
    before = sys.gettrace()
    sys.settrace(interrupter)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return interrupter.n_lines


def normal(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 3, 5))


def snapshot(estimator: Any) -> list[Any]:
    pca = getattr(estimator, "pca_", estimator)
    learnt = [pca.n_samples_seen_, pca.components_.tobytes(), pca.mean_.tobytes(), pca.patch_shape_]
    if pca is not estimator:
        learnt += [estimator.offset_, estimator.calibration_scores_.tobytes(), estimator.map_threshold_]
    return learnt


ESTIMATORS = {
    "pca": lambda: BatchedIncrementalPCA(2, step_size=8),
    "detector": lambda: PatchGaussianDetector(2, step_size=8),
    "full covariance": lambda: PatchGaussianDetector(covariance="full", distance="mahalanobis", step_size=8),
}


@pytest.mark.filterwarnings("ignore::ipca_sklearn.exceptions.FewImagesWarning")
@pytest.mark.parametrize("method", ["fit", "partial_fit", "merge", "calibrate"])
@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_an_interrupt_at_any_line_leaves_the_old_or_the_new_estimator(make: Any, method: str) -> None:
    if not hasattr(make(), method):
        pytest.skip("PCAs have no thresholds")
    argument = make().fit(normal(20, 1)) if method == "merge" else normal(20, 1)
    start = make().fit(normal(24, 0))
    finished = copy.copy(start)
    n_lines = lines_of(partial(getattr(finished, method), argument))
    old, new = snapshot(start), snapshot(finished)
    assert n_lines > 40 and old != new
    ends = []
    # Every line at the end, where results are stored, and some of the others (IPCA_SKLEARN_HYPOTHESIS=thorough: all).
    stride = max(1, n_lines // 30) if settings().max_examples < 500 else 1
    for at in [*range(0, n_lines - 40, stride), *range(n_lines - 40, n_lines)]:
        estimator = copy.copy(start)
        lines_of(partial(getattr(estimator, method), argument), at)
        ends.append(snapshot(estimator))
        assert ends[-1] in (old, new), f"line {at} of {n_lines} left a mixture"
    assert ends[0] == old and snapshot(start) == old
