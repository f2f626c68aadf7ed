"""Prints what anomalib's measures say of one generated set, for tests/metrics/test_other_packages.py.

python -m venv anomalib && anomalib/bin/pip install "anomalib==2.7.0"
anomalib/bin/python tests/metrics/record_anomalib.py
"""

from __future__ import annotations

import numpy as np


def reference_set():
    """Four normal and six anomalous images of 256 x 256: labels +1 and -1, scores of images, masks, maps."""
    rng = np.random.default_rng(15)
    labels = np.repeat([1, -1], [4, 6])
    masks = np.zeros((10, 256, 256), dtype=bool)
    for image in range(4, 10):
        for _ in range(1 + image % 3):
            top, left = rng.integers(0, 220, 2)
            height, width = rng.integers(4, 36, 2)
            masks[image, top : top + height, left : left + width] = True
    strength = np.linspace(1, 4, 10)[:, None, None]
    maps = (rng.standard_normal(masks.shape) + strength * masks).astype(np.float32)
    scores = rng.standard_normal(10) + labels
    return labels, scores, masks, maps


def main():
    import torch
    from anomalib.metrics.aupr import _AUPR
    from anomalib.metrics.aupro import _AUPRO
    from anomalib.metrics.auroc import _AUROC
    from anomalib.metrics.f1_score import _F1Max
    from anomalib.metrics.pimo.functional import aupimo_scores

    labels, scores, masks, maps = reference_set()
    images = torch.from_numpy(-scores), torch.from_numpy(labels == -1).int()
    pixels = torch.from_numpy(maps), torch.from_numpy(masks).int()
    both = [_AUROC(), _AUPR(), _F1Max()]
    measures = [("image", images, metric) for metric in both]
    measures += [("pixel", tuple(part.flatten() for part in pixels), metric) for metric in both]
    measures += [(f"max_fpr={limit}", pixels, _AUPRO(fpr_limit=limit)) for limit in (0.3, 0.05)]
    for name, values, metric in measures:
        metric.reset()
        metric.update(*values)
        print(f"{name} {type(metric).__name__}: {float(metric.compute()):.6f}")
    for bounds in ((1e-5, 1e-4), (1e-3, 1e-2)):
        areas = aupimo_scores(*pixels, fpr_bounds=bounds)[4]
        print(f"AUPIMO {bounds}:", np.round(areas.numpy(), 6).tolist())


if __name__ == "__main__":
    main()
