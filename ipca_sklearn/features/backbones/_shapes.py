"""The shapes of layers for images of a size, without the memory of a pass over them, and the order of their axes.

Which axes are rows, columns and channels is found from the proportions of an image, or from a second size. Orders have
timm's names: N images, C channels, H rows, W columns, L tokens.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from ipca_sklearn._utils._surroundings import default_device, without_autocast
from ipca_sklearn._utils._threads import calling_modules, tracing_modules
from ipca_sklearn._utils._typing import Size

# Images of fewer pixels are passed through the network itself, which also shows that it works.
_MOST_PIXELS = 512 * 512
# Of the smaller images that stand for a large one: the rest of a division by this, which strides divide, stays.
_STRIDES = 64
# Tokens in front of those of the patches: of the class, registers, prompts.
_MOST_EXTRA_TOKENS = 16

Run: TypeAlias = Callable[[nn.Module, Tensor], Mapping[Any, Any]]


class Shapes(NamedTuple):
    """What a network returns for one image, by layer."""

    layers: dict[Any, Any]  # shape of each, or the name of the type of what is no tensor
    n_bytes: int  # that the largest module reads and writes, in float32


def shape_of(value: Any) -> tuple[int, ...] | str:
    """Return the shape of a tensor, or the name of the type of anything else."""
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def shapes_of(network: nn.Module, run: Run, size: Size) -> Shapes:
    """Return the shapes for a blank image, without a pass of a large one; `run(network, images)` returns layers."""
    if math.prod(size) > _MOST_PIXELS:
        with suppress(Exception):  # it may raise anything, and what it raises for the image itself is what counts
            return shapes_of_copy(network, run, size)
    return _pass(network, run, size)


def shapes_of_copy(network: nn.Module, run: Run, size: Size) -> Shapes:
    """Return the shapes for a blank image of any size; the network itself sees none, which it could remember."""
    tensors = [*network.parameters(), *network.buffers()]
    try:  # on torch's device "meta", which holds no numbers
        return _pass(_copy(network, [_without_numbers(tensor) for tensor in tensors]), run, size)
    except Exception:  # whatever "meta" does not do
        copied = _copy(network, tensors)
    return _pass(copied, run, size) if math.prod(size) <= _MOST_PIXELS else _from_smaller(copied, run, size)


def _copy(network: nn.Module, tensors: list[Tensor]) -> nn.Module:
    """Return a copy with these in the places of its parameters and buffers."""
    originals = itertools.chain(network.parameters(), network.buffers())
    replaced = {id(original): tensor for original, tensor in zip(originals, tensors, strict=True)}
    with tracing_modules():  # the copy of a traced network compiles its source
        return copy.deepcopy(network, replaced)


def _without_numbers(tensor: Tensor) -> Tensor:
    there = torch.empty_like(tensor, device="meta")
    return nn.Parameter(there, requires_grad=False) if isinstance(tensor, nn.Parameter) else there


def _from_smaller(network: nn.Module, run: Run, size: Size) -> Shapes:
    """Extrapolate from four images; sides of maps grow by steps, and so their products are bilinear."""
    height, width = (min(side, 3 * _STRIDES + side % _STRIDES) for side in size)
    near, below, beside, far = (
        _pass(network, run, (height + rows, width + columns))
        for rows, columns in ((0, 0), (_STRIDES, 0), (0, _STRIDES), (_STRIDES, _STRIDES))
    )
    down, right = (size[0] - height) // _STRIDES, (size[1] - width) // _STRIDES
    layers: dict[Any, Any] = {}
    for layer, shape in near.layers.items():
        others = below.layers[layer], beside.layers[layer], far.layers[layer]
        if isinstance(shape, str):
            layers[layer] = shape
            continue
        layers[layer] = tuple(
            first + down * (second - first) + right * (third - first) + down * right * (fourth - second - third + first)
            for first, second, third, fourth in zip(shape, *others, strict=True)
        )
    n_bytes = far.n_bytes * math.prod(size) // ((height + _STRIDES) * (width + _STRIDES))
    return Shapes(layers, n_bytes)


def _pass(network: nn.Module, run: Run, size: Size) -> Shapes:
    first = next(network.parameters(), torch.zeros(0, dtype=torch.float32, device="cpu"))
    device, dtype = first.device, torch.float64 if first.dtype == torch.float64 else torch.float32
    held = [0]

    def count(_: nn.Module, given: Any, result: Any) -> None:
        held.append(sum(value.numel() * 4 for value in (*given, result) if isinstance(value, Tensor)))

    hooks = [part.register_forward_hook(count) for part in network.modules() if not list(part.children())]
    try:
        with torch.inference_mode(), without_autocast(), default_device(device), calling_modules():
            values = run(network, torch.zeros(1, 3, *size, dtype=dtype, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return Shapes({layer: shape_of(value) for layer, value in values.items()}, max(held))


def possible_orders(shape: Sequence[int] | str, image_size: Size) -> list[str]:
    """Return the orders in which a layer of this shape (or type) is a map of such images; the most usual one first."""
    if isinstance(shape, str):
        return []
    if len(shape) == 4:
        places = {"NCHW": shape[2:], "NHWC": shape[1:3]}
        return [order for order, (rows, columns) in places.items() if _is_proportional(rows, columns, image_size)]
    if len(shape) == 3:
        orders = {"NLC": shape[1], "NCL": shape[2]}
        few = [order for order, n_tokens in orders.items() if _n_extra(n_tokens, image_size) <= _MOST_EXTRA_TOKENS]
        return few or ["NLC"]
    return []


def order_by_sizes(shape: Sequence[int], other: Sequence[int]) -> str | None:
    """Return the order from the shapes for two image sizes that differ in both sides: channels stay as they are."""
    first, last = shape[1] != other[1], shape[-1] != other[-1]
    if first == last or len(shape) != len(other):
        return None
    if len(shape) == 4:
        return "NHWC" if first else "NCHW"
    return "NLC" if first else "NCL"


def as_map(value: Tensor, order: str, image_size: Size) -> Tensor:
    """Return a layer as (n, C, H, W); without rows if its tokens are no grid of the proportions of the image."""
    if order == "NHWC":
        return value.permute(0, 3, 1, 2)
    if order == "NCHW":
        return value
    tokens = value.transpose(1, 2) if order == "NCL" else value
    rows, columns = token_grid(tokens.shape[1], image_size)
    return tokens[:, tokens.shape[1] - rows * columns :].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)


def token_grid(n_tokens: int, image_size: Size) -> Size:
    """Return rows and columns of the last tokens: the largest grid with the proportions of the image."""
    divisor = math.gcd(*image_size)
    rows, columns = (side // divisor for side in image_size)
    times = math.isqrt(n_tokens // (rows * columns))
    return rows * times, columns * times


def _n_extra(n_tokens: int, image_size: Size) -> float:
    rows, columns = token_grid(n_tokens, image_size)
    return n_tokens - rows * columns if rows else math.inf


def _is_proportional(rows: int, columns: int, image_size: Size) -> bool:
    """Whether a map has about the proportions of the image, up to a row or a column that a stride has cut off."""
    height, width = image_size
    return max((rows - 1) * width / height - columns, (columns - 1) * height / width - rows) < 1
