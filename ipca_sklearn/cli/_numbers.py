"""Numbers on a command line that may be a word too: sizes, shares, components, Gaussians."""

from __future__ import annotations

import re
from math import nan, nextafter
from typing import Annotated, Any

import typer

LEAST = 5e-324  # the smallest number above 0
MOST_TRIMMED = nextafter(0.5, 0)

Components = Annotated[
    str,
    typer.Option(
        "--k",
        help="Components per Gaussian: a number, a share of the variance such as 0.99, or auto: 96 where patches share "
        "a Gaussian, else 16, and at most half of the features.",
    ),
]


def size_of(option: str, text: str, word: str) -> Any:
    """Return a size from a command line: a word that is allowed, a side, or height x width."""
    if text == word:
        return text
    match = re.fullmatch(r"0*([1-9]\d*)(?:[x,]0*([1-9]\d*))?", text)
    if match is None:
        raise ValueError(f"{option} {text!r} is no size: use 256 for a square, 160x416 for height x width, or {word}")
    height, width = match.groups()
    return int(height) if width is None else (int(height), int(width))


def number_of(option: str, text: str, kind: type[int | float], words: str, least: float, most: float) -> Any:
    """Return a number from a command line, or "auto"."""
    if text == "auto":
        return text
    try:
        number = kind(text)
    except ValueError:
        number = nan
    if not least <= number <= most:
        raise ValueError(f"{option} {text!r}: use {words}, or auto")
    return number


def components_of(option: str, text: str) -> Any:
    """Return `n_components`: a whole number, a share of the variance, or "auto"."""
    if text == "auto":
        return text
    if re.fullmatch(r"0*[1-9]\d*", text):
        return int(text)
    try:
        share = float(text)
    except ValueError:
        share = nan
    if not 0 < share < 1:
        raise ValueError(f"{option} {text!r}: use a whole number from 1 on, a share of the variance below 1, or auto")
    return share


def gaussians_of(option: str, text: str) -> int | None:
    """Return `n_gaussians`: a whole number, or None for one Gaussian for each patch."""
    if text == "patch":
        return None
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise ValueError(f"{option} {text!r}: use a whole number from 1 on, or patch: a Gaussian for each patch")
    return int(text)
