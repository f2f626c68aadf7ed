"""Several detectors that learn the same: learnt once, with the result that each would have alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ipca_sklearn._utils._sklearn_compat import validate_parameters
from ipca_sklearn._utils._typing import ArrayLike
from ipca_sklearn.decomposition._base import BasePCA
from ipca_sklearn.decomposition._batched_ipca import BatchedIncrementalPCA
from ipca_sklearn.decomposition._batches import StepReader, read_steps
from ipca_sklearn.decomposition._fitted import Fitted
from ipca_sklearn.decomposition._fitted_scatter import FittedExactPCA
from ipca_sklearn.detection._calibration import Calibration
from ipca_sklearn.detection._calibrator import ScoringModel
from ipca_sklearn.detection._cells import Cells
from ipca_sklearn.detection._copies import group_size
from ipca_sklearn.detection._gaussians import choose_cells, pca_parameters
from ipca_sklearn.detection._map_ops import MapScorer
from ipca_sklearn.detection._patch_gaussian import PatchGaussianDetector
from ipca_sklearn.detection._suspects import refuse_trim

# Parameters of scores and thresholds: learning does not depend on them.
_NOT_LEARNT = {
    "distance",
    "noise_shrinkage",
    "ridge",
    "false_positive_rate",
    "pixel_false_positive_rate",
    "image_score",
    "smoothing",
    "verbose",
}


def fit_together(detectors: Sequence[PatchGaussianDetector], X: ArrayLike, y: Any = None) -> int:
    """Fit detectors to the same images, each as its own `fit` would, and learn once for those that learn the same.

    These are detectors that differ in what scores and thresholds are made with (`distance`, `noise_shrinkage`, `ridge`,
    `image_score`, `smoothing` and the false positive rates) and, where scatter matrices are kept, in `n_components`.
    What they have learnt is then shared in memory.

    Parameters
    ----------
    detectors : sequence of PatchGaussianDetector
        Fitted in place.
    X, y
        As in `PatchGaussianDetector.fit`.

    Returns
    -------
    int
        How often the images were learnt. A detector that cannot be fitted, or not with the others, is left as it was:
        its own `fit` says why.
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
            (members[0] if len(members) == 1 else _Together.of(members)).fit(X, y)
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
    pca = detector._new_pca(steps.n_features, group)
    if isinstance(pca, BatchedIncrementalPCA):
        parameters["n_components"] = pca.n_components
        n_in_step = min(pca.step_size or steps.n_samples, steps.n_samples)
        n_features = detector.n_random_features or steps.n_features
        if pca.n_components is not None and pca.keeps_scatter(n_in_step * group, n_features, group):
            parameters["n_components"] = "any"
            del parameters["n_oversamples"]
    return parameters


class _Together(PatchGaussianDetector):
    """Learns for several detectors: each step is scored by the operators of all of them before it is learnt.

    Where one detector keeps a summary of an image, this one keeps a row for each member, and `_store` deals them out.
    """

    _members: list[tuple[PatchGaussianDetector, Any]]  # with n_components in numbers

    @classmethod
    def of(cls, members: Sequence[PatchGaussianDetector]) -> _Together:
        """Return what learns for some members."""
        together = cls(**members[0].get_params())
        together._members = [(member, None) for member in members]
        return together

    def _new_pca(self, n_features: int, group: int) -> BasePCA:
        parameters = [pca_parameters(member.get_params(), n_features, group) for member, _ in self._members]
        wanted = [of_member.get("n_components") for of_member in parameters]
        # What needs most directions comes first: its decomposition serves the others. A share may need all.
        most = [np.inf if isinstance(value, float) else value or 0 for value in wanted]
        self._members = [(self._members[number][0], wanted[number]) for number in np.argsort(most)[::-1]]
        return self._members[0][0]._new_pca(n_features, group)

    def _operator(self, fitted: Fitted, device: torch.device) -> Any:
        return [member._operator(_cut(fitted, wanted), device) for member, wanted in self._members]

    def _scorer(self, operator: Any, steps: StepReader, cells: Cells | None) -> Any:
        pairs = zip(self._members, operator, strict=True)
        return _Scorers([member._scorer(own, steps, cells) for (member, _), own in pairs])

    def _store(
        self,
        shape: dict[str, Any],
        pca: BasePCA,
        calibration: Calibration,
        left_out: Calibration,
        chosen: Any = None,
        scoring: ScoringModel | None = None,
    ) -> None:
        for number, (member, wanted) in enumerate(self._members):
            member._store(
                dict(shape),
                _cut_pca(pca, wanted),
                self._share(calibration, number),
                self._share(left_out, number),
                scoring=None if scoring is None else _share_of_scoring(scoring, number),
            )
        self.pca_ = pca

    def _share(self, calibration: Calibration, number: int) -> Calibration:
        return Calibration(calibration.summaries[number :: len(self._members)], calibration.n_patches)


@dataclass(frozen=True)
class _Scorers:
    """The scorers of all members."""

    scorers: list[MapScorer]

    def summaries(self, step: Tensor, weight: float) -> Tensor:
        """Return the summaries (b * members, 2 + q) of a step (b, P, m), image by image."""
        return torch.stack([scorer.summaries(step, weight) for scorer in self.scorers], 1).flatten(0, 1)


def _cut(fitted: Fitted, wanted: Any) -> Fitted:
    """Return what is learnt with the components that a member wants."""
    if isinstance(fitted, FittedExactPCA) and wanted is not None:
        return fitted.with_components(wanted)
    return fitted


def _cut_pca(pca: BasePCA, wanted: Any) -> BasePCA:
    if isinstance(pca, BatchedIncrementalPCA) and isinstance(pca.fitted_, FittedExactPCA) and wanted is not None:
        return pca.with_components(wanted)
    return copy.copy(pca)


def _share_of_scoring(scoring: ScoringModel, number: int) -> ScoringModel:
    make: Any = None if scoring.weight == 0 else lambda: scoring.operator[number]  # type: ignore[index]
    return ScoringModel(scoring.count, scoring.weight, make)
