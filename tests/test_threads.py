"""What is set for the whole process outlives no block, not even one whose end an interrupt cut short."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from weakref import WeakSet

import pytest
import torch

from ipca_sklearn._utils import _threads

PATIENCE = 60  # seconds until a test that hangs fails
Block = Callable[[], AbstractContextManager[None]]


class InterruptedAtTheEnd(WeakSet[_threads.Visit]):
    def discard(self, item: _threads.Visit) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("visits", "interrupted", "other"),
    [
        ("_calling", _threads.calling_modules, _threads.tracing_modules),
        ("_tracing", _threads.tracing_modules, _threads.calling_modules),
    ],
)
def test_after_an_interrupt_at_the_end_of_a_block_others_do_not_wait(
    visits: str, interrupted: Block, other: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_threads, visits, InterruptedAtTheEnd())
    with pytest.raises(KeyboardInterrupt):
        enter(interrupted)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(enter, other).result(PATIENCE)


def enter(block: Block) -> None:
    with block():
        pass


def test_what_is_traced_leaves_no_source_behind() -> None:
    before = set(linecache.cache)
    for _ in range(2):
        with _threads.tracing_modules():
            torch.fx.symbolic_trace(torch.nn.ReLU())
    assert not {name for name in set(linecache.cache) - before if name.startswith("<eval_with_key>")}
    assert not _threads._TRACED_SOURCES or set(_threads._TRACED_SOURCES) <= before
    traced = torch.fx.symbolic_trace(torch.nn.ReLU())  # of the user: it stays
    assert traced.forward.__code__.co_filename in linecache.cache
