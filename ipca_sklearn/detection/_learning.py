"""The pass of a fit: what is decided from the shape of X, and that each step is scored before it is learnt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from ipca_sklearn._utils._labels import normal_rows
from ipca_sklearn._utils._sklearn_compat import FitProgress
from ipca_sklearn.decomposition._base import BasePCA, Learning, check_memory
from ipca_sklearn.decomposition._batched_ipca import BatchedIncrementalPCA
from ipca_sklearn.decomposition._batches import StepReader, read_steps
from ipca_sklearn.decomposition._fitted_scatter import FittedExactPCA, check_full_distance
from ipca_sklearn.decomposition._full_covariance import FullCovariance
from ipca_sklearn.detection._calibration import split_for_calibration
from ipca_sklearn.detection._cells import Cells, in_bands, partition
from ipca_sklearn.detection._copies import check_copies, group_size, images_per_step, samples_of
from ipca_sklearn.detection._map_ops import ScoreSettings, check_smoothing, is_aligned
from ipca_sklearn.detection._unseen import ScoringModel, UnseenScores

# Parameters of the detector that its PCA takes.
PCA_PARAMETERS = set(BatchedIncrementalPCA().get_params()) - {"whiten"}
_FULL_PARAMETERS = set(FullCovariance().get_params())

# n_components="auto": of patches that have a Gaussian each (the paper's choice), and of those that share one.
_N_COMPONENTS, _N_SHARED_COMPONENTS = 16, 96


def choose_features(n_random_features: int | None, random_state: Any, n_features: int) -> np.ndarray | None:
    """Return the indices of the features that are learnt, ascending; None for all."""
    if n_random_features is None:
        return None
    if n_random_features > n_features:
        raise ValueError(f"n_random_features={n_random_features} of n_features={n_features}: lower it")
    rng = check_random_state(random_state)
    return np.sort(rng.choice(n_features, n_random_features, replace=False))


def choose_cells(n_gaussians: int | None, steps: StepReader) -> np.ndarray | None:
    """Return the cell of each patch (see `partition`); None is a Gaussian for each."""
    if n_gaussians is None or n_gaussians >= steps.n_patches:
        return None
    return partition(steps.patch_shape, steps.region, n_gaussians)


def pca_parameters(parameters: dict[str, Any], n_features: int, group: int) -> dict[str, Any]:
    """Return the parameters of the PCA of a detector for m features, of `group` patches that share a Gaussian."""
    mine = dict(parameters)
    if mine["n_components"] == "auto":
        most = _N_COMPONENTS if group == 1 else _N_SHARED_COMPONENTS
        mine["n_components"] = max(1, min(most, (mine["n_random_features"] or n_features) // 2))
    mine["forgetting_factor"] **= 1 / group  # the user counts images
    return {name: mine[name] for name in (_FULL_PARAMETERS if mine["covariance"] == "full" else PCA_PARAMETERS)}


def new_pca(parameters: dict[str, Any], n_features: int, group: int) -> BasePCA:
    """Return an unfitted PCA of a detector; arguments as of `pca_parameters`."""
    kind: type[BasePCA] = BatchedIncrementalPCA
    if parameters["covariance"] == "full":
        check_full_distance(parameters["distance"])
        kind = FullCovariance
    return kind(**pca_parameters(parameters, n_features, group))


def check_covariance(detector: Any) -> None:
    """Raise a ValueError if a fitted detector has learnt another kind of covariance than is set now."""
    learnt = "full" if isinstance(detector.pca_, FullCovariance) else "low_rank"
    if detector.covariance != learnt:
        raise ValueError(
            f"covariance={detector.covariance!r} was set after the fit, which learnt covariance={learnt!r}: fit again"
        )


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

    `detector` says what is held out, `shape` how X is read; `pca` goes on from what it has learnt, and `model` has
    scored the images of an earlier call. Callbacks get `callback_data`, X and y.
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
