"""What a caller's program sets for its own numbers: kept out of ours, and left as it was.

`torch.autocast`, inference mode, torch's default dtype and device, and `np.seterr` reach into every function that a
program calls. Here the same input gives the same bits, whatever they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from weakref import WeakSet

import numpy as np
import torch

from ipca_sklearn._utils._threads import Visit

# Autocast is switched for each type of device on its own.
_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def without_autocast() -> Iterator[None]:
    """Compute in the dtypes of the operands until the end of the block: the caller's `torch.autocast` does not count.

    It is a setting of the calling thread, so our workers never have it. Blocks may nest, and autocast may be switched
    on again within one.
    """
    enabled = [device for device in _AUTOCAST_DEVICES if torch.is_autocast_enabled(device)]
    for device in enabled:
        torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        for device in enabled:
            torch.set_autocast_enabled(device, True)


@contextmanager
def own_surroundings() -> Iterator[None]:
    """Calculate with numpy's usual treatment of overflow and underflow, and make ordinary tensors, until the end.

    `np.seterr(all="raise")` would turn an infinity that is meant, or a density too small for a float, into an error. A
    tensor that was made in inference mode can be neither changed nor used in training afterwards, so no model may keep
    one. As a decorator it does not serve generators: what they set would hold for their reader.
    """
    with np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"):
        if not torch.is_inference_mode_enabled():
            yield
            return
        with torch.inference_mode(False), torch.no_grad():  # the first of them also switches gradients on
            yield


@contextmanager
def default_device(device: torch.device) -> Iterator[None]:
    """Make tensors on `device` where a program has set another default device; without one nothing is changed.

    For code that may make tensors and name no device, such as a network.
    """
    current = torch.get_default_device()
    if current.type == "cpu" or current.type == device.type:
        yield
        return
    with device:
        yield


class _DefaultDtype:
    """Torch's default dtype, a setting of the whole process, float32 while at least one thread needs it.

    The first visit saves it and the last one restores it, as for `linalg.full_precision`.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._visits: WeakSet[Visit] = WeakSet()
        self._before: torch.dtype | None = None

    def make_float32(self, visit: Visit) -> None:
        with self._lock:
            now = torch.get_default_dtype()
            if now != torch.float32:
                self._before = now
                torch.set_default_dtype(torch.float32)
            self._visits.add(visit)

    def restore(self, visit: Visit) -> None:
        with self._lock:
            self._visits.discard(visit)
            if self._visits or self._before is None:
                return
            if torch.get_default_dtype() == torch.float32:  # else the program has changed it meanwhile
                torch.set_default_dtype(self._before)
            self._before = None


_default_dtype = _DefaultDtype()


@contextmanager
def as_in_a_fresh_process(device: torch.device) -> Iterator[None]:
    """Run code of others as a program does that has set nothing, with `device` as the default.

    For what draws random numbers or makes tensors and names no dtype: the layers of a new network, and augmentations.
    Where the program has set another default dtype than float32, all its threads see float32 meanwhile: torch has one
    for the whole process.
    """
    visit = Visit()
    with ExitStack() as stack:
        stack.enter_context(own_surroundings())
        stack.enter_context(without_autocast())
        stack.enter_context(default_device(device))
        stack.callback(_default_dtype.restore, visit)
        _default_dtype.make_float32(visit)
        yield
