"""Labels of images: scikit-learn's +1 for normal and -1 for anomalous."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.utils.validation import column_or_1d


def check_labels(y: Any, name: str = "y") -> np.ndarray:
    """Return labels as an array (n,) of +1 and -1; `name` is what the message calls them.

    Raises
    ------
    ValueError
        There are other labels. The message shows them and how to convert the usual ones.
    """
    labels = column_or_1d(y)
    unknown = _unknown(labels)
    if unknown:
        raise ValueError(
            f"{name} has the labels {unknown[:5]}; normal is +1 and anomalous -1. For a column with 1 for anomalous "
            "and 0 for normal use np.where(column == 1, -1, 1)"
        )
    return labels


def normal_rows(y: Any, n_samples: int) -> np.ndarray | None:
    """Return the rows of the samples to learn: those without the label -1. None stands for all of them.

    Labels other than +1 and -1 are ignored with a warning, because scikit-learn's tools pass any y to any estimator.

    Raises
    ------
    ValueError
        y has another length than X, or every label is -1.

    Warns
    -----
    UserWarning
        Samples are left out, or the labels are ignored.
    """
    if y is None:
        return None
    labels = np.asarray(y)
    if labels.shape not in ((n_samples,), (n_samples, 1)):
        raise ValueError(f"y has shape {labels.shape} and X has {n_samples} samples: give one label for each")
    labels = labels.reshape(-1)
    unknown = _unknown(labels)
    if unknown:
        warnings.warn(
            f"y has the labels {unknown[:5]} and is ignored: all {n_samples} samples are learnt as normal ones. Label "
            "normal samples +1 and anomalous ones -1 to leave the latter out",
            UserWarning,
            stacklevel=6,
        )
        return None
    rows = np.flatnonzero(labels == 1)
    if len(rows) == n_samples:
        return None
    if not len(rows):
        raise ValueError(f"all {n_samples} samples have the label -1 (anomalous): there is no normal one to learn")
    warnings.warn(
        f"{n_samples - len(rows)} of {n_samples} samples have the label -1 (anomalous) and are not learnt",
        UserWarning,
        stacklevel=6,
    )
    return rows


def _unknown(labels: np.ndarray) -> list[Any]:
    """Return the labels that are neither +1 nor -1, sorted as text."""
    return sorted(set(np.unique(labels).tolist()) - {1, -1}, key=str)
