"""In-place operations of traced networks: they must not change a layer that is kept, nor get lost in tracing."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node

from ipca_sklearn.features.backbones._efficientnet_lite import SamePadConv2d

# Whose modules and functions return memory of their own, where they do not work in place: no view, not the input.
_FRESH_MODULES = tuple(
    f"torch.nn.modules.{name}" for name in ("activation", "batchnorm", "conv", "linear", "normalization", "pooling")
)
_FRESH_FUNCTIONS = frozenset(
    {"add", "sub", "mul", "truediv", "neg", "matmul", "cat", "stack", "conv2d", "linear", "batch_norm", "group_norm"}
    | {"layer_norm", "relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "mish", "hardswish", "hardsigmoid"}
    | {"hardtanh", "sigmoid", "tanh", "softmax", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"}
)


def copy_overwritten(network: GraphModule) -> None:
    """Return copies of those layers that an operation behind them may overwrite: the others cost nothing."""
    graph = network.graph
    output = next(node for node in graph.nodes if node.op == "output")
    place = {node: index for index, node in enumerate(graph.nodes)}
    # In the order of the graph, so that its text, which the digest of a cache holds, is always the same.
    layers = sorted(set(output.all_input_nodes), key=place.__getitem__)
    overwritten = [layer for layer in layers if _is_overwritten(layer, place, network)]
    copies = {}
    for layer in overwritten:
        with graph.inserting_after(layer):
            copies[layer] = graph.call_method("clone", (layer,))
    if copies:
        output.args = ({name: copies.get(node, node) for name, node in output.args[0].items()},)
        network.recompile()


def lost_in_tracing(graph: Graph, root: nn.Module) -> str | None:
    """Return an operation that works in place and whose result is not used: torch.fx takes it for dead code."""
    for node in graph.nodes:
        if node.op.startswith("call_") and not node.users and _writes(node, root):
            return str(node.target if isinstance(node.target, str) else node.name)
    return None


def _is_overwritten(layer: Node, place: dict[Node, int], root: nn.Module) -> bool:
    """Whether a node behind a layer may write to its memory, or to memory that it shares with others."""
    sharing: set[Node] = set()
    waiting = [layer]
    while waiting:
        node = waiting.pop()
        if node in sharing:
            continue
        sharing.add(node)
        if not _is_fresh(node, root):
            waiting += node.all_input_nodes
        for user in node.users:
            if user.op == "output" or _is_fresh(user, root):
                continue
            if place[user] > place[layer] and _writes(user, root):
                return True
            waiting.append(user)
    return False


def _is_fresh(node: Node, root: nn.Module) -> bool:
    """Whether the result certainly shares no memory with the input."""
    if node.op == "call_module":
        return _is_fresh_module(root.get_submodule(str(node.target)))
    return node.op == "call_function" and _name(node.target) in _FRESH_FUNCTIONS and not _writes(node, root)


def _is_fresh_module(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and len(module) > 0:
        return _is_fresh_module(module[0])  # what follows works on memory that is already new
    if getattr(module, "inplace", False) or isinstance(module, nn.Identity):
        return False
    return type(module).__module__ in _FRESH_MODULES or isinstance(module, SamePadConv2d)


def _writes(node: Node, root: nn.Module) -> bool:
    """Whether a node may change its input: when in doubt, it may."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return not _is_fresh_module(module) and any(getattr(part, "inplace", False) for part in module.modules())
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op != "call_function":
        return False
    name = _name(node.target)
    if name is None:
        return True  # a function of the user's, which tracing does not enter
    flagged = node.kwargs.get("inplace") or any(argument is True for argument in node.args)  # F.relu(x, True)
    return (
        bool(flagged)
        or node.kwargs.get("out") is not None
        or name.endswith("_")
        or name in {"setitem", "iadd", "isub", "imul", "itruediv"}
    )


def _name(function: Any) -> str | None:
    """Return the name of a function of torch or of Python itself; None of others."""
    package = (getattr(function, "__module__", None) or "torch").partition(".")[0]  # built-in ones of torch have none
    known = {"torch", "torchvision", "_operator", "math", "builtins"}
    return getattr(function, "__name__", None) if package in known else None
