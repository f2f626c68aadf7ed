"""Images that are nearly the same: re-encoded, or shifted by a few pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ipca_sklearn.decomposition._batches import StepReader
from ipca_sklearn.decomposition._fitted import Fitted
from ipca_sklearn.detection._cells import Cells
from ipca_sklearn.detection._gaussians import choose_cells

# Parts of an image that are compared with the same ones of another, and the cosine between descriptors from which
# images are nearly the same. Measured on leather: at least 0.55 for JPEG of quality 80, 0.64 after a shift by 4 of 256
# pixels, 0.47 by 16, and at most 0.33 for images of other places.
_N_PARTS = 16
_NEARLY_SAME = 0.45

# Features of parts from which images have no such cosine by chance.
_FEWEST_SIGNS = 256


class Describer:
    """Whether each feature is above its mean in each of 16 parts of an image: its own pattern, whatever the encoding.

    What is common to all parts is left out, as JPEG changes it. Random directions make it 256 numbers.
    """

    size = 256

    def __init__(self, steps: StepReader, fitted: Fitted, cells: Cells | None) -> None:
        labels = choose_cells(_N_PARTS, steps)
        of_patch = np.arange(steps.n_patches) if labels is None else labels[labels >= 0]
        members = np.equal.outer(np.unique(of_patch), of_patch)
        weights = members / members.sum(1, keepdims=True)
        enough = len(weights) * steps.n_features >= _FEWEST_SIGNS
        self._weights = torch.from_numpy(weights * enough)  # with fewer signs all look alike
        means = fitted.state.mean.cpu().double()
        self._means = self._weights @ (means if cells is None else means[cells.place.cpu() // cells.size])
        directions = np.random.default_rng(0).normal(size=(len(weights) * steps.n_features, self.size))
        self._directions = torch.from_numpy(directions)

    def __call__(self, step: Tensor) -> Tensor:
        """Return the descriptors (b, 256) of a step (b, P, m)."""
        parts = self._weights.to(step) @ step - self._means.to(step)
        own = parts - parts.median(1, keepdim=True).values
        return own.sign().flatten(1) @ self._directions.to(step)


def near_duplicates(descriptors: np.ndarray) -> np.ndarray:
    """Return for each image the number of the first one that has nearly the same descriptors (n, d); -1 is none."""
    centred = descriptors - descriptors.mean(0)
    firsts = np.full(len(centred), -1)
    lengths = np.linalg.norm(centred, axis=1)
    varied = np.flatnonzero(lengths > 1e-6 * np.linalg.norm(descriptors, axis=1))
    if len(varied) < 2:
        return firsts
    from sklearn.neighbors import NearestNeighbors  # a tenth of a second, which scoring does not need

    search = NearestNeighbors(radius=1 - _NEARLY_SAME, metric="cosine").fit(centred[varied])
    for number, found in enumerate(search.radius_neighbors(return_distance=False)):
        if len(found) and found.min() < number:
            firsts[varied[number]] = varied[found.min()]
    return firsts
