"""Clocks that know of GPUs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def synchronize(device: Any) -> None:
    """Wait for a GPU; without it a clock measures the queueing of kernels only."""
    if str(device).startswith("cuda"):
        torch.cuda.synchronize()


def seconds(task: Callable[[], object], device: Any, repeats: int, *, warm_up: bool = True) -> list[float]:
    """Time `task` `repeats` times, after a run that does not count."""
    if warm_up:
        task()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        task()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return times
