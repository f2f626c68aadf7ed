"""Steps of large pictures: features that are computed band by band when they are read, and never exist as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ipca_sklearn import linalg


@runtime_checkable
class BandedSource(Protocol):
    """What a source (`LazySource`) offers besides, if its samples are too large to exist as a whole."""

    @property
    def bytes_of_band(self) -> int:
        """Bytes of the largest band."""
        ...

    def read_bands(self, size: int) -> Iterator[tuple[list[Iterable[Tensor] | None], dict[int, str]]]:
        """Yield as `read`, each sample as bands (p, m), computed whenever they are iterated over; None if skipped."""
        ...


@dataclass(frozen=True, eq=False)
class BandedStep:
    """A step (b, P, m) of which only a band exists at a time; it does what a detector does with a tensor."""

    samples: Sequence[Iterable[Tensor] | None]  # bands of each, None for zeros
    sample_shape: tuple[int, int]  # (P, m)
    device: torch.device
    columns: Tensor | None  # the features that the step has, None for all
    owner: str  # the estimator, for messages
    ndim = 3
    dtype = torch.float32

    @property
    def shape(self) -> tuple[int, int, int]:
        """(b, P, m)."""
        return (len(self.samples), *self.sample_shape)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, rows: Tensor) -> BandedStep:
        return replace(self, samples=[self.samples[row] for row in rows.tolist()])

    def bands(self) -> Iterator[Iterator[Tensor]]:
        """Yield the bands (p, m) of each sample; a ValueError says where one is not finite."""
        return (self._bands_of(sample) for sample in self.samples)

    def _bands_of(self, sample: Iterable[Tensor] | None) -> Iterator[Tensor]:
        if sample is None:
            yield torch.zeros(1, 1, dtype=self.dtype, device=self.device).expand(self.sample_shape)
            return
        for band in sample:
            if not torch.isfinite(torch.stack(torch.aminmax(band))).all():
                raise ValueError(f"X passed to {self.owner} contains NaN or infinity; remove these samples")
            yield band if self.columns is None else band[:, self.columns]

    def clone(self) -> BandedStep:
        """Return the step, which nothing overwrites."""
        return self

    def split(self, size: int) -> list[BandedStep]:
        """Return the step in parts of so many samples."""
        return [replace(self, samples=self.samples[start : start + size]) for start in range(0, len(self), size)]

    def tensor_split(self, n_parts: int) -> list[BandedStep]:
        """Return the step in so many parts, the first ones longer."""
        parts = np.array_split(np.arange(len(self)), n_parts)
        return [replace(self, samples=[self.samples[row] for row in part]) for part in parts]


def joined(steps: Sequence[Any]) -> Any:
    """Return steps of one kind as one."""
    if isinstance(steps[0], BandedStep):
        return replace(steps[0], samples=[sample for step in steps for sample in step.samples])
    return torch.cat(list(steps))


def update_scatter(state: linalg.ScatterState, step: Any, *, forgetting_factor: float, in_place: bool) -> Any:
    """Do what `linalg.update_scatter` does, also with samples that come in parts: slices of the Gaussians, by image."""
    if not hasattr(step, "parts"):
        return linalg.update_scatter(state, step, forgetting_factor=forgetting_factor, in_place=in_place)
    matrix = state.matrix if in_place else state.matrix.clone()
    mean = state.mean.clone()
    count, weight = state.count, state.weight
    for parts in step.parts():
        for gaussians, samples in parts:
            part = linalg.ScatterState(matrix[gaussians], mean[gaussians], count, weight)
            learnt = linalg.update_scatter(part, samples, forgetting_factor=forgetting_factor, in_place=True)
            mean[gaussians] = learnt.mean
        count, weight = learnt.count, learnt.weight
    return linalg.ScatterState(matrix, mean, count, weight)
