"""The network and the way of its layers to the grid as one module: what is exported, and what an engine compiles."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ipca_sklearn.features._grid import on_grid, resize_matrix
from ipca_sklearn.features._settings import FeatureSettings
from ipca_sklearn.features.backbones._backbone import Backbone


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
