"""Digests of the content of arrays, tensors and networks."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def content(values: Tensor | np.ndarray) -> Any:
    """Return the bytes of an array or a tensor, of any dtype and device, for a digest."""
    if isinstance(values, Tensor):  # numpy has no bfloat16
        return values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    if values.dtype.hasobject:  # the bytes of objects are addresses
        return "".join(f"{row}\n" for row in values.tolist()).encode()
    return np.ascontiguousarray(values).data


def describe(values: Tensor | np.ndarray) -> bytes:
    """Return dtype and shape of an array or a tensor, for a digest."""
    return f"{values.dtype} {tuple(values.shape)}\n".encode()


def weights_digest(network: nn.Module) -> str:
    """Return the digest of the names and the values of all weights and buffers of a network."""
    digest = new_digest()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} ".encode() + describe(tensor))
        digest.update(content(tensor))
    return digest.hexdigest()


def new_digest() -> Any:
    """Return an empty digest of 160 bits (BLAKE2b)."""
    return hashlib.blake2b(digest_size=20)


def hex_digest(*parts: Any) -> str:
    """Return the digest of bytes, one part after the other, in hexadecimal digits."""
    digest = new_digest()
    for part in parts:
        digest.update(part)
    return str(digest.hexdigest())
