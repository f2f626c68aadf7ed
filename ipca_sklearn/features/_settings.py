"""Everything besides the images that features depend on, in two frozen records."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, TypeAlias

import numpy as np
import torch
from joblib import effective_n_jobs
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ipca_sklearn._utils._devices import resolve_amp, resolve_device
from ipca_sklearn._utils._digests import hex_digest, weights_digest
from ipca_sklearn._utils._sklearn_compat import LokyBackend, get_active_backend
from ipca_sklearn._utils._typing import DeviceLike, Size
from ipca_sklearn.features._alignment import Aligner
from ipca_sklearn.features._tiling import Tiling
from ipca_sklearn.features.backbones._backbone import Backbone
from ipca_sklearn.images._resize import PIXELS_VERSION

# What `augment` may be.
Augment: TypeAlias = str | Sequence[str] | Callable[[Tensor], Tensor] | None


@dataclass(frozen=True)
class ImageSettings:
    """How images become batches for the network. See the parameters of `PatchFeatureExtractor`."""

    image_size: Size
    crop_size: Size
    interpolation: str
    # height / width that images should have; the others are counted in a warning; None for any
    aspect_ratio: float | None
    augment: Augment  # applied to each resized image (3, *image_size); the result of a callable is cropped
    n_augmented: int  # copies that are made of each image; 0 augments the image itself
    seed: int  # for the random numbers of `augment`
    batch_size: int
    on_error: str
    max_pixels: int
    n_jobs: int
    processes: bool  # whether files are decoded by processes instead of threads
    device: torch.device  # where batches go
    aligner: Aligner | None = None  # brings parts to where the mean training image has them, before an image is cropped


# Pixels that a network takes at once on a CPU: two images of 256 x 256. More are slower, because the maps between its
# layers leave the cache, and need more memory (docs/dev_notes.md).
CPU_PIXELS = 2 * 256 * 256


@dataclass(frozen=True)
class FeatureSettings:
    """How images become features. Plain data, except for the network and the user's own `augment`."""

    backbone: Backbone
    mean: tuple[float, ...]  # of each channel, subtracted from the pixels in [0, 1]
    std: tuple[float, ...]  # of each channel, divided by
    map_interpolation: str
    pooling_size: int
    grid_size: Size  # H and W
    n_features: int  # m
    region: np.ndarray | None  # the patches (H, W) that are inspected; None if all are
    images: ImageSettings
    amp_dtype: torch.dtype | None  # of mixed precision; None is float32
    compile: bool
    engine: str  # see `engines.choose`
    tiling: Tiling | None = None  # None passes whole pictures through the network

    @property
    def margin(self) -> int:
        """Pixels around an image of which the maps have patches too."""
        return self.backbone.margin if self.tiling is None else self.tiling.context

    @property
    def of_network(self) -> FeatureSettings:
        """The settings of what the network takes: a tile as an image, or the image itself."""
        if self.tiling is None:
            return self
        inner, picture = self.tiling.inner, self.tiling.picture
        rows, columns = (n * side // whole for n, side, whole in zip(self.grid_size, inner, picture, strict=True))
        images = replace(self.images, image_size=inner, crop_size=inner)
        return replace(self, grid_size=(rows, columns), region=None, images=images)

    def network_batch(self, device: torch.device) -> int:
        """Return how many images the network takes at once: on a CPU as many as stay near its cache."""
        if device.type != "cpu" or self.compile:
            return self.images.batch_size
        return max(1, min(self.images.batch_size, CPU_PIXELS // math.prod(self.images.crop_size)))

    def bytes_of_network(self, device: torch.device) -> int:
        """Return about how many bytes the network takes with the images that are in it at once."""
        weights = sum(tensor.numel() * tensor.element_size() for tensor in self.backbone.state_dict().values())
        return weights + self.network_batch(device) * self.backbone.bytes_per_image()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (H, W, m) of the features of one image."""
        return (*self.grid_size, self.n_features)

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """Shape of what is kept of one image: (P, m) for the P patches of a region, (H, W, m) without one."""
        return self.shape if self.region is None else (int(self.region.sum()), self.n_features)

    def digest(self, rounded_by: str = "") -> str:
        """Return a digest of what unaugmented features depend on besides pixels, with amp also `rounded_by`."""
        images = self.images
        parts = (
            (torch.__version__, version("torchvision"), images.device.type, self.amp_dtype, self.compile, rounded_by),
            (PIXELS_VERSION, images.image_size, images.crop_size, images.interpolation, self.mean, self.std),
            (self.map_interpolation, self.pooling_size, self.grid_size),
            (self.backbone.layers, self.backbone.layer_pooling, self.margin),
            None if self.region is None else self.region.tobytes(),
            (str(self.backbone.network), weights_digest(self.backbone.network)),
            *(() if images.aligner is None else (images.aligner.digest(),)),
            *(() if self.tiling is None else (self.tiling,)),
        )
        return hex_digest(repr(parts).encode())


def decodes_in_processes() -> bool:
    """Whether the user asked for processes with :func:`joblib.parallel_config`; threads are the default."""
    backend = get_active_backend(prefer="threads")[0]
    if not isinstance(backend, LokyBackend) and not getattr(backend, "uses_threads", False):
        warnings.warn(
            f"images are decoded by threads: joblib's {type(backend).__name__} is not used here, only "
            "'threading' and 'loky'",
            UserWarning,
            stacklevel=4,
        )
    return isinstance(backend, LokyBackend)


def settings_of(extractor: Any, device: DeviceLike = None) -> FeatureSettings:
    """Return how a fitted extractor makes features, not augmented; the device None is its own, or the CPU."""
    check_is_fitted(extractor)
    device = extractor.device if device is None else device
    chosen = resolve_device(device, torch.device("cpu"), required=False)
    reference = extractor.reference_
    return FeatureSettings(
        backbone=extractor._backbone,
        mean=extractor._mean,
        std=extractor._std,
        map_interpolation=extractor.map_interpolation,
        pooling_size=extractor.pooling_size,
        grid_size=extractor.grid_size_,
        n_features=extractor.n_features_out_,
        region=extractor.region_,
        images=ImageSettings(
            image_size=extractor.image_size_,
            crop_size=extractor.crop_size_,
            interpolation=extractor.interpolation,
            aspect_ratio=extractor._aspect_ratio,
            augment=None,
            n_augmented=0,
            seed=extractor._seed,
            batch_size=extractor.batch_size,
            on_error=extractor.on_error,
            max_pixels=extractor.max_pixels,
            n_jobs=effective_n_jobs(extractor.n_jobs),
            processes=decodes_in_processes(),
            device=chosen,
            aligner=None if reference is None else Aligner(reference, extractor._turns, extractor._least_quality),
        ),
        amp_dtype=resolve_amp(extractor.amp, chosen),
        compile=extractor.compile,
        engine=extractor.engine,
        tiling=extractor._tiling,
    )
