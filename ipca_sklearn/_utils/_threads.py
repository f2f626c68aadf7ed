"""The number of threads of torch: one guard for every pool of this package.

`torch.set_num_threads` in a worker thread also sets what threads that start later begin with, in the whole process.
Whoever sets it restores the caller's number.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def restored_torch_threads() -> Iterator[int]:
    """Yield the number of threads of torch, and set it again at the end."""
    n_threads = torch.get_num_threads()
    try:
        yield n_threads
    finally:
        torch.set_num_threads(n_threads)


@contextmanager
def single_threaded_workers(n_workers: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool whose workers use one thread of torch each."""
    with (
        restored_torch_threads(),
        ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        yield pool
