"""Labels of images: scikit-learn's +1 for normal and -1 for anomalous."""

from __future__ import annotations

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
    unknown = sorted(set(np.unique(labels).tolist()) - {1, -1}, key=str)
    if unknown:
        raise ValueError(
            f"{name} has the labels {unknown[:5]}; normal is +1 and anomalous -1. For a column with 1 for anomalous "
            "and 0 for normal use np.where(column == 1, -1, 1)"
        )
    return labels
