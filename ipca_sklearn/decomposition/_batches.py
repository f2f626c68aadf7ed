"""X of the PCA and the detector, whatever it is: checked, and read as steps of (b, P, m) tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_array, validate_data
from torch import Tensor


def as_tensor(array: np.ndarray) -> Tensor:
    """Share a numpy array with torch. Nothing here writes to one, so read-only memory (a memory map) is welcome."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)
        try:
            return torch.from_numpy(array)
        except ValueError:  # negative strides or a foreign byte order
            return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def _floating(dtype: Any) -> torch.dtype:
    """Return the dtype to compute in: float32 for float32 and less precise floats, else float64 (as scikit-learn)."""
    name = str(dtype).removeprefix("torch.")
    return torch.float32 if name in ("float32", "float16", "bfloat16") else torch.float64


@dataclass(frozen=True)
class Samples:
    """A checked X.

    Parameters
    ----------
    source : ndarray, Tensor, memory map, PatchFeatures, ...
        What is read, in slices along the first axis.
    n_samples, patch_shape, n_features : int, tuple of int, int
        The shape of X is `(n_samples, *patch_shape, n_features)`; `patch_shape` is `()` for one PCA.
    kind : {"numpy", "torch"}
        What the user gets back.
    dtype : torch.dtype
        What X is computed in unless the estimator says otherwise.
    device : torch.device
        Where X is.
    owner : str
        The estimator's name, for messages.
    feature_names : ndarray of str or None
        Names of the columns of a data frame.
    columns : ndarray of int or None
        The features that steps have, out of those of the source; see `take`.
    """

    source: Any
    n_samples: int
    patch_shape: tuple[int, ...]
    n_features: int
    kind: str
    dtype: torch.dtype
    device: torch.device
    owner: str
    feature_names: np.ndarray | None
    columns: np.ndarray | None = None
    _unchecked: list[tuple[int, int, Tensor]] = field(default_factory=list, repr=False)

    def take(self, columns: np.ndarray | None) -> Samples:
        """Return the same samples with the features at `columns` only (None: all of them)."""
        if columns is None:
            return self
        names = None if self.feature_names is None else self.feature_names[columns]
        return replace(self, n_features=len(columns), feature_names=names, columns=columns, _unchecked=[])

    def split(self, first: int) -> tuple[Samples, Samples]:
        """Return the first samples, as many as said, and the others."""
        n_others = self.n_samples - first
        return (
            replace(self, source=self.source[:first], n_samples=first, _unchecked=[]),
            replace(self, source=self.source[first:], n_samples=n_others, _unchecked=[]),
        )

    @property
    def n_patches(self) -> int:
        """Number of PCAs."""
        return int(np.prod(self.patch_shape, dtype=int))

    def steps(self, size: int | None) -> Iterator[Tensor]:
        """Read X in steps of `size` samples, the last one shorter; None reads all at once.

        Images that could not be read and are skipped leave their step shorter, so that which samples a step has does
        not depend on where reading began.

        Raises
        ------
        ValueError
            If a step holds NaN or infinity; the message says between which samples. On a GPU that is found out when
            all steps have been read, or by `check_finite`, so that the host need not wait for each step.
        """
        for step, skipped in self._read(size):
            if skipped:
                kept = np.setdiff1d(np.arange(len(step)), skipped)
                step = step[torch.from_numpy(kept).to(step.device)]
            if len(step):
                yield step

    @property
    def may_skip(self) -> bool:
        """Whether there may be fewer samples than `n_samples`, which only reading them tells."""
        return getattr(self.source, "may_skip", False)

    def _read(self, size: int | None) -> Iterator[tuple[Tensor, list[int]]]:
        """Yield steps with zeros in the rows of skipped images, and which rows these are."""
        size = self.n_samples if size is None else size
        start = 0
        for block in self._blocks(size):
            step = block.reshape(block.shape[0], self.n_patches, -1)
            if self.columns is not None:
                step = step[..., torch.from_numpy(self.columns).to(step.device)]
            step = step.to(_floating(step.dtype))
            skipped = self.source.skipped_rows(start, start + len(step)) if self.may_skip else []
            if skipped:
                step[skipped] = 0
            # Both extremes are NaN if any value is, and need no mask as large as the step.
            finite = torch.isfinite(torch.stack(torch.aminmax(step))).all()
            self._unchecked.append((start, len(step), finite))
            if self._checks_at_once(step):
                self.check_finite()
            start += len(step)
            yield step, skipped
        self.check_finite()

    @staticmethod
    def _checks_at_once(step: Tensor) -> bool:
        return step.device.type == "cpu"

    def check_finite(self) -> None:
        """Raise a ValueError if a step that was read held NaN or infinity."""
        while self._unchecked:
            start, length, finite = self._unchecked.pop(0)
            if not finite:
                raise ValueError(
                    f"X passed to {self.owner} contains NaN or infinity (samples {start} to {start + length - 1}); "
                    "remove these samples, or impute the values first"
                )

    def _blocks(self, size: int) -> Iterator[Tensor]:
        if hasattr(self.source, "batches"):
            # No step is needed after the next one is read, so a source that can may use the same memory again.
            yield from getattr(self.source, "batches_in_place", self.source.batches)(size)
            return
        for start in range(0, self.n_samples, size):
            block = self.source[start : start + size]
            if not isinstance(block, Tensor):
                block = as_tensor(_numeric(np.asarray(block), self.owner))
            yield block

    def map_steps(self, function: Callable[[Tensor], Tensor], size: int | None) -> Any:
        """Return `function` of all steps, joined along the first axis, in the form that the user gave X in.

        It is NaN for images that could not be read and are skipped.
        """
        parts = []
        for step, skipped in self._read(size):
            result = function(step)
            if skipped:
                result[skipped] = torch.nan
            parts.append(self.like(result))
        return np.concatenate(parts) if self.kind == "numpy" else torch.cat(parts)

    def set_features_in(self, estimator: Any) -> None:
        """Record the width of X, and its column names if it has some, as scikit-learn does."""
        estimator.n_features_in_ = self.n_features
        if self.feature_names is not None:
            estimator.feature_names_in_ = self.feature_names
        elif hasattr(estimator, "feature_names_in_"):
            del estimator.feature_names_in_

    def like(self, result: Tensor) -> Any:
        """Return a result as the user gave X: numpy array, or tensor of the same device; X's floating dtype."""
        if result.is_floating_point():
            result = result.to(self.dtype)
        return result.cpu().numpy() if self.kind == "numpy" else result.to(self.device)


