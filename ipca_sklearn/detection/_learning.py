"""The pass of a fit: each step is scored before it is learnt, and the result is stored when all steps are done."""

from __future__ import annotations

import time
from typing import Any

from ipca_sklearn._utils._sklearn_compat import FitProgress
from ipca_sklearn.decomposition._base import BasePCA, Learning
from ipca_sklearn.decomposition._batches import StepReader
from ipca_sklearn.decomposition._fitted_scatter import FittedExactPCA
from ipca_sklearn.detection._bands import in_bands
from ipca_sklearn.detection._calibration import split_for_calibration
from ipca_sklearn.detection._calibrator import Calibrator, KnownScores
from ipca_sklearn.detection._cells import Cells
from ipca_sklearn.detection._copies import check_copies, group_size, images_per_step, samples_of
from ipca_sklearn.detection._map_ops import check_smoothing


def learn(
    detector: Any,
    steps: StepReader,
    shape: dict[str, Any],
    pca: BasePCA,
    known: KnownScores,
    callback_data: tuple[Any, Any],
) -> Any:
    """Score each step before it is learnt, learn it, and store the result when all steps are done.

    Parameters
    ----------
    detector : PatchGaussianDetector
        Changed in place, and returned.
    steps : StepReader
        The images to learn.
    shape : dict
        Learnt attributes that say how X is read.
    pca : BasePCA
        Learns the Gaussians.
    known : KnownScores
        Scores of earlier images, or of these images where some were left out (`trim`): then they are not scored again.
    callback_data : tuple
        X and y as callbacks get them.
    """
    check_smoothing(detector.smoothing, steps.patch_shape)
    began = time.perf_counter()
    cells = Cells.of(shape["cells_"])
    start = getattr(pca, "fitted_", None)
    group = group_size(cells, steps.n_copies)
    steps = in_bands(steps.take(shape.get("feature_indices_")), pca, start, group)
    learnt, held_out = split_for_calibration(steps, detector.calibration)
    step_size = images_per_step(detector.step_size, steps.n_copies)
    progress = FitProgress(detector, learnt.count(step_size), *callback_data)
    check_copies(start, group, steps.n_copies)
    learning = Learning(pca, start, group)
    calibrator = Calibrator(
        pca,
        start,
        known.model,
        learnt,
        cells,
        operator_of=lambda fitted: detector._operator(fitted, fitted.state.mean.device),
        scorer_of=lambda operator: detector._scorer(operator, learnt, cells),
        prequential=detector.calibration == "prequential" and not detector.trim,
    )
    pca.check_memory(learnt, n_kept=calibrator.n_kept, n_gaussians=None if cells is None else len(cells.slots))
    with learnt.overflow_named():
        for step in learnt.read(step_size, copies=True):
            calibrator.see(step, learning.fitted)
            learning.advance(samples_of(step, cells))
            progress.step()
        if learning.fitted is None:  # there are images, but all of them were skipped
            raise learnt.unreadable()
        calibrator.finish(learning.fitted, held_out)
    pca.store(learning.fitted, learnt if cells is None else cells.reader(learnt))
    detector._store(
        shape,
        pca,
        known.earlier.extended(calibrator.summaries),
        known.left_out.extended(calibrator.left_out),
        chosen=known.chosen,
        scoring=calibrator.model if isinstance(learning.fitted, FittedExactPCA) and held_out is None else None,
    )
    progress.end()
    if detector.verbose and not progress.is_watched:
        seconds = time.perf_counter() - began
        print(f"[PatchGaussianDetector] {detector.n_samples_seen_} images learnt, the last ones in {seconds:.1f} s")
    return detector
