"""The pass of a fit: what it begins with, and that each step is scored before it is learnt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ipca_sklearn._utils._labels import normal_rows
from ipca_sklearn._utils._sklearn_compat import FitProgress
from ipca_sklearn.decomposition._base import BasePCA, Learning, check_memory
from ipca_sklearn.decomposition._batches import StepReader, read_steps
from ipca_sklearn.decomposition._fitted_scatter import FittedExactPCA
from ipca_sklearn.detection._bands import in_bands
from ipca_sklearn.detection._calibration import split_for_calibration
from ipca_sklearn.detection._cells import Cells
from ipca_sklearn.detection._copies import check_copies, group_size, images_per_step, samples_of
from ipca_sklearn.detection._gaussians import choose_cells, choose_features, new_pca
from ipca_sklearn.detection._map_ops import check_smoothing, is_aligned
from ipca_sklearn.detection._settings import ScoreSettings
from ipca_sklearn.detection._unseen import ScoringModel, UnseenScores


@dataclass(frozen=True)
class Pass:
    """What a pass over the images of a fit has given."""

    scores: UnseenScores  # by models that had not learnt the images
    model: ScoringModel | None  # scores the images that are learnt next; None: what is learnt does
    progress: FitProgress  # ends when the result is stored
    seconds: float


def normal_steps(steps: StepReader, y: Any) -> tuple[StepReader, np.ndarray | None]:
    """Return the samples that are not labelled anomalous, and their rows; None for all."""
    rows = normal_rows(y, steps.n_samples, is_table=steps.patch_shape == ())
    return (steps if rows is None else steps.keep(rows)), rows


def begin(detector: Any, X: Any, y: Any) -> tuple[StepReader, np.ndarray | None, dict[str, Any], BasePCA]:
    """Return the normal samples of X, their rows (None: all), the attributes that say how X is read, and a new PCA."""
    steps, rows = normal_steps(read_steps(detector, X, reset=True), y)
    columns = choose_features(detector.n_random_features, detector.random_state, steps.n_features)
    shape = {
        "patch_shape_": steps.patch_shape,
        "region_": steps.region,
        "cells_": choose_cells(detector.n_gaussians, steps),
        **steps.features_in,
        **({} if columns is None else {"feature_indices_": columns}),
        **({"aligned_": True} if is_aligned(X) else {}),
    }
    group = group_size(Cells.of(shape["cells_"]), steps.n_copies)
    return steps, rows, shape, new_pca(detector.get_params(), steps.n_features, group)


def learn(
    detector: Any,
    settings: Sequence[ScoreSettings],
    steps: StepReader,
    shape: dict[str, Any],
    pca: BasePCA,
    model: ScoringModel | None,
    callback_data: tuple[Any, Any],
) -> Pass:
    """Score each step before it is learnt, learn it, and store the Gaussians in `pca` when all steps are done.

    `detector` says what is held out and how images are learnt, and `shape` how X is read; `pca` goes on from what it
    has learnt. `model` has scored the images of an earlier call. Callbacks get `callback_data`, X and y.
    """
    for each in settings:
        check_smoothing(each.smoothing, steps.patch_shape)
    began = time.perf_counter()
    cells = Cells.of(shape["cells_"])
    start = getattr(pca, "fitted_", None)
    group = group_size(cells, steps.n_copies)
    steps = in_bands(steps.take(shape.get("feature_indices_")), pca, start, group)
    learnt, held_out = split_for_calibration(steps, detector.calibration)
    step_size = images_per_step(detector.step_size, steps.n_copies)
    progress = FitProgress(detector, learnt.count(step_size), *callback_data)
    check_copies(start, group, steps.n_copies)
    learning = Learning.of(pca, start, group)
    prequential = detector.calibration == "prequential" and not detector.trim
    scores = UnseenScores(settings, pca, start, model, learnt, cells, prequential=prequential)
    check_memory(pca, learnt, n_kept=scores.n_kept, n_gaussians=None if cells is None else len(cells.slots))
    with learnt.overflow_named():
        for step in learnt.read(step_size, copies=True):
            scores.see(step, learning.fitted)
            learning.advance(samples_of(step, cells))
            progress.step()
        if learning.fitted is None:  # there are images, but all of them were skipped
            raise learnt.unreadable()
        scores.finish(learning.fitted, held_out)
    learning.store(learnt if cells is None else cells.reader(learnt))
    keeps_model = isinstance(learning.fitted, FittedExactPCA) and held_out is None
    return Pass(scores, scores.model if keeps_model else None, progress, time.perf_counter() - began)
