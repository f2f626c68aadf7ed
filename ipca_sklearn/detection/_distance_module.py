"""Distances from Gaussians as a torch module, which `torch.export` can follow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ipca_sklearn import linalg
from ipca_sklearn.detection._cells import Cells


class DistanceModule(nn.Module):
    """Distances (n, P) of features (P, n, m), in float32; components are stored as `components_dtype`."""

    _mean: Tensor
    _rows: Tensor
    _scale: Tensor | None
    _precision: Tensor | None
    _slots: Tensor | None
    _place: Tensor | None

    def __init__(self, operator: linalg.DistanceOperator, cells: Cells | None, components_dtype: torch.dtype) -> None:
        super().__init__()
        operator = operator.folded()  # the components: an image takes one product less than with rows and transform
        self.register_buffer("_mean", _float_copy(operator.mean[:, None]))
        rows = operator.rows.to(components_dtype, copy=True)
        if not torch.isfinite(torch.stack(torch.aminmax(rows))).all():
            raise ValueError(
                f"components_dtype={str(components_dtype).removeprefix('torch.')!r} cannot hold the matrices of this "
                "model, which has values beyond 65504: take 'float32'"
            )
        self.register_buffer("_rows", rows)
        register(self, "_scale", None if operator.scale is None else _float_copy(operator.scale))
        register(self, "_precision", None if operator.precision is None else _float_copy(operator.precision))
        register(self, "_slots", None if cells is None else cells.slots.clone())
        register(self, "_place", None if cells is None else cells.place.clone())

    def forward(self, features: Tensor) -> Tensor:
        """Return the distances (n, P) of features (P, n, m)."""
        if not torch.compiler.is_compiling():  # in chunks that fit the cache
            operator = linalg.DistanceOperator(self._mean[:, 0], self._rows, None, self._scale, self._precision)
            step = features.transpose(0, 1)
            if self._slots is None or self._place is None:
                return linalg.patch_distances(operator, step)
            cells = Cells(self._slots, self._place)
            return cells.on_patches(linalg.patch_distances(operator, cells.samples(step)))
        rows = self._rows.float()
        if self._slots is None or self._place is None:
            return linalg.distances_from_centred(features - self._mean, rows, None, self._scale, self._precision).T
        n_gaussians, n_features = self._slots.shape[0], features.shape[2]
        samples = features.index_select(0, self._slots.flatten()).reshape(n_gaussians, -1, n_features)
        distances = linalg.distances_from_centred(samples - self._mean, rows, None, self._scale, self._precision)
        return distances.reshape(self._slots.numel(), -1).index_select(0, self._place).T


def register(module: nn.Module, name: str, values: Tensor | None) -> None:
    """Register a buffer, or set the attribute to None: torch.export 2.15 miscounts buffers that are None."""
    if values is None:
        setattr(module, name, None)
    else:
        module.register_buffer(name, values)


def _float_copy(values: Tensor) -> Tensor:
    return values.to(torch.float32, copy=True)
