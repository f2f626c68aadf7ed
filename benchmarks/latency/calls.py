"""The calls that are timed, and their clock. Rivals import this in an environment that needs no ipca_sklearn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def frames_as_arrays(paths: Sequence[str]) -> np.ndarray:
    """Return image files as one array (n, H, W, 3)."""
    from PIL import Image

    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])


def milliseconds(call: Callable[[Any], object], inputs: Sequence[Any], warm_up: int, calls: int) -> list[float]:
    """Time calls one by one, each with the next input, after some that do not count."""
    times = []
    for number in range(warm_up + calls):
        given = inputs[number % len(inputs)]
        start = time.perf_counter()
        call(given)
        times.append(1000 * (time.perf_counter() - start))
    return times[warm_up:]


def groups_of(items: Any, size: int) -> list[Any]:
    """Return some runs of `size` items each, which start at different items; the items are repeated if they are few."""
    n = len(items)
    starts = range(0, n, max(1, size))
    chosen = [[(start + place) % n for place in range(size)] for start in starts]
    return [[items[index] for index in group] if isinstance(items, list) else items[group] for group in chosen]
