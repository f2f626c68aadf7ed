"""What the scores of images are computed with, besides what is learnt."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ipca_sklearn import linalg
from ipca_sklearn.decomposition._batches import StepReader
from ipca_sklearn.detection._cells import Cells
from ipca_sklearn.detection._map_ops import MapScorer


@dataclass(frozen=True)
class ScoreSettings:
    """Parameters of a detector that its scores depend on: a threshold belongs to scores of the same settings."""

    n_components: Any
    distance: str
    noise_shrinkage: float
    ridge: float
    image_score: Any
    smoothing: float

    @classmethod
    def of(cls, detector: Any) -> ScoreSettings:
        """Return the settings of a detector as they are now."""
        return cls(*(getattr(detector, field.name) for field in fields(cls)))

    def differences(self, earlier: ScoreSettings) -> str:
        """Return which settings were others earlier, in words; nothing if none was."""
        pairs = ((field.name, getattr(earlier, field.name), getattr(self, field.name)) for field in fields(self))
        return ", ".join(f"{name}={then!r}, now {now!r}" for name, then, now in pairs if then != now)

    def scorer(self, operator: linalg.DistanceOperator, steps: StepReader, cells: Cells | None) -> MapScorer:
        """Return what scores steps by a model."""
        return MapScorer(operator, steps.patch_shape, self.smoothing, self.image_score, steps.region, cells)
