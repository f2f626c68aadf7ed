"""Which patches belong to the part: those that differ from the background around it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# Patches at the edge of what is seen, which are background; and how many more than the part are inspected.
_RIM, _MARGIN = 3, 1


def foreground(features: NDArray[Any], seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the patches (H, W) of the part that lies alike in some images, with its holes and one patch around it.

    The first principal component of the patches tells the part from the background (Damm et al., "AnomalyDINO", WACV
    2025): its values are cut in two where the classes are farthest apart (Otsu), and background is the class that most
    patches at the edge are in. The part is the largest connected region of what at least half of the images have as
    foreground; none if nothing differs from the background. Patches that not all images show (`seen`) count for
    nothing.
    """
    samples = features[:, seen].astype(np.float64)
    centred = samples - samples.mean((0, 1))
    flat = centred.reshape(-1, centred.shape[-1])
    values = centred @ np.linalg.eigh(flat.T @ flat)[1][:, -1]
    marked = np.zeros(features.shape[:3], dtype=bool)
    marked[:, seen] = values > _otsu(values.ravel())
    rim = seen & ~ndimage.binary_erosion(seen, iterations=_RIM)
    if marked[:, rim].mean() > 0.5:
        marked[:, seen] = ~marked[:, seen]
    common = marked.mean(0) >= 0.5
    labels, n_regions = ndimage.label(common)
    if not n_regions:
        return np.zeros_like(seen)
    largest = labels == 1 + int(np.bincount(labels.ravel())[1:].argmax())
    filled = ndimage.binary_fill_holes(largest)
    return ndimage.binary_dilation(filled, iterations=_MARGIN) & seen


def _otsu(values: NDArray[np.float64]) -> float:
    """Return the value that cuts values into the two classes whose means are farthest apart, for their sizes."""
    counts, edges = np.histogram(values, 256)
    middles = (edges[1:] + edges[:-1]) / 2
    share = np.cumsum(counts) / len(values)
    sums = np.cumsum(counts * middles) / len(values)
    between = (sums[-1] * share - sums) ** 2 / np.maximum(share * (1 - share), 1e-12)
    return float(middles[between.argmax()])
