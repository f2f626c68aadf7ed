"""Labels of images: +1 for normal and -1 for anomalous, as in scikit-learn's outlier detectors, and nothing else.

0 and 1 are refused wherever labels are read. Which of the two is the defect differs (1 in anomalib and PyOD, 0 in a
column "good"), and scikit-learn's scorers, which get the same y, take 1 for the normal class: a search would choose the
worst. The one exception is `fit` of a table (n, m), where scikit-learn's tools pass any y to any estimator. It does not
learn what 0 and 1 may call a defect: see `normal_rows`.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.utils.validation import column_or_1d


def check_labels(y: Any, name: str = "y") -> np.ndarray:
    """Return labels as an array (n,) of +1 and -1; others are a ValueError that says how to convert the usual ones."""
    labels = column_or_1d(y)
    unknown = _unknown(labels)
    if unknown:
        raise ValueError(
            f"{name} has the labels {unknown[:5]}; normal is +1 and anomalous -1. For a column with 1 for anomalous "
            "and 0 for normal use np.where(column == 1, -1, 1), and where 1 is normal np.where(column == 1, 1, -1)"
        )
    return labels


def normal_rows(y: Any, n_samples: int, *, is_table: bool) -> np.ndarray | None:
    """Return the rows of the samples that are not labelled -1, or None if that is all; warn of what is left out."""
    if y is None:
        return None
    labels = np.asarray(y)
    if labels.shape not in ((n_samples,), (n_samples, 1)):
        raise ValueError(f"y has shape {labels.shape} and X has {n_samples} samples: give one label for each")
    labels = labels.reshape(-1)
    anomalous = "have the label -1 (anomalous)"
    values = set(labels.tolist())
    if is_table and not any(isinstance(value, (str, bytes, bool)) for value in values):
        if values == {0, 1}:
            labels = np.where(labels == 1, -1, 1)
            anomalous = "have the label 1 beside 0, which is read as anomalous (say so with -1 and +1),"
        elif not values <= {1, -1}:
            warnings.warn(
                f"y has the labels {_unknown(labels)[:5]} and is ignored: all {n_samples} samples are learnt as normal "
                "ones. Label normal samples +1 and anomalous ones -1 to leave the latter out",
                UserWarning,
                stacklevel=6,
            )
            return None
    labels = check_labels(labels)
    rows = np.flatnonzero(labels == 1)
    if len(rows) == n_samples:
        return None
    if not len(rows):
        raise ValueError(f"all {n_samples} samples {anomalous}: there is no normal one to learn")
    warnings.warn(
        f"{n_samples - len(rows)} of {n_samples} samples {anomalous} and are not learnt. In a search use "
        "cv=OneClassKFold(), which tests them in every fold: a fold of other splits may hold one kind only, and its "
        "ROC AUC is then NaN",
        UserWarning,
        stacklevel=6,
    )
    return rows


def _unknown(labels: np.ndarray) -> list[Any]:
    """Return the labels that are neither +1 nor -1, sorted as text; of bools all, because True is no +1."""
    return sorted(set(labels.tolist()) - ({1, -1} if labels.dtype != bool else set()), key=str)
