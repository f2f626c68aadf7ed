"""Features of training images together with those of augmented copies of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ipca_sklearn.features._cache import FeatureCache
from ipca_sklearn.features._lazy import PatchFeatures
from ipca_sklearn.features._remarks import Remarks, SkippedImages
from ipca_sklearn.features._settings import FeatureSettings


class AugmentedFeatures(PatchFeatures):
    """Features of training images, which can be read together with those of augmented copies.

    Everything else is as without copies: length, shape, values, the cache, warnings. `of_copies` says how copies become
    features; their number is `of_copies.images.n_augmented`.
    """

    def __init__(
        self,
        images: Any,
        indices: np.ndarray,
        settings: FeatureSettings,
        of_copies: FeatureSettings,
        cache: FeatureCache | None = None,
        record: SkippedImages | None = None,
    ) -> None:
        super().__init__(images, indices, settings, cache, record)
        self._of_copies = of_copies

    @property
    def n_copies(self) -> int:
        """Copies of each image."""
        return self._of_copies.images.n_augmented

    def read_copies(self, size: int, *, reuse: bool = False) -> Iterator[tuple[Tensor, dict[int, str]]]:
        """Yield, as `read`, the features of each image, followed by those of its copies, for `size` images at a time.

        :meta private:
        """
        n_copies = self.n_copies
        repeated = PatchFeatures(self._images, np.repeat(self._indices, n_copies), self._of_copies)
        # The pass over the images themselves warns of them.
        reading: Any = repeated._read(size * n_copies, reuse, Remarks())
        with closing(reading) as copies:
            for batch, skipped in self.read(size, reuse=reuse):
                of_copies, unreadable = next(copies)
                together = torch.cat([batch[:, None], of_copies.unflatten(0, (-1, n_copies))], dim=1)
                yield together.flatten(0, 1), {row // n_copies: why for row, why in unreadable.items()} | skipped
