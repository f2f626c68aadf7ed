"""Networks of torchvision, of packages with weights and of the user, cut off after the last layer that is used."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ipca_sklearn._utils._messages import nearest
from ipca_sklearn._utils._typing import Size
from ipca_sklearn.features.backbones._efficientnet_lite import LITE_NAMES, EfficientNetLite, SamePadConv2d, lite_weights
from ipca_sklearn.features.backbones._hooks import HookedNetwork
from ipca_sklearn.features.backbones._inplace import lost_in_tracing
from ipca_sklearn.features.backbones._weights import Weights, failed_download, is_file, load_file

# Divides the maps of all layers of a pyramid evenly.
_STRIDE = 32
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Its weights come as a package: the class works without a download where that is installed.
DEFAULT_BACKBONE = "efficientnet_lite0"
# EfficientNet-Lite was trained on pixels from -1 to 1 (timm: tf_efficientnet_lite*'s mean and std).
LITE_MEAN, LITE_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

# Layers used where the user names none: those of the paper (Sec. 4.1), and layers of the same strides (4 to 16).
_DEFAULT_LAYERS = {
    r"efficientnet_lite0": ("_blocks.2", "_blocks.4", "_blocks.7", "_blocks.10"),
    r"efficientnet_lite[12]": ("_blocks.3", "_blocks.6", "_blocks.10", "_blocks.14"),
    r"efficientnet_(b\d|v2_[sml])": ("features.2", "features.3", "features.4", "features.5"),
    r"(wide_)?resne[xt]+t?\d+.*": ("layer1", "layer2", "layer3"),
    r"mobilenet_v3_large": ("features.3", "features.6", "features.12"),
    r"mobilenet_v3_small": ("features.1", "features.3", "features.8"),
    r"mobilenet_v2": ("features.3", "features.6", "features.13"),
    r"convnext_.*": ("features.1", "features.3", "features.5"),
    r"swin_.*": ("features.1", "features.3", "features.5"),
}
_VIT_DEPTHS = {"b": 12, "l": 24, "h": 32}


class CutNetwork(NamedTuple):
    """A network that returns the maps of some layers, how its images are normalised and its layers are combined."""

    network: nn.Module
    layers: tuple[str, ...] | tuple[int, ...]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    layer_pooling: str = "concat"  # what "auto" means for these layers


def torchvision_names() -> list[str]:
    """Return the names of torchvision's networks that classify images."""
    import torchvision  # half a second: EfficientNet-Lite works without it

    return list(torchvision.models.list_models(module=torchvision.models))


def build_torchvision(name: str, layers: Sequence[Any] | None, weights: Weights, crop_size: Size) -> CutNetwork:
    """Return a network of torchvision, with its weights, those of a file, or random ones."""
    import torchvision

    if name not in torchvision_names():
        raise ValueError(
            f"backbone {name!r} is unknown{nearest(name, [*LITE_NAMES, *torchvision_names()])}; it is "
            f"{', '.join(map(repr, LITE_NAMES))}, a name of torchvision.models.list_models(), 'timm:<name>' or an "
            "nn.Module"
        )
    pooling = "mean" if layers is None and name.startswith("vit_") else "concat"
    layers = default_layers(name) if layers is None else layers
    named = weights is not None and not is_file(weights)
    options = {}
    if name.startswith("vit_"):
        check_patches(name, int(name.rpartition("_")[2]), crop_size)
        if crop_size[0] != crop_size[1]:
            raise ValueError(
                f"backbone {name!r} takes square images, these are {crop_size[0]} x {crop_size[1]}: set image_size to "
                "one number, or take another network ('timm:<name>' has transformers for rectangles)"
            )
        options = {} if named else {"image_size": crop_size[0]}  # weights with a name bring the size they were made for
    try:
        network = torchvision.models.get_model(name, weights=weights if named else None, **options)
    except (KeyError, ValueError, TypeError) as error:
        known = list(torchvision.models.get_model_weights(name).__members__)
        raise ValueError(
            f"backbone {name!r} has no weights {weights!r}{nearest(str(weights), known)}; use 'DEFAULT', a file with "
            f"a suffix or None ({error})"
        ) from error
    except OSError as error:
        raise failed_download(weights, repr(name), error) from error
    if is_file(weights):
        load_file(network, weights, repr(name))
    return _cut(network, layers, repr(name))._replace(layer_pooling=pooling)


