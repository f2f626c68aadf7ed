"""What all engines have in common: images go through one at a time, by requests that threads do not share."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from ipca_sklearn._utils._surroundings import as_in_a_fresh_process
from ipca_sklearn._utils._threads import tracing_modules

# All that live: a forked process keeps those of its parent, because to destroy them could wait for threads that the
# fork has left behind.
live_engines: WeakSet[Engine] = WeakSet()


class Unsuitable(Exception):
    """An engine cannot run a network here; the message is the reason."""


class Layers(nn.Module):
    """Normalised images to the layers of a backbone, with the margin, channels last, as engines compile it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return one (n, h, w, C) map per layer."""
        return tuple(layer.permute(0, 2, 3, 1) for layer in self.backbone(images))


class Engine(ABC):
    """A network compiled for one image of one size: the features of an image have the same bits in any batch."""

    def __init__(self) -> None:
        self._free: list[Any] = []  # requests that no thread uses at present
        live_engines.add(self)

    def run(self, images: Tensor, mean: Any, std: Any) -> Iterator[list[Tensor]]:
        """Yield the layers (1, C, h, w) of each image (3, *crop_size); the next image overwrites their memory.

        Images are normalised here, on one thread: torch's would look for more work for milliseconds, on the cores that
        the engine needs. Threads may call it together.
        """
        try:
            request = self._free.pop()
        except IndexError:
            request = self._new_request()
        for image in images.detach().numpy():
            np.subtract(image, mean, out=request.image[0])
            np.divide(request.image[0], std, out=request.image[0])
            self._run_one(request)
            yield [torch.from_numpy(layer).permute(0, 3, 1, 2) for layer in request.layers]
        self._free.append(request)  # after an error it is not used again

    @abstractmethod
    def content(self) -> bytes:
        """Return the compiled network for a file."""

    @abstractmethod
    def _new_request(self) -> Request:
        """Return what one run at a time needs."""

    @abstractmethod
    def _run_one(self, request: Request) -> None:
        """Compute the layers of a request's image."""


class Request(NamedTuple):
    """The memory of one image (1, 3, h, w) and of its layers (1, h, w, C), and the library's handle."""

    image: np.ndarray
    layers: list[np.ndarray]
    handle: Any


def exported(network: nn.Module, image: Tensor) -> torch.export.ExportedProgram:
    """Return a network as a graph of torch's operators for images like this one, or raise `Unsuitable`."""
    with as_in_a_fresh_process(torch.device("cpu")), tracing_modules(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own making
        # strict=False is torch's other way to trace a network, by calling it; what it would miss is checked below.
        program = torch.export.export(network, (image,), strict=False)
    if program.graph_signature.buffers_to_mutate or program.graph_signature.user_inputs_to_mutate:
        raise Unsuitable("the network changes its own buffers, or the images")
    return program
