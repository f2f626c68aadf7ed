"""Settings of the whole process, which threads share and users get back; kernels that are optional."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch

from ipca_sklearn.linalg import _execution, full_precision

PATIENCE = 60  # seconds until a test that hangs fails


@pytest.fixture(autouse=True)
def _restored_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def precision() -> str:
    return torch.get_float32_matmul_precision()


class Visitor:
    """A thread that enters `full_precision` when told to, and reports the setting inside when told to leave."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._entered, self._may_leave = Event(), Event()
        self._seen = pool.submit(self._visit)
        assert self._entered.wait(PATIENCE)

    def _visit(self) -> list[str]:
        with full_precision():
            seen = [precision()]
            self._entered.set()
            assert self._may_leave.wait(PATIENCE)
            return [*seen, precision()]

    def leave(self) -> list[str]:
        """Return the setting at the begin and at the end of the visit."""
        self._may_leave.set()
        return self._seen.result(PATIENCE)


@pytest.fixture
def enter() -> Iterator[Callable[[], Visitor]]:
    with ThreadPoolExecutor(2) as pool:
        yield lambda: Visitor(pool)


@pytest.mark.parametrize("before", ["medium", "high", "highest"])
@pytest.mark.parametrize("first_leaves_first", [True, False])
def test_threads_that_overlap_have_full_precision_to_their_end(
    enter: Callable[[], Visitor], before: str, first_leaves_first: bool
) -> None:
    torch.set_float32_matmul_precision(before)
    first, second = enter(), enter()
    for visitor in (first, second) if first_leaves_first else (second, first):
        assert precision() == "highest"
        assert visitor.leave() == ["highest", "highest"]
    assert precision() == before


def test_a_setting_changed_while_a_thread_is_inside_is_raised_for_the_next_and_kept_at_the_end(
    enter: Callable[[], Visitor],
) -> None:
    torch.set_float32_matmul_precision("medium")
    first = enter()
    torch.set_float32_matmul_precision("high")
    second = enter()
    assert first.leave()[0] == "highest"
    assert second.leave() == ["highest", "highest"]
    assert precision() == "high"


def test_a_setting_changed_while_the_last_thread_is_inside_is_kept(enter: Callable[[], Visitor]) -> None:
    torch.set_float32_matmul_precision("medium")
    only = enter()
    torch.set_float32_matmul_precision("high")
    only.leave()
    assert precision() == "high"


def test_blocks_nest_also_in_inference_mode_and_after_an_error() -> None:
    torch.set_float32_matmul_precision("high")
    with torch.inference_mode(), pytest.raises(ZeroDivisionError), full_precision():
        with full_precision():
            assert precision() == "highest"
        assert precision() == "highest"
        raise ZeroDivisionError
    assert precision() == "high"


def test_a_block_whose_begin_or_end_was_interrupted_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_float32_matmul_precision("high")
    for moment in ("_begin", "_end"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(_execution._matmul_precision, moment, interrupt)
            with full_precision():
                pass
        with full_precision():
            assert precision() == "highest"
        assert precision() == "high"


def interrupt(_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9 has one setting"
)
def test_a_precision_set_for_one_backend_alone_is_raised_and_restored() -> None:
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        set_by_user = [backend.fp32_precision for backend in backends]
        with full_precision():
            assert [backend.fp32_precision for backend in backends] == ["ieee", "ieee"]
        assert [backend.fp32_precision for backend in backends] == set_by_user
    finally:
        for backend, precision_before in zip(backends, before, strict=True):
            backend.fp32_precision = precision_before


@pytest.mark.parametrize("kernels", ["_numba_distances", "eigh._numba"])
def test_a_numba_that_cannot_be_imported_warns(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_execution, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, f"ipca_sklearn.linalg.{kernels}", None)
    with pytest.warns(UserWarning, match="numba is installed and cannot be used"):
        assert not _execution.numba_works.__wrapped__()
