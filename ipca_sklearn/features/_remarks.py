"""Warnings about the images of a pass: which could not be read, which were stretched, ..."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ipca_sklearn._utils._messages import first_few
from ipca_sklearn.exceptions import AlignmentWarning, AspectRatioWarning, MultiPageImageWarning, SkippedImagesWarning
from ipca_sklearn.features._loader import Batch
from ipca_sklearn.features._settings import FeatureSettings


class SkippedImages:
    """Reasons, by position in X, why the last complete pass over images could not read them; slices share it."""

    def __init__(self, reasons: Mapping[int, str] | tuple[()] = ()) -> None:
        self._lock = threading.Lock()
        self._reasons = dict(reasons)

    @property
    def reasons(self) -> dict[int, str]:
        """Positions in X and reasons."""
        with self._lock:
            return dict(self._reasons)

    def replace(self, indices: np.ndarray, reasons: Mapping[int, str]) -> None:
        """Record a complete pass over the images at `indices`."""
        with self._lock:
            for index in indices:
                self._reasons.pop(int(index), None)
            self._reasons.update(reasons)

    def __reduce__(self) -> tuple[Any, ...]:
        return SkippedImages, (self.reasons,)


@dataclass
class Remarks:
    """What one pass noticed of some images, by their position in X."""

    pages: dict[int, str] = field(default_factory=dict)
    stretched: dict[int, str] = field(default_factory=dict)
    unaligned: dict[int, str] = field(default_factory=dict)

    def add(self, batch: Batch) -> None:
        """Add what was noticed of the images of a batch."""
        self.pages |= batch.pages
        self.stretched |= batch.stretched
        self.unaligned |= batch.unaligned

    def warn(self, reasons: list[str], n_images: int, settings: FeatureSettings) -> None:
        """Warn of all that was noticed in a pass; `reasons` are those of images that were skipped."""
        height, width = settings.images.image_size
        remarks: tuple[tuple[Collection[str], str, str, type[Warning]], ...] = (
            (reasons, "could not be read", "They are not learnt from, and their scores are NaN", SkippedImagesWarning),
            (
                self.pages.values(),
                "have several pages or frames",
                "Only the first of each is read: store the others as files of their own to inspect them",
                MultiPageImageWarning,
            ),
            (
                self.stretched.values(),
                "have other proportions than the first image of the fit",
                f"They are stretched to {height} x {width} pixels, and so are their patches. Keep images of different "
                "shapes apart, each with a model of its own, or fit with an image_size of height and width",
                AspectRatioWarning,
            ),
            (
                self.unaligned.values(),
                "could not be aligned",
                "They may show no part. They were left as they were, and so their scores say little: look at them",
                AlignmentWarning,
            ),
        )
        for texts, remark, advice, category in remarks:
            if texts:
                shown = first_few(list(texts), separator="; ")
                warning: Any = category(f"{len(texts)} of {n_images} images {remark}: {shown}. {advice}")
                warning.n_images, warning.remark = len(texts), remark
                warnings.warn(warning, stacklevel=3)
