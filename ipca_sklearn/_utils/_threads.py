"""Settings of torch for the whole process: the number of threads, the random generator, how modules are called.

`torch.set_num_threads` sets the number of the calling thread, and also that of all threads that start later. Whoever
sets it here restores the second at once, not at the end: overlapping users would restore each other's numbers.
"""

from __future__ import annotations

import linecache
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from weakref import WeakSet

import torch
from torch.fx import graph_module

_SETTING = threading.Lock()
_DRAWING = threading.RLock()
_CALLING = threading.Condition()
_kept_pools: list[tuple[int, ThreadPoolExecutor]] = []  # at most one, with its number of workers
# By the names of the files that tracebacks show, such as "<eval_with_key>.5". A version of torch may have none.
_TRACED_SOURCES: dict[str, str] = getattr(getattr(graph_module, "_loader", None), "eval_cache", {})


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_kept_pools.clear)  # threads do not live on in a child
    # libgomp would wait for ever for those of the parent. torch sets the workers of its DataLoader to one thread, too.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class Visit:
    """One run of a block that sets something for the whole process; only the block's frame holds it."""

    # Counted by weak references: an interrupt at the begin or end of a block, where no `finally` helps, is safe.


class ProcessSetting:
    """A setting of the whole process that has one certain value (`is_set`, `change`) while a thread needs it.

    The first visit saves and changes the setting, the last one restores it with what `save` returned. That stays until
    it is restored: after a visit whose end was interrupted, the next one restores it.
    """

    def __init__(
        self, is_set: Callable[[], bool], change: Callable[[], None], save: Callable[[], Callable[[], None]]
    ) -> None:
        self._is_set = is_set
        self._change = change
        self._save = save
        self._lock = threading.Lock()
        self._visits: WeakSet[Visit] = WeakSet()
        self._restore: Callable[[], None] | None = None

    @contextmanager
    def needed(self) -> Iterator[None]:
        """Keep the value until the end of the block. Blocks may nest, and overlap in time."""
        visit = Visit()
        try:
            self._begin(visit)
            yield
        finally:
            self._end(visit)

    def _begin(self, visit: Visit) -> None:
        with self._lock:
            # Look at the setting even if there are visits: the caller's other threads may have changed it meanwhile.
            if not self._is_set():
                self._restore = self._save()
                self._change()
            self._visits.add(visit)

    def _end(self, visit: Visit) -> None:
        with self._lock:
            self._visits.discard(visit)
            if self._visits or self._restore is None:
                return
            if self._is_set():  # else the caller has changed it meanwhile, and that is to be kept
                self._restore()
            self._restore = None


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
        _make_single_threaded(pool, n_workers)
        yield pool


@contextmanager
def kept_workers(n_workers: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool like `single_threaded_workers`, whose threads wait for the next user when the block ends.

    Starting them takes longer than a small job. Whoever uses the pool waits in the block for all that was submitted.
    """
    try:
        n_kept, pool = _kept_pools.pop()  # of one user at a time: another one starts a pool of its own
    except IndexError:
        n_kept = 0
    if n_kept != n_workers:
        pool = ThreadPoolExecutor(n_workers)
    with ExitStack() as after_an_error:
        after_an_error.enter_context(pool)
        if n_kept != n_workers:
            _make_single_threaded(pool, n_workers)
        yield pool
        after_an_error.pop_all()
    _kept_pools.append((n_workers, pool))
    del _kept_pools[:-1]  # threads of a pool that nobody holds end


def _make_single_threaded(pool: ThreadPoolExecutor, n_workers: int) -> None:
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
    """Seed torch's global generator on the CPU in the block, for one thread of this package at a time."""
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

    Sources that torch.fx keeps of what it has traced, for tracebacks and for ever, are forgotten at the end.
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
