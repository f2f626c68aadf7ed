"""Measures of image scores."""

from __future__ import annotations

import numpy as np

from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn._utils._typing import ArrayLike
from ipca_sklearn.metrics._inputs import check_image_scores
from ipca_sklearn.metrics._pixels import f1_max


@own_surroundings()
def image_roc_auc_score(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the ROC curve of image scores.

    Parameters
    ----------
    y_true : array-like of shape (n_images,)
        Outlier labels: +1 for a normal image, -1 for an anomalous one.
    y_score : array-like of shape (n_images,)
        Real scores as returned by ``score_samples`` or ``decision_function``: higher is more normal.

    Returns
    -------
    float
        Probability that a normal image scores above an anomalous one, a tie counting one half; in [0, 1].

    Raises
    ------
    ValueError
        If the shapes differ or are not 1-d, a label is neither +1 nor -1, one class is missing, or a score is NaN
        or infinite. Scores are NaN for images that could not be read: leave these out.
    TypeError
        If an input does not hold real numbers.

    Notes
    -----
    This is :func:`sklearn.metrics.roc_auc_score` after checks of the input. Cost: O(n log n).

    Examples
    --------
    >>> from ipca_sklearn.metrics import image_roc_auc_score
    >>> image_roc_auc_score([1, 1, -1, -1], [-0.1, -0.4, -0.3, -0.9])
    0.75
    """
    is_normal, scores = check_image_scores(y_true, y_score)
    from sklearn.metrics import roc_auc_score  # a tenth of a second, which scoring images does not need

    return float(roc_auc_score(is_normal, scores))


@own_surroundings()
def image_average_precision_score(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Average precision of image scores, where an anomalous image is what is to be found.

    It falls with the share of anomalous images, so compare figures of the same images only.

    Parameters
    ----------
    y_true, y_score
        As in :func:`image_roc_auc_score`.

    Returns
    -------
    float
        In (0, 1].

    Raises
    ------
    ValueError, TypeError
        As :func:`image_roc_auc_score`.

    Notes
    -----
    This is :func:`sklearn.metrics.average_precision_score` of the negated scores. Cost: O(n log n).

    Examples
    --------
    >>> from ipca_sklearn.metrics import image_average_precision_score
    >>> image_average_precision_score([1, 1, -1, -1], [-0.1, -0.4, -0.3, -0.9])
    0.8333333333333333
    """
    is_normal, scores = check_image_scores(y_true, y_score)
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(~is_normal, -scores.astype(float)))


@own_surroundings()
def image_f1_max_score(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Largest F1 score of images over all thresholds, where an anomalous image is what is to be found.

    Parameters
    ----------
    y_true, y_score
        As in :func:`image_roc_auc_score`.

    Returns
    -------
    float
        The maximum of 2 TP / (2 TP + FP + FN); in (0, 1].

    Raises
    ------
    ValueError, TypeError
        As :func:`image_roc_auc_score`.

    Notes
    -----
    The threshold is chosen with the labels that it is tested with, so this is more than a detector reaches in use.
    For its own threshold use :func:`sklearn.metrics.f1_score` with ``predict`` and ``pos_label=-1``.
    Cost: O(n log n).

    Examples
    --------
    >>> from ipca_sklearn.metrics import image_f1_max_score
    >>> image_f1_max_score([1, 1, -1, -1], [-0.1, -0.4, -0.3, -0.9])
    0.8
    """
    is_normal, scores = check_image_scores(y_true, y_score)
    anomaly = -scores.astype(float)  # unsigned integers have no negatives
    return f1_max(np.sort(anomaly[is_normal]), anomaly[~is_normal])
