"""Torch modules that compute features elsewhere: of whole images, and of one tile with where tiles lie."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from ipca_sklearn._utils._surroundings import as_in_a_fresh_process
from ipca_sklearn.features._grid import on_grid, resize_matrix
from ipca_sklearn.features._settings import FeatureSettings, settings_of
from ipca_sklearn.features.backbones._backbone import Backbone
from ipca_sklearn.images._resize import to_unit_floats


class PatchNetwork(nn.Module):
    """Normalised images (n, 3, *crop_size) to features (n, H, W, m), on the CPU."""

    def __init__(self, settings: FeatureSettings, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        how = settings.map_interpolation, settings.pooling_size, settings.margin
        for index, (_, *sides) in enumerate(backbone.shapes_of_maps()):
            for axis, side, patches, pixels in zip(
                ("rows", "columns"), sides, settings.grid_size, settings.images.crop_size, strict=True
            ):
                matrix = resize_matrix(side, patches, *how, pixels, torch.device("cpu"))
                self.register_buffer(f"{axis}_{index}", matrix.clone())

    def forward(self, images: Tensor) -> Tensor:
        """Return all layers on the grid, side by side."""
        resized = [
            on_grid(layer, self.get_buffer(f"rows_{index}"), self.get_buffer(f"columns_{index}"))
            for index, layer in enumerate(self.backbone(images))
        ]
        return torch.cat(resized, dim=3)


class Tile(NamedTuple):
    """Where a tile lies."""

    rows: np.ndarray  # pixels of the inspected part of the picture that the network sees
    columns: np.ndarray  # the same
    patches: tuple[slice, slice]  # rows and columns of the grid that it describes
    within: tuple[slice, slice]  # rows and columns of its features that are those


class TileModule(nn.Module):
    """Tiles to features; made by :func:`tile_module`. `tiles` are those of a picture, row by row."""

    _mean: Tensor
    _std: Tensor

    def __init__(self, settings: FeatureSettings, tiles: list[Tile]) -> None:
        super().__init__()
        self.tiles = tiles
        self._network = PatchNetwork(settings, copy.deepcopy(settings.backbone).float().cpu())
        self.register_buffer("_mean", torch.tensor(settings.mean).view(3, 1, 1))
        self.register_buffer("_std", torch.tensor(settings.std).view(3, 1, 1))

    def forward(self, tiles: Tensor) -> Tensor:
        """Return the features (n, rows, columns, m) of tiles (n, 3, *tile_size_), uint8 or floats in [0, 1]."""
        return self._network((to_unit_floats(tiles) - self._mean) / self._std)


def tile_module(extractor: Any) -> TileModule:
    """Return the network of one tile, for a program that stitches the features of large pictures itself.

    Parameters
    ----------
    extractor : PatchFeatureExtractor
        Fitted with a `tile_size`.

    Returns
    -------
    nn.Module
        On the CPU, a copy. `torch.onnx.export` writes it; the user guide has the program around it.

    Raises
    ------
    NotFittedError, ValueError
        It is not fitted, or takes whole images.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from ipca_sklearn import PatchFeatureExtractor
    >>> from ipca_sklearn.export import tile_module
    >>> pictures = np.random.default_rng(0).integers(0, 255, (1, 128, 192, 3), dtype=np.uint8)
    >>> extractor = PatchFeatureExtractor("resnet18", weights=None, random_state=0, tile_size=96, tile_overlap=32)
    >>> module = tile_module(extractor.fit(pictures))
    >>> features = np.empty(extractor.transform(pictures).shape[1:])
    >>> for tile in module.tiles:
    ...     pixels = torch.from_numpy(pictures[0][tile.rows][:, tile.columns]).movedim(-1, 0)
    ...     features[tile.patches] = module(pixels[None])[0].numpy()[tile.within]
    >>> bool(np.allclose(features, extractor.transform(pictures)[0], atol=1e-4))
    True
    """
    check_is_fitted(extractor)
    settings = settings_of(extractor, "cpu")
    tiling = settings.tiling
    if tiling is None:
        raise ValueError("tile_module takes an extractor that was fitted with tile_size=; to_torch takes others")
    axes: list[list[tuple[np.ndarray, slice, slice]]] = [[], []]
    for axis, along in enumerate(axes):
        side = tiling.picture[axis] // settings.grid_size[axis]
        for number in range(len(tiling.starts[axis])):
            seen = tiling.pixels(axis, number, torch.device("cpu")).numpy()
            along.append((seen, tiling.patches(axis, number, side), tiling.within(axis, number, side)))
    tiles = [
        Tile(rows, columns, (down, across), (inner_rows, inner_columns))
        for rows, down, inner_rows in axes[0]
        for columns, across, inner_columns in axes[1]
    ]
    with as_in_a_fresh_process(torch.device("cpu")):
        return TileModule(settings.of_network, tiles).eval().requires_grad_(False)
