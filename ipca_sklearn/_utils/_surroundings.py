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

    `np.seterr(all="raise")` would turn an infinity that is meant into an error, and a tensor made in inference mode can
    be neither changed nor used in training. As a decorator it does not serve generators.
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


_default_dtype = ProcessSetting(
    is_set=lambda: torch.get_default_dtype() == torch.float32,
    change=lambda: torch.set_default_dtype(torch.float32),
    save=lambda: partial(torch.set_default_dtype, torch.get_default_dtype()),
)


@contextmanager
def as_in_a_fresh_process(device: torch.device) -> Iterator[None]:
    """Run code of others as in a program that has set nothing, with `device` as the default.

    It is for code that draws random numbers or makes tensors and names no dtype: new layers, augmentations. If the
    program has another default dtype than float32, all its threads see float32 meanwhile: torch has one per process.
    """
    with own_surroundings(), without_autocast(), default_device(device), _default_dtype.needed():
        yield
