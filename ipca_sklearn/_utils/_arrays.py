"""Between numpy, torch, and values of some patches of a grid."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


def as_tensor(array: np.ndarray) -> Tensor:
    """Return a tensor that shares the memory of an array. Nothing here writes to it, so it may be read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)
        try:
            return torch.from_numpy(array)
        except ValueError:  # negative strides or a foreign byte order
            return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def as_real_array(values: ArrayLike, name: str) -> NDArray[Any]:
    """Return an array of real numbers; a TypeError names what holds others."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # NumPy has no bfloat16; float32 represents bfloat16 and float16 exactly.
        values = (values.float() if values.is_floating_point() and values.itemsize < 4 else values).numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}: convert it to a float or bool array.")
    return array


def at_patches(values: Tensor, region: np.ndarray) -> Tensor:
    """Return values (n, P, ...) of the P patches of a region (H, W) as (n, H, W, ...), with 0 elsewhere."""
    grid = values.new_zeros(len(values), *region.shape, *values.shape[2:])
    grid[:, torch.from_numpy(region).to(values.device)] = values
    return grid
