"""Batched incremental PCA on torch tensors: pure functions, no estimator, no scikit-learn.

A batch of P PCAs is a `State`; `update` and `merge` return a new one, `finalize` makes components and variances of it.
"""

from ipca_sklearn.linalg._distances import (
    DISTANCES,
    DistanceOperator,
    distance_operator,
    distances_from_centred,
    log_likelihood,
    patch_distances,
)
from ipca_sklearn.linalg._execution import full_precision
from ipca_sklearn.linalg._finalize import Basis, finalize
from ipca_sklearn.linalg._projection import project, reconstruct
from ipca_sklearn.linalg._scatter import (
    ScatterState,
    empty_scatter,
    finalize_scatter,
    merge_scatter,
    update_scatter,
    whitening_operator,
)
from ipca_sklearn.linalg._solvers import SOLVERS, SVD_DRIVERS
from ipca_sklearn.linalg._update import CENTERINGS, State, empty_state, merge, update
from ipca_sklearn.linalg.eigh import EIGENSOLVERS, choose_eigensolver

__all__ = [
    "CENTERINGS",
    "DISTANCES",
    "EIGENSOLVERS",
    "SOLVERS",
    "SVD_DRIVERS",
    "Basis",
    "DistanceOperator",
    "ScatterState",
    "State",
    "choose_eigensolver",
    "distance_operator",
    "distances_from_centred",
    "empty_scatter",
    "empty_state",
    "finalize",
    "finalize_scatter",
    "full_precision",
    "log_likelihood",
    "merge",
    "merge_scatter",
    "patch_distances",
    "project",
    "reconstruct",
    "update",
    "update_scatter",
    "whitening_operator",
]
