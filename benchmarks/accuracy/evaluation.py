"""Figures of maps and image scores, the same for us and for the rivals."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.accuracy.settings import SUBSPACE_AD_BLUR
from ipca_sklearn import metrics

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
    pixels = metrics.resize_maps(maps, masks.shape[1:])
    figures = {
        "image_roc_auc": metrics.image_roc_auc_score(labels, -scores),
        "pixel_roc_auc": metrics.pixel_roc_auc_score(masks, pixels),
        "aupro": metrics.aupro_score(masks, pixels),
        "image_ap": metrics.image_average_precision_score(labels, -scores),
        "pixel_ap": metrics.pixel_average_precision_score(masks, pixels),
        "image_f1": metrics.image_f1_max_score(labels, -scores),
        "pixel_f1": metrics.pixel_f1_max_score(masks, pixels),
    }
    return {name: 100 * float(value) for name, value in figures.items()}


def subspace_ad(maps: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return maps (n, *size) and image scores (n,) of SubspaceAD from residuals (n, H, W); larger is more anomalous.

    The squared residuals are upsampled and blurred; the score is the mean of the largest 1 % of the pixels.
    """
    pixels = gaussian_filter(metrics.resize_maps(maps**2, size), (0, SUBSPACE_AD_BLUR, SUBSPACE_AD_BLUR))
    flat = pixels.reshape(len(pixels), -1)
    n_largest = max(1, round(0.01 * flat.shape[1]))
    return pixels, np.partition(flat, -n_largest)[:, -n_largest:].mean(axis=1)
