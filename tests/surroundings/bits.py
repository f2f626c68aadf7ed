"""The bits of results, and nothing kept from earlier ones."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from torch import Tensor, nn


def forget_derived() -> None:
    """Empty what the package keeps from earlier calls, so that a call computes it in the surroundings it is in."""
    for cached in _cached_functions(len(sys.modules)):
        cached.cache_clear()


@functools.cache  # looking at all modules takes longer than most calls
def _cached_functions(n_modules: int) -> list[Any]:
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("ipca_sklearn.")]
    values = [value for module in modules for value in list(vars(module).values())]
    return [
        value
        for value in values
        if hasattr(value, "cache_clear") and getattr(value, "__module__", "").startswith("ipca_sklearn")
    ]


def digest(value: Any) -> str:
    """Return a digest of the bits of a result: types, shapes and values of all that it holds."""
    found = hashlib.sha256()
    for part in _parts(value):
        found.update(part)
        found.update(b"|")
    return found.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield f"{value.device} {value.dtype} {tuple(value.shape)}".encode()
        if value.device.type == "cpu":
            yield value.detach().contiguous().numpy().tobytes()
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield f"{value.dtype} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, np.random.RandomState):
        yield from _parts(value.get_state())
    elif isinstance(value, (float, np.floating)):
        yield float(value).hex().encode()
    elif isinstance(value, Image.Image):
        yield from _parts(np.asarray(value))
    elif isinstance(value, nn.Module):
        yield from _parts(value.state_dict())
    elif isinstance(value, Mapping):
        for key in value:
            yield repr(key).encode()
            yield from _parts(value[key])
    elif isinstance(value, (list, tuple, np.ndarray)):
        for item in value:
            yield from _parts(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _parts({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    elif isinstance(value, (BaseEstimator, Pipeline)) or type(value).__module__.startswith("ipca_sklearn."):
        yield type(value).__name__.encode()
        yield from _parts(value.__getstate__())
    else:
        yield f"{type(value).__name__} {value!r}".encode()
