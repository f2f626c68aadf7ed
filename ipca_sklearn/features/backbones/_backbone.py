"""Backbone: a frozen network, cut off after the last layer that is used, that returns one map per layer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipca_sklearn._utils._surroundings import as_in_a_fresh_process
from ipca_sklearn._utils._threads import seeded_torch, tracing_modules
from ipca_sklearn._utils._typing import Size
from ipca_sklearn.features.backbones._efficientnet_lite import LITE_NAMES
from ipca_sklearn.features.backbones._hooks import only_tensor
from ipca_sklearn.features.backbones._inplace import copy_overwritten
from ipca_sklearn.features.backbones._networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CutNetwork,
    build_lite,
    build_own,
    build_torchvision,
    fold_batch_norms,
)
from ipca_sklearn.features.backbones._shapes import (
    Shapes,
    as_map,
    order_by_sizes,
    possible_orders,
    shape_of,
    shapes_of,
    shapes_of_copy,
)
from ipca_sklearn.features.backbones._timm import build_timm
from ipca_sklearn.features.backbones._weights import Weights

# Tracing a network concerns the whole process: one thread at a time.
_BUILDING = threading.RLock()


class Backbone(nn.Module):
    """A frozen network, cut off after the last layer that is used. Pickles as a name and weights in numpy arrays.

    A module of the user's is copied, and pickled as it is with the weights of the copy. Networks that torch.fx can
    trace are cut and their batch norms folded; of others, hooks read the layers. The parameters are those of
    `PatchFeatureExtractor`; `seed` is for random weights. A pass gives a map for each of `map_names`: the `layers`, or
    `"mean"`.
    """

    def __init__(
        self,
        source: str | nn.Module,
        layers: Sequence[Any] | None,
        weights: Weights,
        seed: int,
        crop_size: Size,
        margin: int = 0,
        layer_pooling: str = "concat",
    ) -> None:
        super().__init__()
        self._source = (source,)  # in a tuple, so that torch does not register the user's module as a part of this one
        self.crop_size, self.margin = crop_size, margin
        self._input_size = _with_margin(crop_size, margin)
        self._compiled: Callable[[Tensor], Any] | None = None
        self._seen: Shapes | None = None  # of a blank image: a tenth of a second
        self._orders: dict[str | int, str] = {}  # of the axes of each layer, once the shapes are known
        self.name = source if isinstance(source, str) else type(source).__name__
        self.is_own = not isinstance(source, str)
        self.engines: dict[Any, Any] = {}  # what `engines.choose` has compiled or decided
        with _BUILDING, tracing_modules(), as_in_a_fresh_process(torch.device("cpu")), seeded_torch(seed):
            cut = _build(source, layers, weights, self._input_size)
            self.layers, self.mean, self.std = cut.layers, cut.mean, cut.std
            self.layer_pooling = cut.layer_pooling if layer_pooling == "auto" else layer_pooling
            self.map_names = ("mean",) if self.layer_pooling == "mean" else self.layers
            self.network = cut.network.eval().requires_grad_(False)
            if isinstance(self.network, torch.fx.GraphModule):
                fold_batch_norms(self.network)
                copy_overwritten(self.network)
            self.network.to(memory_format=torch.channels_last)

    def axes(self) -> list[str]:
        """Return the order of the axes of each layer (see `_shapes`)."""
        if not self._orders:  # a stored network brings them, without the pass of an image
            self.shapes_of_maps()
        return [self._orders[layer] for layer in self.layers]

    def label(self) -> str:
        """Return the name as messages show it: in quotes, or the class of the user's module."""
        return repr(self.name) if isinstance(self._source[0], str) else self.name

    def move(self, device: torch.device) -> None:
        """Move to a device, as `to`, but at no cost where the first tensor is there already."""
        first = next(chain(self.parameters(), self.buffers()), None)
        if first is None or first.device != device:
            self.to(device)

    def forward(self, images: Tensor, *, compiled: bool = False) -> list[Tensor]:
        """Return the maps (n, C, H, W), with margin, of normalised images (n, 3, *crop_size): one per `map_names`."""
        if next((parameter.dtype for parameter in self.network.parameters()), None) == torch.float64:
            images = images.double()  # of a program whose default dtype it is
        if self.margin:
            images = F.pad(images, [self.margin] * 4, mode="reflect")
        network = self._run_compiled if compiled else self.network
        values = self._named(network, images)
        if not self._orders:  # otherwise they are known from the fit, or from the file
            self._orders = self._find_orders({layer: shape_of(value) for layer, value in values.items()})
        maps = [self._as_map(values[layer], layer) for layer in self.layers]
        if self.layer_pooling == "concat":
            return maps
        return [reduce(torch.add, [map_.float() for map_ in maps]) / len(maps)]

    def _named(self, network: Callable[[Tensor], Any], images: Tensor) -> dict[str | int, Any]:
        """Return the layers of images with their margin by name, in the order of `layers`."""
        output = network(images)
        # Both torchvision and timm return the maps in the order of the network, not in the order asked for.
        values = output if isinstance(output, dict) else dict(zip(sorted(self.layers), output, strict=True))
        for layer in self.layers:
            if layer not in values:  # only of a network with hooks
                raise ValueError(
                    f"layer {layer!r} of backbone {self.label()} does not run on images {tuple(images.shape)}; choose "
                    "a module in layers= that is called for all images"
                )
        return {layer: only_tensor(values[layer]) for layer in self.layers}

    def shapes_of_maps(self) -> list[tuple[int, int, int]]:
        """Return channels, rows and columns of each map of a blank image."""
        try:
            if self._seen is None:
                self._seen = shapes_of(self.network, self._named, self._input_size)
        except (RuntimeError, AssertionError, IndexError, TypeError) as error:
            with_margin = f", and margin={self.margin} at each edge; 0 leaves it out" if self.margin else ""
            raise ValueError(
                f"backbone {self.label()} fails on images of {self._input_size[0]} x {self._input_size[1]} pixels "
                f"(image_size, or crop_size of larger images{with_margin}): {error}"
            ) from error
        seen = self._seen
        if not self._orders:
            self._orders = self._find_orders(seen.layers)
        maps = (self._as_map(torch.empty(seen.layers[layer], device="meta"), layer).shape[1:] for layer in self.layers)
        shapes = [(channels, rows, columns) for channels, rows, columns in maps]
        if self.layer_pooling == "concat":
            return shapes
        if len(set(shapes)) > 1:
            given = ", ".join(f"{layer} {shape}" for layer, shape in zip(self.layers, shapes, strict=True))
            raise ValueError(
                f"layer_pooling='mean' needs layers with the same channels, rows and columns, and those of backbone "
                f"{self.label()} have {given}: name others in layers=, or set layer_pooling='concat'"
            )
        return shapes[:1]

    def bytes_per_image(self) -> int:
        """Return the bytes that the largest layer reads and writes for an image, in float32."""
        if self._seen is None:
            self.shapes_of_maps()
        return self._seen.n_bytes if self._seen else 0

    def _find_orders(self, shapes: dict[Any, Any]) -> dict[str | int, str]:
        """Return the order of the axes of each layer (see `_shapes`), where need be by images of other sizes."""
        possible = {layer: possible_orders(shape, self._input_size) for layer, shape in shapes.items()}
        for layer, choices in possible.items():
            if not choices:
                raise self._no_map(layer, shapes[layer])
        orders = {layer: choices[0] for layer, choices in possible.items() if len(choices) == 1}
        unclear = possible.keys() - orders.keys()
        height, width = self._input_size
        larger = [(height + more, width + more) for more in (64, 32)]  # by steps of its strides
        for size in (*larger, (2 * height, 2 * width), (height // 2, width // 2)):
            if not unclear:
                break
            try:
                others = shapes_of_copy(self.network, self._named, size).layers
            except Exception:  # it takes no images of this size, and says so in its own way
                continue
            by_sizes = {layer: order_by_sizes(shapes[layer], others[layer]) for layer in unclear}
            orders |= {layer: order for layer, order in by_sizes.items() if order in possible[layer]}
            unclear -= orders.keys()
        stated = getattr(self._source[0], "output_fmt", None) or getattr(self.network, "output_fmt", None)
        stated = getattr(stated, "value", stated)  # timm's is an enumeration
        for layer in unclear:
            if stated in possible[layer]:
                orders[layer] = str(stated)
            elif len(shapes[layer]) == 3:
                orders[layer] = "NLC"
            else:
                raise ValueError(
                    f"layer {layer!r} of backbone {self.label()} gives {shapes[layer]} for an image of "
                    f"{self._input_size[0]} x {self._input_size[1]}: whether the channels come first or last is not "
                    "known, and the network takes no other size that would show it. Set the attribute output_fmt of "
                    "the module to 'NCHW' or 'NHWC', or choose another image_size or layer"
                )
        return orders

    def normalization(self, wanted: str | Sequence[Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel: the weights' own, ImageNet's, or those that are given."""
        if isinstance(wanted, str):
            return (self.mean, self.std) if wanted == "weights" else (IMAGENET_MEAN, IMAGENET_STD)
        try:
            mean, std = (np.broadcast_to(np.asarray(part, float), 3) for part in wanted)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"normalization={wanted!r} is not (mean, std), a number or one per channel each"
            ) from error
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
            raise ValueError(f"normalization={wanted!r}: the mean must be finite, std finite and above 0")
        return tuple(mean.tolist()), tuple(std.tolist())

    def _run_compiled(self, images: Tensor) -> Any:
        try:
            if self._compiled is None:
                # Of the function: the compiled form of a module would be registered as a part of this one.
                self._compiled = torch.compile(self.network.forward, dynamic=False)
            return self._compiled(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # dynamo, the backend, Triton and the compiler each raise their own
            raise RuntimeError(
                f"torch.compile fails on backbone {self.label()} ({type(error).__name__}: {str(error)[:500]}). It "
                "needs a C++ compiler, and Triton on a GPU: install them, or set compile=False"
            ) from error

    def _as_map(self, value: Any, layer: str | int) -> Tensor:
        shape = shape_of(value)
        order = self._orders[layer]
        if order not in possible_orders(shape, self._input_size):
            raise self._no_map(layer, shape)
        found = as_map(value, order, self._input_size)
        if 0 in found.shape[2:]:
            height, width = self._input_size
            raise ValueError(
                f"layer {layer!r} of backbone {self.label()} gives {value.shape[order.index('L')]} tokens, which are "
                f"no grid of the proportions of images of {height} x {width}; set image_size to one number, or choose "
                "another in layers="
            )
        return found

    def _no_map(self, layer: str | int, shape: tuple[int, ...] | str) -> ValueError:
        what = f"layer {layer!r} of backbone {self.label()} gives {shape}"
        if len(shape) != 4 or isinstance(shape, str):
            return ValueError(f"{what}, not a map (n, C, H, W) or tokens (n, T, C); choose another in layers=")
        height, width = self._input_size
        return ValueError(
            f"{what}, which is no map (n, C, H, W) or (n, H, W, C) of images of {height} x {width}; choose another in "
            "layers="
        )

    def __getstate__(self) -> dict[str, Any]:
        weights = {key: value.cpu().numpy() for key, value in self.network.state_dict().items()}
        return {
            "source": self._source[0],
            "layers": self.layers,
            "crop_size": self.crop_size,
            "margin": self.margin,
            "layer_pooling": self.layer_pooling,
            "orders": self._orders,
            "weights": weights,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # skops and pickle make the object without __init__; it builds the same architecture, without a download.
        source, layers, crop_size, margin = (state[name] for name in ("source", "layers", "crop_size", "margin"))
        _check_shapes(source, layers, _with_margin(crop_size, margin), state["weights"])
        Backbone.__init__(self, source, layers, None, 0, crop_size, margin, state["layer_pooling"])
        if source in LITE_NAMES:
            _compare_shapes(source, layers, self._input_size, self.network, state["weights"])
        self._orders = dict(state["orders"])
        self.network.load_state_dict(
            {key: torch.from_numpy(np.array(value)) for key, value in state["weights"].items()}
        )


def _with_margin(size: Size, margin: int) -> Size:
    return size[0] + 2 * margin, size[1] + 2 * margin


def _check_shapes(source: str | nn.Module, layers: Sequence[Any], crop_size: Size, weights: dict[str, Any]) -> None:
    """Refuse weights that do not fit a network, before memory is taken: a small file may name one of any size."""
    if isinstance(source, nn.Module) or source in LITE_NAMES:
        return  # EfficientNet-Lite is small: it is compared when it is built, as "meta" takes a second to load
    place = torch.device("meta")
    try:
        with _BUILDING, tracing_modules(), as_in_a_fresh_process(place), seeded_torch(0), place:
            network = _build(source, layers, None, crop_size).network.eval()
            if isinstance(network, torch.fx.GraphModule):
                fold_batch_norms(network)
    except NotImplementedError:
        return  # some read numbers while they are made (RegNet); their size does not depend on the crop
    _compare_shapes(source, layers, crop_size, network, weights)


def _compare_shapes(
    source: str, layers: Sequence[Any], crop_size: Size, network: nn.Module, weights: dict[str, Any]
) -> None:
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: np.shape(value) for name, value in weights.items()}
    if expected != given:
        different = sorted(name for name in expected.keys() | given if expected.get(name) != given.get(name))
        raise ValueError(
            f"the weights do not fit backbone {source!r} with layers={list(layers)}, crop_size={crop_size}: "
            f"{different[0]} is {given.get(different[0])}, and {expected.get(different[0])} is expected"
        )


def _build(source: str | nn.Module, layers: Sequence[Any] | None, weights: Weights, crop_size: Size) -> CutNetwork:
    if layers is not None:
        layers = tuple(layers)
        if not 0 < len(layers) == len(set(layers)):
            raise ValueError(f"layers={list(layers)} names no layer, or one twice; name at least one, each once")
    if isinstance(source, nn.Module):
        return build_own(source, layers, weights)
    if source.startswith("timm:"):
        return build_timm(source.removeprefix("timm:"), layers, weights, crop_size)
    if source in LITE_NAMES:
        return build_lite(source, layers, weights)
    return build_torchvision(source, layers, weights, crop_size)
