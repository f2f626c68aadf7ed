"""What an estimator has learnt: a state, how to read it, and how it is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ipca_sklearn import linalg
from ipca_sklearn.decomposition._batches import as_tensor


class Model:
    """A learnt `linalg.State`, its components (made when first read) and the form in which the user reads them.

    Never changed after it is made, so an estimator that keeps the old one until the new one is complete cannot be
    left half-updated. Pickles as numpy arrays, without the components: they follow from the state.

    Parameters
    ----------
    state : linalg.State
        At least one sample.
    n_components : int
        k.
    centering : {"incremental", "deferred"}
        How the state was learnt.
    kind : {"numpy", "torch"}
        What the attributes are read as.
    """

    def __init__(self, state: linalg.State, n_components: int, centering: str, kind: str) -> None:
        self.state = state
        self.n_components = n_components
        self.centering = centering
        self.kind = kind
        self._bases: dict[torch.device, linalg.Basis] = {}

    def basis(self, device: torch.device | None = None) -> linalg.Basis:
        """Return the components on a device (None: where the state is); one copy per device is kept."""
        home = self.state.mean.device
        if home not in self._bases:
            self._bases[home] = self._make_basis()
        device = device or home
        if device not in self._bases:
            self._bases[device] = self._bases[home].to(device)
        return self._bases[device]

    def _make_basis(self) -> linalg.Basis:
        return linalg.finalize(self.state, n_components=self.n_components, centering=self.centering)

    def distances(self, step: Tensor, *, score: str, noise_shrinkage: float) -> Tensor:
        """Return the distances (n, P) of samples (n, P, m), on their device; see `linalg.patch_distances`."""
        return linalg.patch_distances(self.basis(step.device), step, score=score, noise_shrinkage=noise_shrinkage)

    def read(self, tensor: Tensor, *, one_pca: bool) -> Any:
        """Return a (P, ...) tensor as an attribute: without the patch axis for one PCA, in the user's kind."""
        if one_pca:
            tensor = tensor[0]
        if self.kind == "torch":
            return tensor
        array = tensor.cpu().numpy()
        return array[()] if array.ndim == 0 else array

    def __getstate__(self) -> dict[str, Any]:
        arrays = {name: getattr(self.state, name).cpu().numpy() for name in ("rows", "mean", "scatter")}
        numbers = {"count": self.state.count, "weight": self.state.weight}
        return {"n_components": self.n_components, "centering": self.centering, **numbers, **arrays}

    def __setstate__(self, stored: dict[str, Any]) -> None:
        rows, mean, scatter = (as_tensor(np.asarray(stored[name])) for name in ("rows", "mean", "scatter"))
        state = linalg.State(rows, mean, scatter, stored["count"], stored["weight"])
        self.__init__(state, stored["n_components"], stored["centering"], "numpy")  # type: ignore[misc]
