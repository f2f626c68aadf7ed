"""What torch keeps for the whole process: the number of threads, the random generator, and how modules are called.

`torch.set_num_threads` sets the number of the calling thread, and also that of all threads that start later. Whoever
sets it here restores the second at once, not at the end: overlapping users would restore each other's numbers.
"""

from __future__ import annotations

import linecache
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch.fx import graph_module

_SETTING = threading.Lock()
_DRAWING = threading.RLock()
_CALLING = threading.Condition()
# By the names of the files that tracebacks show, such as "<eval_with_key>.5". A version of torch may have none.
_TRACED_SOURCES: dict[str, str] = getattr(getattr(graph_module, "_loader", None), "eval_cache", {})


class Visit:
    """One run of a block that sets something for the whole process, kept by the block's frame.

    Whoever counts visits keeps weak references: an interrupt at the begin or the end of a block, where no `finally`
    helps, then counts for nothing.
    """


_calling: WeakSet[Visit] = WeakSet()
_tracing: WeakSet[Visit] = WeakSet()


@contextmanager
def own_torch_threads(n_threads: int | None) -> Iterator[None]:
    """Set the number of torch's threads for the calling thread alone, until the end of the block; None keeps it."""
    before = torch.get_num_threads()
    if n_threads is not None:
        _set_own(n_threads)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            _set_own(before)


@contextmanager
def single_threaded_workers(n_workers: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool whose workers use one thread of torch each."""
    with ThreadPoolExecutor(n_workers) as pool:
        with _SETTING:
            torch.get_num_threads()  # a thread takes its number at its first use of torch: before workers set theirs
            # Each worker waits for the others, so that each is set once, and none starts after the number is restored.
            all_run = threading.Barrier(n_workers)
            try:
                numbers = list(pool.map(_become_single_threaded, [all_run] * n_workers))
            except BaseException:
                all_run.abort()  # else the pool would wait for them for ever
                raise
            _set_for_new_threads(numbers[0])
        yield pool


def _become_single_threaded(all_run: threading.Barrier) -> int:
    """Set the number of a new thread to 1; return what it was, which is that of all new threads."""
    before = torch.get_num_threads()
    all_run.wait()
    torch.set_num_threads(1)
    return before


def _set_own(n_threads: int) -> None:
    with _SETTING, ThreadPoolExecutor(1) as new_thread:
        number = new_thread.submit(torch.get_num_threads).result()
        torch.set_num_threads(n_threads)
        _set_for_new_threads(number)


def _set_for_new_threads(n_threads: int) -> None:
    """Set the number of threads that start later. The calling thread keeps its own."""
    if torch.get_num_threads() == n_threads:
        torch.set_num_threads(n_threads)
        return
    thread = threading.Thread(target=torch.set_num_threads, args=(n_threads,))
    thread.start()
    thread.join()


@contextmanager
def seeded_torch(seed: int) -> Iterator[None]:
    """Seed torch's global generator on the CPU until the end of the block, for one thread of this package at a time.

    Code that draws from the global generator (the initialisation of layers, the user's transforms) has no other. What
    threads of the user draw at the same time is not repeatable.
    """
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def calling_modules() -> Iterator[None]:
    """Call modules in the block: not while another thread of this package traces one."""
    visit = Visit()
    try:
        with _CALLING:
            _wait_for_none(_tracing)
            _calling.add(visit)
        yield
    finally:
        with _CALLING:
            _calling.discard(visit)
            _CALLING.notify_all()


@contextmanager
def tracing_modules() -> Iterator[None]:
    """Trace a module in the block, alone: `torch.fx` replaces the call of all modules, in all threads, while it traces.

    Without it, a network that runs in another thread raises `NameError: module is not installed as a submodule`. The
    source of what was traced is forgotten at the end: torch.fx keeps it for tracebacks, some kilobytes for each module
    that it makes, for ever.
    """
    visit = Visit()
    known = set(_TRACED_SOURCES)
    try:
        with _CALLING:
            _tracing.add(visit)  # those who call from now on wait
            _wait_for_none(_calling)
        yield
    finally:
        for name in set(_TRACED_SOURCES) - known:
            _TRACED_SOURCES.pop(name, None)
            linecache.cache.pop(name, None)
        with _CALLING:
            _tracing.discard(visit)
            _CALLING.notify_all()


def _wait_for_none(visits: WeakSet[Visit]) -> None:
    """Wait until all visits have ended; one that an interrupt has ended does not notify."""
    while visits:
        _CALLING.wait(1)
