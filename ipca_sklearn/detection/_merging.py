"""Which detectors can be merged, and the records that they then have."""

from __future__ import annotations

from typing import Any

import numpy as np

from ipca_sklearn._utils._layouts import check_mergeable
from ipca_sklearn.detection._suspects import refuse_trim

# Parameters that both must share: scores of one kind, from Gaussians of one kind.
_SHARED = ("distance", "noise_shrinkage", "image_score", "smoothing", "covariance", "ridge")

# What `persistence.record_training` keeps with a detector.
RECORDS = ("learnt_from_", "learnt_images_")


def check_same_kind(mine: Any, theirs: Any) -> None:
    """Raise a ValueError if two fitted detectors differ in more than their images and what their PCAs compare."""
    for detector in (mine, theirs):
        refuse_trim(detector.trim, "merge")
    for name in _SHARED:
        one, other = getattr(mine, name), getattr(theirs, name)
        if one != other:
            raise ValueError(f"cannot merge detectors of different {name} {one!r} and {other!r}: fit both alike")
    columns, their_columns = (getattr(detector, "feature_indices_", None) for detector in (mine, theirs))
    if columns is not None:  # the PCAs know only the names of the chosen features
        check_mergeable(mine, theirs)
    if not np.array_equal(np.asarray(columns), np.asarray(their_columns)):
        raise ValueError(
            "cannot merge detectors that learnt from different random features: fit both with the same integer "
            "random_state"
        )
    if mine.patch_shape_ != theirs.patch_shape_:
        return  # as the PCAs say
    if not np.array_equal(np.asarray(mine.cells_), np.asarray(theirs.cells_)):
        raise ValueError(
            f"cannot merge detectors of other cells: n_gaussians={mine.n_gaussians} and {theirs.n_gaussians} divide "
            "the patches differently, or the regions of interest are others; fit both alike"
        )
    if mine.pca_.fitted_.group != theirs.pca_.fitted_.group:
        raise ValueError(
            "cannot merge detectors that learnt other numbers of augmented copies of each image: fit both with the "
            "same n_augmented"
        )


def records_of_both(mine: Any, theirs: Any) -> dict[str, Any]:
    """Return the records of the images that two detectors have learnt, where one of them has any."""
    both = [detector for detector in (mine, theirs) if hasattr(detector, RECORDS[0])]
    if not both:
        return {}
    images = np.concatenate([detector.learnt_images_ for detector in both])
    return {
        "learnt_from_": [dict(record) for detector in both for record in detector.learnt_from_],
        "learnt_images_": np.unique(images),
    }