def build_lite(name: str, layers: Sequence[Any] | None, weights: Weights) -> CutNetwork:
    """Return an EfficientNet-Lite, with the weights of its package, those of a file, or random ones."""
    network = EfficientNetLite(name)
    if weights == "DEFAULT":
        weights = lite_weights(name)
    if weights is not None:
        if not is_file(weights):
            raise ValueError(f"backbone {name!r} has no weights {weights!r}; use 'DEFAULT', a file or None")
        load_file(network, weights, repr(name))
    layers = tuple(default_layers(name) if layers is None else layers)
    if {layer for layer, _ in network.named_modules()}.issuperset(layers):
        cut = CutNetwork(_cut_lite(network, layers), layers)
    else:
        cut = _cut(network, layers, repr(name))
    return cut._replace(mean=LITE_MEAN, std=LITE_STD)


class _LiteTracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, SamePadConv2d) or super().is_leaf_module(m, module_qualified_name)


def _cut_lite(network: EfficientNetLite, layers: Sequence[str]) -> torch.fx.GraphModule:
    """Do as `_cut` for modules of an EfficientNet-Lite, without torchvision, which takes a second to import."""
    graph = _LiteTracer().trace(network.eval())
    ends = {path: node for node in graph.nodes for path, _ in node.meta.get("nn_module_stack", {}).values()}
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = ({layer: ends[layer] for layer in layers},)
    cut = torch.fx.GraphModule(network, graph, type(network).__name__)
    cut.graph.eliminate_dead_code()
    cut.recompile()
    cut.delete_all_unused_submodules()
    return cut


def build_own(module: nn.Module, layers: Sequence[Any] | None, weights: Weights) -> CutNetwork:
    """Return a copy of a module of the user's, with its own weights or those of a file."""
    label = type(module).__name__
    if layers is None:
        raise _no_layers(label)
    network = copy.deepcopy(module)
    if is_file(weights):
        load_file(network, weights, label)
    return _cut(network, layers, label)


def _cut(network: nn.Module, layers: Sequence[Any], label: str) -> CutNetwork:
    """Cut a network off after the last of the layers: by tracing it or, where that does not give them, by hooks."""
    # Tracing may leave its proxies in attributes. The weights are shared: they are only read.
    traced = copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})
    try:
        nodes = _trace(traced.eval())
        see = "torchvision.models.feature_extraction.get_graph_node_names"
    except Exception as error:  # the forward of a user's module may raise anything when it is traced
        nodes = []
        see = f"its named_modules(), because torch.fx cannot trace it ({error})"
    prefixes = {name[: match.start()]: name for name in nodes for match in re.finditer(r"\.|$", name)}
    modules = {name for name, _ in network.named_modules()}
    for layer in layers:
        if layer not in prefixes.keys() | modules:
            near = nearest(str(layer), sorted(prefixes.keys() | modules))
            raise ValueError(f"backbone {label} has no layer {layer!r}{near}; see {see}")
    names = tuple(str(layer) for layer in layers)
    if prefixes.keys() >= set(names):
        return CutNetwork(_cut_traced(traced, {name: prefixes[name] for name in names}), names)
    if not modules.issuperset(names):
        raise ValueError(
            f"backbone {label} cannot give layers={list(names)} together: {sorted(set(names) - modules)} are no "
            f"modules, and {sorted(set(names) - prefixes.keys())} are modules that torch.fx does not show; choose one "
            "kind"
        )
    return CutNetwork(HookedNetwork(network, names), names)


def _trace(network: nn.Module) -> list[str]:
    """Return the names of the nodes of a network in the order of the pass, if its graph computes what it does."""
    import torchvision
    from torchvision.models.feature_extraction import NodePathTracer

    tracer = NodePathTracer(leaf_modules=_leaves(), autowrap_modules=(math, torchvision.ops))
    lost = lost_in_tracing(tracer.trace(network), network)
    if lost is not None:
        raise ValueError(f"the result of {lost}, which works in place, is not used")
    return list(tracer.node_to_qualname.values())


def _leaves() -> list[type[nn.Module]]:
    """Return modules that tracing does not enter: torchvision's own, and one whose padding depends on the image."""
    from torchvision import ops

    classes = (part for part in vars(ops).values() if isinstance(part, type))
    return [SamePadConv2d, *(part for part in classes if issubclass(part, nn.Module))]


def _cut_traced(network: nn.Module, nodes: dict[str, str]) -> torch.fx.GraphModule:
    """Return a network that returns the results of some nodes (layer to name of the node), and ends with the last."""
    from torchvision.models.feature_extraction import create_feature_extractor

    # By the names of nodes, because torchvision gives a module and the last module in it two different nodes.
    cut = create_feature_extractor(
        network,
        train_return_nodes={name: name for name in nodes},
        eval_return_nodes={node: node for node in nodes.values()},
        tracer_kwargs={"leaf_modules": _leaves()},
        suppress_diff_warning=True,
    ).eval()
    output = next(node for node in cut.graph.nodes if node.op == "output")
    output.args = ({name: output.args[0][node] for name, node in nodes.items()},)
    # Without the graph of training, which torchvision keeps beside it and whose modules may go.
    return torch.fx.GraphModule(cut, cut.graph, type(network).__name__)


