"""Figures of maps and image scores, the same for us and for the rivals."""

from __future__ import annotations

import numpy as np

from ipca_sklearn.metrics import aupro_score, image_roc_auc_score, pixel_roc_auc_score, resize_maps

# Key and heading of each figure, in the order of the table.
COLUMNS = {
    "image_roc_auc": "image ROCAUC",
    "pixel_roc_auc": "pixel ROCAUC",
    "aupro": "AUPRO",
    "image_ap": "image AP",
    "pixel_ap": "pixel AP",
    "image_f1": "image F1-max",
    "pixel_f1": "pixel F1-max",
}


def evaluate(labels: np.ndarray, scores: np.ndarray, masks: np.ndarray, maps: np.ndarray) -> dict[str, float]:
    """Return all figures in per cent.

    Parameters
    ----------
    labels : ndarray of shape (n,)
        1 normal, -1 anomalous.
    scores : ndarray of shape (n,)
        Larger is more anomalous.
    masks : ndarray of bool, shape (n, height, width)
    maps : ndarray of shape (n, H, W)
        Cover what the masks cover; resized to them bilinearly.
    """
    pixels = resize_maps(maps, masks.shape[1:])
    image_ap, image_f1 = average_precision_and_f1(labels == -1, scores)
    pixel_ap, pixel_f1 = average_precision_and_f1(masks.ravel(), pixels.ravel())
    figures = {
        "image_roc_auc": image_roc_auc_score(labels, -scores),
        "pixel_roc_auc": pixel_roc_auc_score(masks, pixels),
        "aupro": aupro_score(masks, pixels),
        "image_ap": image_ap,
        "pixel_ap": pixel_ap,
        "image_f1": image_f1,
        "pixel_f1": pixel_f1,
    }
    return {name: 100 * float(value) for name, value in figures.items()}


def average_precision_and_f1(anomalous: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Return what `sklearn.metrics.average_precision_score` does, and the best F1 over all thresholds.

    Both need only the thresholds at scores of the anomalous, which are few among pixels.
    """
    normal, defects = np.sort(scores[~anomalous]), np.sort(scores[anomalous])
    thresholds, first, counts = np.unique(defects, return_index=True, return_counts=True)
    found = defects.size - first
    called = found + normal.size - np.searchsorted(normal, thresholds)
    area = np.sum(counts / defects.size * (found / called))
    return float(area), float(np.max(2 * found / (called + defects.size)))
