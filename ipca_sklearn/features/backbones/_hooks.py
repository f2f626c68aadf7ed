"""Networks that torch.fx cannot trace, because their control flow depends on data: hooks read their layers."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class HookedNetwork(nn.Module):
    """A network that returns what some of its modules return at their first calls, and stops after the last of them.

    `torch.compile` compiles the parts between the hooks. `torch.export` follows the pass to its end, because it keeps
    account of the modules that are entered and left. The layer "" is the network itself.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self._passes: dict[int, dict[str, Any]] = {}  # by thread: what its pass has seen
        # Compilers do not know get_ident. Here and not as decorators, which would import torch's compiler with this
        # module: a second for programs that have no such network.
        self._this_thread, keep = torch.compiler.disable(threading.get_ident), torch.compiler.disable(_keep)
        for layer in layers:  # the hooks hold no reference to this module: a cycle would keep its weights in memory
            network.get_submodule(layer).register_forward_hook(partial(keep, self._passes, layer, len(layers)))

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Return the outputs by layer; layers that do not run on these images are not among them."""
        thread = self._this_thread()
        values = self._passes[thread] = {}
        try:
            self.network(images)
        except _LastLayerReached:
            pass
        finally:
            del self._passes[thread]
        return values


class _LastLayerReached(BaseException):
    """Ends a pass. No `Exception`, because networks may catch those for reasons of their own."""


def _keep(
    passes: dict[int, dict[str, Any]], layer: str, n_layers: int, module: nn.Module, args: Any, output: Any
) -> None:
    """Keep the output of a layer, and end the pass after the last layer: a forward hook of that layer."""
    values = passes.get(threading.get_ident())
    if values is None or layer in values:
        return
    value = only_tensor(output)
    ends = len(values) == n_layers - 1 and not torch.compiler.is_exporting()
    # What follows may change the output in place, as nn.ReLU(inplace=True) does.
    values[layer] = value.clone() if isinstance(value, Tensor) and not ends else value
    if ends:
        raise _LastLayerReached


def only_tensor(output: Any) -> Any:
    """Return the tensor in a tuple, list or mapping that holds only one; anything else as it is."""
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    tensors = [item for item in items if isinstance(item, Tensor)]
    return tensors[0] if len(tensors) == 1 else output
