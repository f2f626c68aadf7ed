"""Sizes that differ by a scale."""

from __future__ import annotations

import math

from ipca_sklearn._utils._typing import Size


def same_proportions(size: Size, other: Size) -> bool:
    """Whether two heights and widths differ by a scale only, each side rounded to whole pixels."""
    (height, width), (other_height, other_width) = size, other
    difference = abs(math.log(height * other_width / (width * other_height)))
    return difference <= 1 / min(height, other_height) + 1 / min(width, other_width)


def is_stretched(size: Size, aspect_ratio: float | None) -> bool:
    """Whether a height and a width have another aspect ratio than this one, by more than a tenth; None is any."""
    return aspect_ratio is not None and abs(math.log(size[0] / size[1] / aspect_ratio)) > math.log(1.1)
