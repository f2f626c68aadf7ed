"""What a `PatchFeatureExtractor` decides when it is fitted: sizes, tiles, network, grid, region, mean image."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from sklearn.utils import check_random_state

from ipca_sklearn._utils._devices import resolve_device
from ipca_sklearn.features import engines
from ipca_sklearn.features._augment import check_augment
from ipca_sklearn.features._geometry import Geometry, as_size
from ipca_sklearn.features._reference import check_align, learn_reference, wants_foreground
from ipca_sklearn.features._remarks import SkippedImages
from ipca_sklearn.features._settings import settings_of
from ipca_sklearn.features._tiling import Tiling
from ipca_sklearn.features.backbones._backbone import Backbone


def make_network(extractor: Any, images: Any) -> None:
    """Set the fitted attributes of an extractor for checked images; after an error some of them may be set."""
    resolve_device(extractor.device, torch.device("cpu"))
    if extractor.pooling_size % 2 == 0:
        raise ValueError(f"pooling_size={extractor.pooling_size} is even: a neighbourhood has its patch in the middle")
    check_align(extractor)
    geometry = Geometry.of(images, extractor)
    tiling = Tiling.of(extractor, geometry.crop_size)
    check_augment(extractor.augment, extractor.n_augmented, geometry.image_size, geometry.crop_size)
    seed = int(check_random_state(extractor.random_state).randint(2**31 - 1))
    sizes = (geometry.crop_size, geometry.margin) if tiling is None else (tiling.size, 0)
    backbone = Backbone(extractor.backbone, extractor.layers, extractor.weights, seed, *sizes, extractor.layer_pooling)
    shapes = backbone.shapes_of_maps()
    finest = max((shape[1:] for shape in shapes), key=math.prod)
    grid_size = as_size(extractor.grid_size, "grid_size")
    if tiling is not None:
        tiling, grid_size = tiling.on_patches(finest, grid_size, fixed=extractor.crop_size is not None)
        geometry = replace(geometry, crop_size=tiling.picture, margin=tiling.context)
    elif grid_size is None:
        grid_size = geometry.without_margin(finest)
    region = None
    if extractor.region is not None and not wants_foreground(extractor):
        region = geometry.patches_inside(extractor.region, grid_size, extractor.max_pixels)
    extractor._mean, extractor._std = backbone.normalization(extractor.normalization)
    extractor._backbone, extractor._seed = backbone, seed
    extractor._channels, extractor._tiling = tuple(shape[0] for shape in shapes), tiling
    extractor._training_record = SkippedImages()
    extractor.layers_, extractor.tile_size_ = backbone.layers, None if tiling is None else tiling.size
    extractor.image_size_, extractor.crop_size_ = geometry.image_size, geometry.crop_size
    extractor._aspect_ratio, extractor.margin_ = geometry.aspect_ratio, geometry.margin
    extractor.grid_size_, extractor.region_ = (int(grid_size[0]), int(grid_size[1])), region
    extractor.n_features_out_ = sum(extractor._channels)
    extractor.reference_ = None
    engines.require(settings_of(extractor).of_network)
    learn_reference(extractor, images)