def check_samples(estimator: Any, X: Any, *, reset: bool) -> Samples:
    """Check the kind and the shape of X; with `reset=False` also against what the estimator was fitted on.

    Two-dimensional input that is not a tensor goes through scikit-learn's own validation (feature names, messages).

    Raises
    ------
    TypeError, ValueError
        Not numeric, sparse, complex, empty, not 2-D to 4-D, NaN or infinity in 2-D input, other sizes than in `fit`.
    """
    owner = type(estimator).__name__
    # What validation learns about a new X is put on a blank estimator: if the fit fails, the old one is as it was.
    checked = type(estimator)() if reset else estimator
    if isinstance(X, Tensor):
        if X.is_complex():
            raise ValueError(f"Complex data not supported\n{owner} got a tensor of {X.dtype}")
        source: Any = X.detach()
        kind, device = "torch", X.device
    elif hasattr(X, "batches"):
        source, kind, device = X, "numpy", X.device
    else:
        source, kind, device = _as_array(checked, X, reset=reset), "numpy", torch.device("cpu")
    shape = tuple(source.shape)
    if not 2 <= len(shape) <= 4 or 0 in shape:
        raise ValueError(
            f"X passed to {owner} has shape {shape}; expected (n, m) for one PCA, (n, P, m) or (n, H, W, m) for one "
            "per patch, with at least one sample, patch and feature. Reshape your data"
        )
    names = getattr(checked, "feature_names_in_", None) if len(shape) == 2 else None
    dtype = _floating(source.dtype)
    samples = Samples(source, shape[0], shape[1:-1], shape[-1], kind, dtype, torch.device(device), owner, names)
    if not reset:
        learnt = estimator.n_features_in_
        if samples.n_features != learnt:
            raise ValueError(
                f"X has {samples.n_features} features, but {owner} is expecting {learnt} features as input"
            )
        if samples.patch_shape != estimator.patch_shape_:
            raise ValueError(
                f"X has patches of shape {samples.patch_shape} (X.shape={shape}), but {owner} was fitted on patches of "
                f"shape {estimator.patch_shape_}"
            )
    return samples


def _as_array(estimator: Any, X: Any, *, reset: bool) -> Any:
    """Return X as something with a shape, a dtype and slices; only 2-D input is read (and copied if it must be)."""
    if isinstance(X, (list, tuple)):
        try:
            X = np.asarray(X)
        except ValueError as error:
            sizes = sorted({np.shape(item) for item in X})
            raise ValueError(f"the samples in X have different shapes: {sizes[:5]}; give all the same shape") from error
    if getattr(X, "ndim", 0) >= 3:
        _numeric(np.asarray(X[:0]), type(estimator).__name__)
        return X
    return validate_data(estimator, X, dtype=[np.float64, np.float32], reset=reset)


def _numeric(block: np.ndarray, owner: str) -> np.ndarray:
    if block.dtype.kind == "c":
        raise ValueError(f"Complex data not supported\n{owner} got an array of {block.dtype}")
    if block.dtype.kind not in "fiub":
        return check_array(block, dtype="numeric", allow_nd=True, ensure_min_samples=0)
    # torch has no long double, and no arithmetic for the wide unsigned integers.
    return block.astype(np.float64) if block.dtype.itemsize > 8 or block.dtype.kind == "u" else block
