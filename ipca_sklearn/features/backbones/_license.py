"""The licence of a network's weights: files that contain the weights carry its conditions with them."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from ipca_sklearn.features.backbones._efficientnet_lite import LITE_NAMES
from ipca_sklearn.features.backbones._weights import is_file

# Licences that ask for no more than their text beside the file.
_PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause")
_UNKNOWN = "unknown"
_NO_WEIGHTS = "none: random weights"


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
