"""Networks of timm, which cuts them off itself and calls layers by their index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ipca_sklearn._utils._messages import nearest
from ipca_sklearn._utils._typing import Size
from ipca_sklearn.features.backbones._networks import CutNetwork, check_patches, middle_blocks, takes_patches
from ipca_sklearn.features.backbones._weights import Weights, failed_download, is_file, load_file


def build_timm(name: str, layers: Sequence[Any] | None, weights: Weights, crop_size: Size) -> CutNetwork:
    """Return a network of timm (`name` without "timm:"), with its weights, those of a file, or random ones."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"backbone='timm:{name}' needs timm; pip install timm") from error
    if not timm.is_model(name):
        raise ValueError(
            f"backbone='timm:{name}' is no model of timm{nearest(name, timm.list_models())}; list backbones with the "
            "pattern 'timm:*' to see all"
        )
    if layers is not None and not all(isinstance(layer, (int, np.integer)) and layer >= 0 for layer in layers):
        raise ValueError(f"layers={list(layers)}: layers of a timm model are indices, counted from 0")
    label = f"'timm:{name}'"
    options: dict[str, Any] = {"features_only": True}
    if weights is not None and weights != "DEFAULT":
        if not is_file(weights):
            raise ValueError(
                f"backbone {label} has no weights {weights!r}; use 'DEFAULT' (of 'timm:<name>.<tag>' where "
                "there are several), a file with a suffix or None"
            )
        whole = timm.create_model(name)  # the cut network names its weights differently
        load_file(whole, weights, label)
        options["pretrained_cfg_overlay"] = {"state_dict": whole.state_dict()}
    if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
        options["img_size"] = crop_size
    pooling = "concat"
    try:
        if layers is None:
            with torch.random.fork_rng(devices=[]):  # random weights are the same, whoever names the layers
                layers, pooling = _default_layers(name, timm.create_model(name, **options).feature_info)
        indices = tuple(int(layer) for layer in layers)
        network: Any = timm.create_model(name, pretrained=weights is not None, out_indices=indices, **options)
    except OSError as error:
        raise failed_download(weights, label, error) from error
    except (RuntimeError, AssertionError, IndexError) as error:
        raise ValueError(
            f"timm could not make {name!r} with layers={layers}: {error}. Layers of a timm model are indices of "
            "its list of features"
        ) from error
    for part in network.modules():
        if isinstance(part, timm.layers.PatchEmbed) and not part.dynamic_img_pad:
            check_patches(f"timm:{name}", part.patch_size[0], crop_size)
        if isinstance(getattr(part, "pretrained_cfg", None), dict):
            part.pretrained_cfg.pop("state_dict", None)  # timm keeps a second copy of the weights it was given
    config = timm.data.resolve_model_data_config(network)
    return CutNetwork(network, indices, tuple(config["mean"]), tuple(config["std"]), pooling)


def _default_layers(name: str, info: Any) -> tuple[list[int], str]:
    strides = dict(zip(info.out_indices, info.reduction(), strict=True))
    if len(set(strides.values())) > 1:
        return [layer for layer, stride in strides.items() if 4 <= stride <= 16], "concat"
    if "vit" in name or takes_patches(name):
        return middle_blocks(len(info.info)), "mean"
    return list(strides), "concat"
