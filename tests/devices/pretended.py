"""A GPU that is not there: tensors that say they are on it, and compute on the CPU.

torch's FakeTensorMode knows for every operator which devices go together, but has no values, so code that reads one
stops. Here each operator runs twice: on fake tensors, which refuse a tensor left on the CPU and say where the result
is, and with values on the CPU, which decide branches and shapes. So all of the code runs, and results can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ipca_sklearn.features._grid import resize_matrix
from ipca_sklearn.linalg._update import _helmert

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


class Pretended(Tensor):
    """A tensor that says it is on the GPU; `values` has its numbers, on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Pretended:
        tensor = Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device=GPU
        )
        tensor.values = values
        return tensor

    def __init__(self, values: Tensor) -> None:
        """Keep torch from calling the constructor of Tensor."""

    def tolist(self) -> Any:
        """Read all values, which torch refuses to do for classes of others."""
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"Pretended({self.values})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {}, [])


class _PretendedDevice(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {}, self.waits)


@contextmanager
def pretended_gpu() -> Iterator[list[str]]:
    """Let tensors be made on "cuda" until the end; yields the operators for which a host would wait for the GPU."""
    memory = patch.object(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 << 30))
    inference = patch.object(
        torch, "inference_mode", lambda _=True: torch.no_grad()
    )  # which wants tensors of torch's own
    try:
        with memory, inference, FakeTensorMode(), _PretendedDevice() as device:  # a FakeTensorMode looks for no GPU
            yield device.waits
    finally:
        for cached in (resize_matrix, _helmert):  # tests on a real GPU may follow
            cached.cache_clear()


def values_of(tensor: Tensor) -> Tensor:
    """Return the numbers of a tensor that must be on the pretended GPU."""
    assert isinstance(tensor, Pretended), f"a tensor of shape {tuple(tensor.shape)} is on {tensor.device}"
    return tensor.values


def _run(function: Any, args: Any, kwargs: dict[str, Any], waits: list[str]) -> Any:
    leaves = tree_leaves((args, kwargs))
    pretended = [leaf for leaf in leaves if isinstance(leaf, Pretended)]
    if not pretended and not any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves):
        with unset_fake_temporarily():
            return function(*args, **kwargs)
    device = _device_of_result(function, args, kwargs)
    if pretended and device != GPU:
        waits.append(str(function))
    with unset_fake_temporarily():
        args, kwargs = tree_map(_value, (args, kwargs))
        results = function(*args, **kwargs)
    if device == CPU:
        return results
    known = {id(tensor.values): tensor for tensor in pretended}  # what is changed in place stays the same tensor

    def placed(result: Any) -> Any:
        return known.get(id(result), Pretended(result)) if isinstance(result, Tensor) else result

    return tree_map(placed, results)


def _value(leaf: Any) -> Any:
    if isinstance(leaf, Pretended):
        return leaf.values
    return CPU if isinstance(leaf, torch.device) else leaf


_devices: dict[Any, torch.device | None] = {}


def _device_of_result(function: Any, args: Any, kwargs: dict[str, Any]) -> torch.device | None:
    """Run an operator on fakes, which raises an error if operands are on two devices; None: the host gets a number."""

    def described(leaf: Any) -> Any:
        return (leaf.device, leaf.ndim == 0) if isinstance(leaf, Tensor) else isinstance(leaf, torch.device) and leaf

    def fake(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)

    key = function, *map(described, tree_leaves((args, kwargs)))  # all that counts for devices
    if key not in _devices:
        try:
            with FakeTensorMode():
                results = tree_leaves(function(*tree_map(fake, args), **tree_map(fake, kwargs)))
            _devices[key] = next((result.device for result in results if isinstance(result, Tensor)), None)
        except DataDependentOutputException:
            _devices[key] = None
        except DynamicOutputShapeException:
            _devices[key] = GPU  # where the operands are
    return _devices[key]
