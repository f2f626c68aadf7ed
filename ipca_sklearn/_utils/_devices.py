"""Which device and dtype the work is done on."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch


def resolve_device(device: Any, default: torch.device, *, required: bool = True) -> torch.device:
    """Return the device that a `device` parameter means: None is `default`, `"auto"` a GPU where there is one."""
    # A fitted model that was brought to a machine without a GPU (not `required`) goes on with the CPU.
    if device is None:
        return default
    if device == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} is not a torch device; use 'cpu', 'cuda', 'cuda:1' or 'auto'") from error
    if resolved.type == "cuda":
        if not torch.cuda.is_available() and not required:
            warnings.warn(f"device={device!r} is not available here: using the CPU", UserWarning, stacklevel=4)
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise ValueError(f"device={device!r} asks for a GPU and torch sees none; use 'cpu' or 'auto'")
        if resolved.index is None:
            resolved = torch.device("cuda", torch.cuda.current_device())
        elif resolved.index >= torch.cuda.device_count():
            raise ValueError(f"device={device!r}: torch sees {torch.cuda.device_count()} GPU(s), numbered from 0")
    return resolved


def resolve_dtype(dtype: Any, default: torch.dtype) -> torch.dtype:
    """Return the dtype that a `dtype` parameter means (a name, a numpy or a torch dtype; None is `default`)."""
    if dtype is None:
        return default
    # str(torch.float32) is "torch.float32", str(np.dtype("float32")) is "float32", and the class has a __name__.
    name = getattr(dtype, "__name__", str(dtype)).removeprefix("torch.")
    if name not in ("float32", "float64"):
        raise ValueError(f"dtype={dtype!r}: the decompositions run in 'float32' or 'float64'; use one of them or None")
    return torch.float32 if name == "float32" else torch.float64


def resolve_amp(amp: bool | str, device: torch.device) -> torch.dtype | None:
    """Return the dtype of mixed precision that an `amp` parameter means, None for none."""
    # True is bfloat16, in which no map overflows; GPUs older than Ampere only emulate it, so there it is float16.
    if not amp:
        return None
    if isinstance(amp, str):
        return torch.float16 if amp == "float16" else torch.bfloat16
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16


# Where the limit of a container is written (control groups, version 2 and 1).
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_of(device: torch.device) -> int | None:
    """Return the bytes that a device has, or a container may use of it; None if the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in _LIMITS:
        try:
            sizes.append(int(file.read_text()))
        except (OSError, ValueError):  # no container, or "max"
            continue
    return min(sizes)
