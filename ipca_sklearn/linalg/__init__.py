"""Batched incremental PCA on torch tensors: pure functions, no estimators, no scikit-learn.

P PCAs are learnt together, one step of samples (b, P, m) at a time. Their `State` is immutable: every function returns
a new one. Six functions are enough for most uses:

- `empty_state` returns the state of P PCAs without samples,
- `update` adds a step of samples,
- `merge` combines the states of two sets of samples, for instance of two processes,
- `finalize` makes components and variances of a state: a `Basis`,
- `distance_operator` chooses one of four distances from them,
- `patch_distances` returns the distance of every sample from every PCA.

`project`, `reconstruct` and `log_likelihood` use a basis too. `update_scatter`, `merge_scatter`, `finalize_scatter` and
`whitening_operator` do the same with full covariances. Devices and dtypes follow the state.

Examples
--------
>>> import torch
>>> from ipca_sklearn import linalg
>>> generator = torch.Generator().manual_seed(0)
>>> normal = torch.randn(64, 100, 12, generator=generator)  # 64 samples of 100 patches with 12 features
>>> state = linalg.empty_state(n_patches=100, n_features=12)
>>> for step in normal.split(16):
...     state = linalg.update(state, step, n_rows=4)
>>> basis = linalg.finalize(state, n_components=4)
>>> operator = linalg.distance_operator(basis, distance="factor_analysis", noise_shrinkage=0.5)
>>> new = torch.randn(2, 100, 12, generator=generator)
>>> new[1, 42] += 10
>>> maps = linalg.patch_distances(operator, new)
>>> maps.shape, divmod(int(maps.argmax()), 100)  # the anomalous sample, and its patch
(torch.Size([2, 100]), (1, 42))
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
from ipca_sklearn.linalg._finalize import Basis, finalize, keep_share, leading_components, project, reconstruct
from ipca_sklearn.linalg._grouped import GroupedSamples
from ipca_sklearn.linalg._rounded import pack, unpack
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
    "GroupedSamples",
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
    "keep_share",
    "leading_components",
    "log_likelihood",
    "merge",
    "merge_scatter",
    "pack",
    "patch_distances",
    "project",
    "reconstruct",
    "unpack",
    "update",
    "update_scatter",
    "whitening_operator",
]
