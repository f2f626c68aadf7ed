"""Features that are made while they are read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


class GeneratedFeatures:
    """n images of P patches with m features, a lazily read source that repeats itself every 4 steps.

    It holds 4 steps in memory, whatever n is. The detector reads it as it reads `PatchFeatures`.

    Parameters
    ----------
    n, patches, m : int
        Number of images, of patches and of features.
    """

    ndim = 4
    dtype = np.dtype(np.float32)
    device = torch.device("cpu")
    may_skip = False

    def __init__(self, n: int, patches: int, m: int) -> None:
        self.shape = (n, patches, 1, m)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> GeneratedFeatures:
        _, patches, _, m = self.shape
        return GeneratedFeatures(len(np.arange(len(self))[rows]), patches, m)

    def read(self, size: int, *, reuse: bool = False) -> Iterator[tuple[Tensor, dict[int, str]]]:
        """Yield batches of `size` images, none of them skipped; `reuse` changes nothing, as nothing is copied."""
        generator = torch.Generator().manual_seed(0)
        pool = [torch.randn(size, *self.shape[1:], generator=generator) for _ in range(4)]
        for index, start in enumerate(range(0, len(self), size)):
            yield pool[index % 4][: len(self) - start], {}
