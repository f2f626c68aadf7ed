"""How much memory learning takes, and whether a machine has it: known from shapes, before the first step."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ipca_sklearn._utils._devices import memory_of
from ipca_sklearn._utils._files import shown_bytes


class MemoryNeed(NamedTuple):
    """Memory that learning takes, about, in bytes.

    Parameters
    ----------
    model : int
        What is learnt: it is kept, and stored in files.
    learning : int
        All that a fit holds at once: the model, its next version, what scores a step, the step, and what computes the
        features (the network with a batch of images).
    """

    model: int
    learning: int


def refuse_too_large(need: MemoryNeed, device: torch.device, what: str) -> None:
    """Raise a MemoryError if a device cannot hold what learning takes; where its memory is not known, it passes.

    The need is compared with all memory of the device, not with what is free: other programs may give theirs back.
    """
    there_is = memory_of(device)
    if there_is is not None and need.learning > there_is:
        raise MemoryError(
            f"{what} needs about {shown_bytes(need.learning)} of memory, {shown_bytes(need.model)} of it for the "
            f"model; {'this machine' if device.type == 'cpu' else device} has {shown_bytes(there_is)}. Lower "
            "n_components or step_size or, of PatchFeatureExtractor, image_size, grid_size or batch_size; inspect a "
            "region=; or take fewer features (layers, n_random_features of PatchGaussianDetector)"
        )
