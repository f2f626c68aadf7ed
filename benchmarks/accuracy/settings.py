"""The rows of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common.images import PAPER_GEOMETRY

LITE0, LITE2 = "efficientnet_lite0", "efficientnet_lite2"
# Parameters of the extractor.
OURS: dict[str, Any] = {}
PAPER_IMAGES = {**PAPER_GEOMETRY, "normalization": "imagenet", "map_interpolation": "nearest", "pooling_size": 1}
# Parameters of the detector.
ONE_PER_PATCH: dict[str, Any] = {"n_gaussians": None, "image_score": "max"}
PAPER_DISTANCE = {**ONE_PER_PATCH, "distance": "mahalanobis", "centering": "deferred"}
PADIM = {**ONE_PER_PATCH, "covariance": "full", "distance": "mahalanobis", "n_random_features": 100, "random_state": 0}
# One PCA of all patches; its maps are of residuals, see `evaluation.subspace_ad`.
SUBSPACE_AD = {"n_components": 0.99, "n_gaussians": 1, "distance": "residual"}
SUBSPACE_AD_BLUR = 4.0  # pixels


@dataclass(frozen=True)
class Row:
    """A method on images of one geometry.

    Parameters
    ----------
    network, method : str
    k : int or None
        Number of components; full covariances have none.
    features, gaussian : dict
        Parameters of the extractor and of the detector.
    """

    network: str
    method: str
    k: int | None = None
    features: dict[str, Any] = field(default_factory=dict)
    gaussian: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The row's name in the file of results."""
        images = "default" if self.features == OURS else ", ".join(f"{k}={v}" for k, v in self.features.items())
        return f"{self.network} | {images} | {self.method} | {self.k}"


@dataclass(frozen=True)
class Rival:
    """A method of anomalib on EfficientNet-Lite0.

    Parameters
    ----------
    kind : {"padim", "patchcore"}
    title : str
    layers : list of str
        Of timm's network: as many, and of the same strides, as its default layers of a ResNet.
    """

    kind: str
    title: str
    layers: list[str]


PADIM_RIVAL = Rival("padim", "anomalib PaDiM, 100 features", ["blocks.1", "blocks.2", "blocks.4"])
PATCHCORE_RIVAL = Rival("patchcore", "anomalib PatchCore, coreset 1 %", ["blocks.2", "blocks.4"])
RIVALS = (PADIM_RIVAL, PATCHCORE_RIVAL)


def rows(ks: Sequence[int]) -> list[Row]:
    """Return the rows of the main table; those of the same features follow each other."""
    table = [Row(LITE0, "default")]
    table += [Row(LITE0, "default", k) for k in (32, 64, 128)]
    table += [Row(LITE0, f"n_gaussians={count}", None, OURS, {"n_gaussians": count}) for count in (1024, 64, 1)]
    table += [Row(LITE0, "one per patch", k, OURS, ONE_PER_PATCH) for k in ks]
    table += [Row(LITE0, "residual", None, OURS, {"distance": "residual"})]
    table += [Row(LITE0, "the paper's distance", k, OURS, PAPER_DISTANCE) for k in ks]
    table += [Row(LITE0, "our PaDiM", None, OURS, PADIM), Row(LITE0, "SubspaceAD", None, OURS, SUBSPACE_AD)]
    table += [Row(LITE0, "default", None, {"margin": 0}), Row(LITE0, "default", None, PAPER_GEOMETRY)]
    table += [Row(LITE0, "the paper", k, PAPER_IMAGES, PAPER_DISTANCE) for k in ks]
    return [*table, Row(LITE2, "default")]


def changes() -> list[Row]:
    """Return the rows of `--parameters`: one parameter at a time."""
    of_detector = {
        "default": {},
        "n_components=0.99": {"n_components": 0.99},
        "noise_shrinkage=0": {"noise_shrinkage": 0.0},
        "noise_shrinkage=1": {"noise_shrinkage": 1.0},
        'distance="ppca"': {"distance": "ppca"},
        'image_score="max"': {"image_score": "max"},
        "image_score=0.02": {"image_score": 0.02},
        "smoothing=1": {"smoothing": 1.0},
    }
    of_extractor = {
        'normalization="imagenet"': {"normalization": "imagenet"},
        'map_interpolation="nearest"': {"map_interpolation": "nearest"},
        "pooling_size=1": {"pooling_size": 1},
        "pooling_size=5": {"pooling_size": 5},
        'interpolation="nearest"': {"interpolation": "nearest"},
        "margin=0": {"margin": 0},
        "margin=32": {"margin": 32},
        "image_size=256": {"image_size": 256},
        "image_size=256, crop_size=224": {"image_size": 256, "crop_size": 224},
        "image_size=320": {"image_size": 320},
        'amp="bfloat16"': {"amp": "bfloat16"},
    }
    table = [Row(LITE0, change, None, OURS, gaussian) for change, gaussian in of_detector.items()]
    return table + [Row(LITE0, change, None, features) for change, features in of_extractor.items()]
