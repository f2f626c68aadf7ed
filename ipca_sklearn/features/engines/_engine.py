"""What all engines have in common: images go through one at a time, by requests that threads do not share."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ipca_sklearn._utils._surroundings import as_in_a_fresh_process
from ipca_sklearn._utils._threads import tracing_modules

# All that live: a forked process keeps those of its parent, because to destroy them could wait for threads that the
# fork has left behind.
living: WeakSet[Engine] = WeakSet()


class Unsuitable(Exception):
    """An engine cannot run a network here; the message is the reason."""


class Engine(ABC):
    """A network compiled for one image of one size; images of a batch go through it one after another.

    So there is one size to compile, and the features of an image have the same bits in any batch.
    """

    def __init__(self) -> None:
        self._free: list[Any] = []  # requests that no thread uses at present
        living.add(self)

    def run(self, images: Tensor, out: Tensor) -> None:
        """Write the features (n, H, W, m) of normalised images (n, 3, *crop_size). Threads may call it together."""
        try:
            request = self._free.pop()
        except IndexError:
            request = self._new_request()
        for image, features in zip(images.detach(), out.detach(), strict=True):
            there = features if features.is_contiguous() else torch.empty_like(features).contiguous()
            self._run_one(request, image[None].contiguous().numpy(), there[None].numpy())
            if there is not features:
                features.copy_(there)
        self._free.append(request)  # after an error it is not used again

    @abstractmethod
    def content(self) -> bytes:
        """Return the compiled network for a file."""

    @abstractmethod
    def _new_request(self) -> Any:
        """Return what one run at a time needs."""

    @abstractmethod
    def _run_one(self, request: Any, image: Any, out: Any) -> None:
        """Write the features (1, H, W, m) of one image (1, 3, h, w), both numpy arrays in one piece."""


def exported(network: nn.Module, image: Tensor) -> torch.export.ExportedProgram:
    """Return a network as a graph of torch's operators for images like this one.

    Raises
    ------
    Unsuitable
        The graph would not be all that the network does.
    """
    with as_in_a_fresh_process(torch.device("cpu")), tracing_modules(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own making
        program = torch.export.export(network, (image,), strict=False)
    if program.graph_signature.buffers_to_mutate or program.graph_signature.user_inputs_to_mutate:
        raise Unsuitable("the network changes its own buffers, or the images")
    return program
