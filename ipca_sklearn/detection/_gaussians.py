"""What a fit decides from the shape of X: features, patches that share a Gaussian, and what learns the Gaussians."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from ipca_sklearn.decomposition._base import BasePCA
from ipca_sklearn.decomposition._batched_ipca import BatchedIncrementalPCA
from ipca_sklearn.decomposition._batches import StepReader
from ipca_sklearn.decomposition._fitted_scatter import check_full_distance
from ipca_sklearn.decomposition._full_covariance import FullCovariance
from ipca_sklearn.detection._cells import partition

# Parameters of the detector that its PCA takes.
PCA_PARAMETERS = set(BatchedIncrementalPCA().get_params()) - {"whiten"}
_FULL_PARAMETERS = set(FullCovariance().get_params())

# n_components="auto": of patches that have a Gaussian each (the paper's choice), and of those that share one.
_N_COMPONENTS, _N_SHARED_COMPONENTS = 16, 96


def choose_features(n_random_features: int | None, random_state: Any, n_features: int) -> np.ndarray | None:
    """Return the indices of the features that are learnt, ascending; None for all."""
    if n_random_features is None:
        return None
    if n_random_features > n_features:
        raise ValueError(f"n_random_features={n_random_features} of n_features={n_features}: lower it")
    rng = check_random_state(random_state)
    return np.sort(rng.choice(n_features, n_random_features, replace=False))


def choose_cells(n_gaussians: int | None, steps: StepReader) -> np.ndarray | None:
    """Return the cell of each patch (see `partition`); None is a Gaussian for each."""
    if n_gaussians is None or n_gaussians >= steps.n_patches:
        return None
    return partition(steps.patch_shape, steps.region, n_gaussians)


def pca_parameters(parameters: dict[str, Any], n_features: int, group: int) -> dict[str, Any]:
    """Return the parameters of the PCA of a detector for m features, of `group` patches that share a Gaussian."""
    mine = dict(parameters)
    if mine["n_components"] == "auto":
        most = _N_COMPONENTS if group == 1 else _N_SHARED_COMPONENTS
        mine["n_components"] = max(1, min(most, (mine["n_random_features"] or n_features) // 2))
    mine["forgetting_factor"] **= 1 / group  # the user counts images
    return {name: mine[name] for name in (_FULL_PARAMETERS if mine["covariance"] == "full" else PCA_PARAMETERS)}


def new_pca(parameters: dict[str, Any], n_features: int, group: int) -> BasePCA:
    """Return an unfitted PCA of a detector; arguments as of `pca_parameters`."""
    kind: type[BasePCA] = BatchedIncrementalPCA
    if parameters["covariance"] == "full":
        check_full_distance(parameters["distance"])
        kind = FullCovariance
    return kind(**pca_parameters(parameters, n_features, group))
