"""Several detectors that learn the same: learnt once, with the result that each would have alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

from ipca_sklearn._utils._sklearn_compat import validate_parameters
from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn._utils._typing import ArrayLike
from ipca_sklearn.decomposition._batched_ipca import BatchedIncrementalPCA, will_keep_scatter, with_components
from ipca_sklearn.decomposition._batches import read_steps
from ipca_sklearn.detection._calibrator import Calibrator
from ipca_sklearn.detection._cells import Cells
from ipca_sklearn.detection._copies import group_size
from ipca_sklearn.detection._learning import begin, choose_cells, learn, new_pca, pca_parameters
from ipca_sklearn.detection._map_ops import ScoreSettings
from ipca_sklearn.detection._patch_gaussian import PatchGaussianDetector
from ipca_sklearn.detection._suspects import refuse_trim

# Parameters that learning does not depend on.
_NOT_LEARNT = {field.name for field in fields(ScoreSettings)} - {"n_components"}
_NOT_LEARNT |= {"false_positive_rate", "pixel_false_positive_rate", "verbose"}


def fit_together(detectors: Sequence[PatchGaussianDetector], X: ArrayLike, y: Any = None) -> int:
    """Fit detectors to the same images in place, each as its `fit` would, and return how often these were learnt.

    Once for detectors that differ in what scores and thresholds are made with and, where scatter matrices are kept, in
    `n_components`. A detector that cannot be fitted, or not with the others, is left as it was: its `fit` says why.
    """
    groups: list[tuple[dict[str, Any], list[PatchGaussianDetector]]] = []
    for detector in detectors:
        try:
            learning = _what_is_learnt(detector, X)
        except Exception:
            continue
        for of_group, members in groups:
            if of_group == learning:
                members.append(detector)
                break
        else:
            groups.append((learning, [detector]))
    n_fits = 0
    for _, members in groups:
        with suppress(Exception):
            if len(members) == 1:
                members[0].fit(X, y)
            else:
                _fit_members(members, X, y)
            n_fits += 1
    return n_fits


def _what_is_learnt(detector: PatchGaussianDetector, X: ArrayLike) -> dict[str, Any]:
    """Return the parameters that learning from X depends on; an error if there is something wrong with them."""
    validate_parameters(detector)
    refuse_trim(detector.trim, "one pass for several detectors")
    parameters = {name: value for name, value in detector.get_params().items() if name not in _NOT_LEARNT}
    steps = read_steps(detector, X, reset=True)
    labels = choose_cells(detector.n_gaussians, steps)
    group = group_size(Cells.of(labels), steps.n_copies)
    pca = new_pca(detector.get_params(), steps.n_features, group)
    if isinstance(pca, BatchedIncrementalPCA):
        parameters["n_components"] = pca.n_components
        n_features = detector.n_random_features or steps.n_features
        if pca.n_components is not None and will_keep_scatter(pca, steps.n_samples, n_features, group):
            parameters["n_components"] = "any"
            del parameters["n_oversamples"]
    return parameters


def _fit_members(members: Sequence[PatchGaussianDetector], X: ArrayLike, y: Any) -> None:
    first = PatchGaussianDetector(**members[0].get_params())  # without its callbacks
    steps, _, shape, pca = begin(first, X, y)
    group = group_size(Cells.of(shape["cells_"]), steps.n_copies)
    wanted = [pca_parameters(member.get_params(), steps.n_features, group).get("n_components") for member in members]
    own = [ScoreSettings.of(member) for member in members]
    resolved = [replace(settings, n_components=number) for settings, number in zip(own, wanted, strict=True)]
    with own_surroundings():
        done = learn(first, resolved, steps, shape, pca, None, (X, y))
        for number, (member, settings) in enumerate(zip(members, own, strict=True)):
            its_pca = with_components(pca, wanted[number])
            model = None if done.model is None else done.model.of_one(number)
            calibrator = Calibrator.of(settings, its_pca.fitted_, *done.scores.summaries(number), model)
            member._store(dict(shape), its_pca, calibrator)