def default_layers(name: str) -> tuple[str, ...]:
    """Return the layers used where the user names none."""
    layers = known_layers(name)
    if layers is None:
        raise _no_layers(repr(name))
    return layers


def known_layers(name: str) -> tuple[str, ...] | None:
    """Return the layers used where the user names none, or None if none are known."""
    if name.startswith("vit_"):
        return tuple(f"encoder.layers.encoder_layer_{block}" for block in middle_blocks(_VIT_DEPTHS[name[4]]))
    return next((layers for pattern, layers in _DEFAULT_LAYERS.items() if re.fullmatch(pattern, name)), None)


def middle_blocks(depth: int) -> list[int]:
    """Return the middle blocks of a transformer: their tokens describe parts best (of 40: SubspaceAD's, 21 to 27)."""
    return list(range(max(11 * depth // 20 - 1, 0), max(7 * depth // 10, 1)))


def _no_layers(label: str) -> ValueError:
    return ValueError(
        f"no layers are known for backbone {label}: name some in layers=; "
        "torchvision.models.feature_extraction.get_graph_node_names lists them, and named_modules() those of a network "
        "that torch.fx cannot trace"
    )


def takes_patches(backbone: str | nn.Module) -> bool:
    """Whether a network is known to cut images into patches: it pads nothing, and may take one size only."""
    return isinstance(backbone, str) and (backbone.startswith("vit_") or re.search(r"patch\d", backbone) is not None)


def sides_of(backbone: str | nn.Module, weights: Weights) -> tuple[int, Size | None]:
    """Return what the sides of images should be multiples of, and the only size that the network takes, if so."""
    if not isinstance(backbone, str):
        return _STRIDE, None
    patch = re.search(r"patch(\d+)", backbone)
    if backbone.startswith("vit_"):
        import torchvision

        try:
            side = torchvision.models.get_model_weights(backbone)[str(weights)].meta["min_size"][0]
        except (KeyError, ValueError):  # random ones, those of a file, or an error to come
            side = 224
        return side, (side, side)
    side = int(patch[1]) if patch else _STRIDE
    return side * max(1, round(_STRIDE / side)), None


def check_patches(name: str, patch_size: int, crop_size: Size) -> None:
    """Refuse a crop that is no multiple of the patches: some networks ignore the rest without a warning."""
    if any(side % patch_size for side in crop_size):
        height, width = (max(1, side // patch_size) * patch_size for side in crop_size)
        raise ValueError(
            f"images of {crop_size[0]} x {crop_size[1]} pixels are no multiple of the {patch_size} x {patch_size} "
            f"patches of {name!r}; take image_size={shown((height, width))}, or that crop_size of larger images, less "
            "a margin at both sides"
        )


def shown(size: Size) -> int | Size:
    """Return a size as a user writes it: one number for a square."""
    return size[0] if size[0] == size[1] else size


def fold_batch_norms(network: torch.fx.GraphModule) -> None:
    """Fold every batch norm into the convolution before it; that stays where it is itself a layer that is kept."""
    modules = dict(network.named_modules())
    calls = Counter(node.target for node in network.graph.nodes if node.op == "call_module")
    for node in list(network.graph.nodes):
        if node.op != "call_module":
            continue
        _fold_within(modules[node.target])
        source = node.args[0] if node.args else None
        if (
            type(modules[node.target]) is nn.BatchNorm2d
            and isinstance(source, torch.fx.Node)
            and source.op == "call_module"
            and isinstance(modules[source.target], nn.Conv2d)
            and calls[source.target] == calls[node.target] == 1
        ):
            folded = fuse_conv_bn_eval(modules[source.target], modules[node.target])
            if len(source.users) == 1:
                network.set_submodule(str(source.target), folded)
                node.replace_all_uses_with(source)
            else:
                network.set_submodule(str(node.target), folded)
                with network.graph.inserting_after(source):  # what the convolution reads may be overwritten later
                    beside = network.graph.call_module(node.target, source.args, source.kwargs)
                node.replace_all_uses_with(beside)
            network.graph.erase_node(node)
    network.delete_all_unused_submodules()
    network.recompile()


def _fold_within(block: nn.Module) -> None:
    """Fold within the sequences of a block that the tracer takes as one node (torchvision's Conv2dNormActivation)."""
    for part in block.modules():
        if isinstance(part, nn.Sequential) and type(part).forward is nn.Sequential.forward:
            for index in range(len(part) - 1):
                first, second = part[index], part[index + 1]
                if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    part[index] = fuse_conv_bn_eval(first, second)
                    part[index + 1] = nn.Identity()
