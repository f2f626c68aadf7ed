"""Which axes of a layer are rows, columns and channels: found from the proportions of an image, or from a second size.

Orders have timm's names: N images, C channels, H rows, W columns, L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ipca_sklearn._utils._typing import Size

# Tokens in front of those of the patches: of the class, registers, prompts.
_MOST_EXTRA_TOKENS = 16


def possible_orders(shape: Sequence[int] | str, image_size: Size) -> list[str]:
    """Return the orders in which a layer of this shape is a map of images of this size; the most usual one first.

    The name of a type, of what is no tensor, has none.
    """
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
    """Return rows and columns of tokens: the largest grid with the proportions of the image.

    The tokens that are left over, in front, are those of the class and registers.
    """
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
