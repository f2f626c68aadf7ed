"""Steps in which each image has augmented copies: learnt with it, scored without them.

A step is (b, P, m), or (b, 1 + a, P, m) where each image is followed by its a copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from ipca_sklearn.decomposition._banded import BandedStep
from ipca_sklearn.decomposition._base import BasePCA, Learning
from ipca_sklearn.decomposition._fitted import Fitted
from ipca_sklearn.detection._cells import BandedCellSamples, Cells
from ipca_sklearn.linalg import GroupedSamples


def images_of(step: Any) -> Any:
    """Return the images (b, P, m) of a step without their copies."""
    return step[:, 0] if step.ndim == 4 else step


def samples_of(step: Tensor | BandedStep, cells: Cells | None) -> Tensor | GroupedSamples | BandedCellSamples:
    """Return what Gaussians learn of a step: samples of cells or of patches, image by image."""
    if isinstance(step, BandedStep):
        assert cells is not None
        return BandedCellSamples(step, cells)
    together = step.flatten(0, 1) if step.ndim == 4 else step
    return together if cells is None else cells.samples(together)


def group_size(cells: Cells | None, n_copies: int) -> int:
    """Return how many samples a Gaussian gets of an image."""
    return (1 if cells is None else cells.size) * (1 + n_copies)


def images_per_step(step_size: int | None, n_copies: int) -> int | None:
    """Return how many images, with their copies, make a step of about `step_size`: a divisor of it."""
    # So parts of X which are whole steps without copies are whole steps with them.
    if not n_copies or step_size is None:
        return step_size
    return max(n for n in range(1, step_size + 1) if step_size % n == 0 and (n == 1 or n * (1 + n_copies) <= step_size))


def learn_images(
    pca: BasePCA, fitted: Any, cells: Cells | None, n_copies: int, read: Callable[[int | None], Iterable[Tensor]]
) -> Any:
    """Return what is learnt, beside what was before, of the images that `read` gives in steps of a number of them."""
    learning = Learning.of(pca, fitted, group_size(cells, n_copies))
    for step in read(images_per_step(pca.step_size, n_copies)):
        learning.advance(samples_of(step, cells))
    return learning.fitted


def check_copies(fitted: Fitted | None, group: int, n_copies: int) -> None:
    """Raise a ValueError if images come with another number of copies than those that were learnt."""
    if fitted is not None and fitted.group != group:
        learnt = fitted.group * (1 + n_copies) // group - 1
        raise ValueError(
            f"the images of X have {n_copies} augmented copies each, and those that were learnt have {learnt}: pass "
            "the extractor's training_features(images), with the same n_augmented as in the fit"
        )
