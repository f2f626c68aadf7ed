"""Cells of pictures that come band by band: a cell is learnt, or scored, when its last patch has come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from ipca_sklearn import linalg
from ipca_sklearn.decomposition._banded import BandedStep
from ipca_sklearn.decomposition._base import BasePCA
from ipca_sklearn.decomposition._batched_ipca import BatchedIncrementalPCA, will_keep_scatter
from ipca_sklearn.decomposition._batches import StepReader
from ipca_sklearn.decomposition._fitted import Fitted
from ipca_sklearn.decomposition._fitted_scatter import FittedCovariance, FittedExactPCA
from ipca_sklearn.detection._cells import Cells


def in_bands(steps: StepReader, pca: BasePCA, start: Fitted | None, group: int) -> StepReader:
    """Return a reader by bands, if there are some and they can be learnt: by scatter matrices of cells."""
    if start is not None:
        return steps.in_bands(group > 1 and isinstance(start, (FittedExactPCA, FittedCovariance)))
    if not isinstance(pca, BatchedIncrementalPCA):
        return steps.in_bands(group > 1)
    return steps.in_bands(group > 1 and will_keep_scatter(pca, steps.n_samples, steps.n_features, group))


class BandedCellSamples:
    """A step of large pictures as samples (b * s, C, m) of cells, which come in parts: some cells of one picture."""

    def __init__(self, step: BandedStep, cells: Cells) -> None:
        self._step = step
        self._cells = cells.to(step.device)
        self.dtype, self.device = step.dtype, step.device
        n_cells, size = cells.slots.shape
        self.shape = (len(step) * size, n_cells, step.shape[2])

    def to(self, device: torch.device) -> BandedCellSamples:
        """Return the samples; they are learnt where they are computed."""
        return self

    def parts(self) -> Iterator[Iterator[tuple[slice, linalg.GroupedSamples]]]:
        """Yield for each picture its parts: consecutive cells, and their samples (s, c, m)."""
        return (_parts(bands, self._cells) for bands in self._step.bands())


def _parts(bands: Iterable[Tensor], cells: Cells) -> Iterator[tuple[slice, linalg.GroupedSamples]]:
    slots = cells.slots.cpu().numpy()
    complete = np.maximum.accumulate(slots.max(1))  # the patch with which a cell and those before it are complete
    needed = np.minimum.accumulate(slots.min(1)[::-1])[::-1]  # the first patch of a cell and those after it
    start, n_read, done = 0, 0, 0
    kept: Tensor | None = None  # patches from `start` on
    for band in bands:
        n_read += len(band)
        kept = band if kept is None else torch.cat([kept, band])
        ready = int(np.searchsorted(complete, n_read))
        if ready == done:
            continue
        some = Cells(cells.slots[done:ready] - start, cells.place)
        yield slice(done, ready), some.samples(kept[None])
        done = ready
        first = int(needed[done]) if done < len(slots) else n_read
        kept = kept[first - start :].clone() if first < n_read else None
        start = first


def banded_distances(operator: linalg.DistanceOperator, step: BandedStep, cells: Cells) -> Tensor:
    """Return the distances (b, P) of the patches of large pictures from the Gaussians of their cells."""
    maps = []
    for parts in BandedCellSamples(step, cells).parts():
        of_cells = [linalg.patch_distances(operator[some], samples) for some, samples in parts]
        maps.append(cells.on_patches(torch.cat(of_cells, 1)))
    return torch.cat(maps)
