"""Keep the caller's autocast, inference mode, default dtype and device, and `np.seterr` out of our calculations.

They reach into every function that a program calls. Here the same input gives the same bits, whatever they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from ipca_sklearn._utils._threads import ProcessSetting

# Autocast is switched for each type of device on its own.
_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def without_autocast() -> Iterator[None]:
    """Compute in the dtypes of the operands in the block: the caller's `torch.autocast` does not count."""
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
    """Calculate with numpy's usual treatment of overflow, and make ordinary tensors; no decorator for generators."""
    # Tensors made in inference mode can be neither changed nor used in training.
    with np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"):
        if not torch.is_inference_mode_enabled():
            yield
            return
        with torch.inference_mode(False), torch.no_grad():  # the first of them also switches gradients on
            yield


@contextmanager
def default_device(device: torch.device) -> Iterator[None]:
    """Make tensors on `device` where a program has set another default: for code that names none, such as a network."""
    current = torch.get_default_device()
    if current.type == "cpu" or current.type == device.type:
        yield
        return
    with device:
        yield


_default_dtype = ProcessSetting(
    is_set=lambda: torch.get_default_dtype() == torch.float32,
    change=lambda: torch.set_default_dtype(torch.float32),
    save=lambda: partial(torch.set_default_dtype, torch.get_default_dtype()),
)


@contextmanager
def as_in_a_fresh_process(device: torch.device) -> Iterator[None]:
    """Run code of others that may name no dtype and device as in a program that has set nothing but `device`.

    The default dtype is one for the process: all threads of a program with another one see float32 meanwhile.
    """
    with own_surroundings(), without_autocast(), default_device(device), _default_dtype.needed():
        yield
