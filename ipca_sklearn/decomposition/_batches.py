"""X of a PCA or a detector, whatever it is: checked, and read in steps of (b, P, m) tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from sklearn.utils.validation import check_array, validate_data
from torch import Tensor

from ipca_sklearn._utils._arrays import as_tensor
from ipca_sklearn.decomposition._banded import BandedSource, BandedStep
from ipca_sklearn.exceptions import ImageReadError

_TOO_LARGE = (
    "the values of X passed to {owner} are too large for their squares to be summed in {dtype}; divide X by a "
    "constant, or set dtype='float64'"
)


# Samples that are taken at once where each has a result of its own: near the cache of a CPU, and small enough for the C
# library to keep their memory between calls (glibc gives back more than 32 MB, and each new page costs a microsecond).
_SCORED_BYTES = 16 << 20


@runtime_checkable
class LazySource(Protocol):
    """What an X must offer to be read in batches instead of slices. `PatchFeatures` is one.

    `may_skip` says that some of its samples may be unreadable. It may also have a `region` (H, W), the patches that
    `read` yields as (b, P, m) (None is all, as (b, H, W, m)), `memory_needed`, the bytes that reading takes besides the
    batch, and `n_copies` augmented copies of each sample, which `read_copies(size, reuse=...)` yields after it.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def may_skip(self) -> bool: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Any: ...

    def read(self, size: int, *, reuse: bool = False) -> Iterator[tuple[Tensor, dict[int, str]]]:
        """Yield `(batch, skipped)` for consecutive batches of `size` samples, the last one shorter.

        `skipped` maps rows that could not be read in this pass to reasons. The reader may write to the batch. With
        `reuse` a batch may overwrite the memory of those before it.
        """
        ...


def _floating(dtype: Any) -> torch.dtype:
    """Return the dtype to compute in: float32 for float32 and less precise floats, else float64 (as scikit-learn)."""
    name = str(dtype).removeprefix("torch.")
    return torch.float32 if name in ("float32", "float16", "bfloat16") else torch.float64


@dataclass(eq=False)
class StepReader:
    """A checked X of shape `(n_samples, *patch_shape, n_features)`, and the marks of one pass over it.

    Steps are (b, P, m), of the patches of a `region` and the features `columns` if there are some (`take`). With
    `by_bands` they are `BandedStep`. `owner`, the estimator, is for messages.
    """

    source: Any
    n_samples: int
    patch_shape: tuple[int, ...]
    n_features: int
    array_type: str
    dtype: torch.dtype
    device: torch.device
    owner: str
    feature_names: np.ndarray | None
    region: np.ndarray | None = None
    columns: np.ndarray | None = None
    by_bands: bool = False
    _unchecked: list[tuple[int, int, Tensor]] = field(default_factory=list, init=False, repr=False)
    _first_reason: str | None = field(default=None, init=False, repr=False)

    def take(self, columns: np.ndarray | None) -> StepReader:
        """Return a reader of the same samples with the features at `columns` only (None: all of them)."""
        if columns is None:
            return self
        names = None if self.feature_names is None else self.feature_names[columns]
        return replace(self, n_features=len(columns), feature_names=names, columns=columns)

    def in_bands(self, wanted: bool) -> StepReader:
        """Return a reader by bands, if that is wanted and the source has some."""
        return replace(self, by_bands=True) if wanted and self.has_bands else self

    @property
    def has_bands(self) -> bool:
        """Whether the samples of the source are so large that it can give them by bands."""
        return isinstance(self.source, BandedSource)

    def keep(self, rows: np.ndarray) -> StepReader:
        """Return a reader of the samples at `rows` only, ascending."""
        if isinstance(self.source, LazySource):
            return replace(self, source=self.source[rows], n_samples=len(rows))
        return replace(self, source=_Rows(self.source, rows), n_samples=len(rows))

    def split(self, first: int) -> tuple[StepReader, StepReader]:
        """Return readers of the first samples, as many as said, and of the others."""
        return (
            replace(self, source=self.source[:first], n_samples=first),
            replace(self, source=self.source[first:], n_samples=self.n_samples - first),
        )

    @property
    def n_patches(self) -> int:
        """Number of PCAs."""
        return int(np.prod(self.patch_shape, dtype=int)) if self.region is None else int(self.region.sum())

    @property
    def memory_needed(self) -> int:
        """Bytes that the source says reading takes besides a step."""
        return int(getattr(self.source, "memory_needed", 0)) if isinstance(self.source, LazySource) else 0

    @property
    def may_skip(self) -> bool:
        """Whether there may be fewer samples than `n_samples`, which only reading them tells."""
        return isinstance(self.source, LazySource) and self.source.may_skip

    @property
    def n_copies(self) -> int:
        """Augmented copies that each sample has."""
        return int(getattr(self.source, "n_copies", 0)) if isinstance(self.source, LazySource) else 0

    def count(self, size: int | None) -> int:
        """Return the number of steps of `size` samples."""
        return 1 if size is None else -(-self.n_samples // size)

    def read(self, size: int | None, *, copies: bool = False) -> Iterator[Tensor]:
        """Yield X in steps of `size` samples, the last one shorter; None yields all of them at once.

        With `copies`, steps of a source that has some are (b, 1 + n_copies, P, m), else (b, P, m). Images that could
        not be read are left out of their step. On a GPU the error for NaN and infinity is raised when all steps have
        been read, or by `check_finite`, so that the host does not wait for each step.
        """
        n_of_each = 1 + self.n_copies if copies else 1
        for step, skipped in self._read(size, n_of_each):
            if n_of_each > 1:
                step = step.unflatten(0, (-1, n_of_each))
            if skipped:
                kept = np.setdiff1d(np.arange(len(step)), list(skipped))
                step = step[torch.from_numpy(kept).to(step.device)]
            if len(step):
                yield step

    def _read(
        self, size: int | None, n_of_each: int = 1, *, checked: bool = True
    ) -> Iterator[tuple[Tensor, dict[int, str]]]:
        """Yield steps with `n_of_each` rows for each image, zeros if skipped, and numbers and reasons of these."""
        if self.by_bands:
            shape = self.n_patches, self.n_features
            columns = None if self.columns is None else torch.from_numpy(self.columns).to(self.device)
            for samples, skipped in self.source.read_bands(self.n_samples if size is None else size):
                self._first_reason = self._first_reason or next(iter(skipped.values()), None)
                step: Any = BandedStep(samples, shape, self.device, columns, self.owner)
                yield step, skipped
            return
        start = 0
        for batch, skipped in self._batches(self.n_samples if size is None else size, copies=n_of_each > 1):
            if self.region is None or isinstance(self.source, LazySource):  # which has left out the other patches
                step = batch.reshape(batch.shape[0], self.n_patches, -1)
            else:
                step = batch[:, torch.from_numpy(self.region).to(batch.device)]
            if self.columns is not None:
                step = step[..., torch.from_numpy(self.columns).to(step.device)]
            step = step.to(_floating(step.dtype))
            if skipped:
                step.unflatten(0, (-1, n_of_each))[list(skipped)] = 0
                self._first_reason = self._first_reason or next(iter(skipped.values()))
            if checked:
                self._check(step, start, len(step) // n_of_each)
            start += len(step) // n_of_each
            yield step, skipped
        self.check_finite()

    def _check(self, step: Tensor, start: int, length: int) -> None:
        # Both extremes are NaN if any value is, and they need no mask as large as the step.
        self._unchecked.append((start, length, torch.isfinite(torch.stack(torch.aminmax(step))).all()))
        if self._checks_at_once(step):
            self.check_finite()

    def _batches(self, size: int, *, copies: bool) -> Iterator[tuple[Tensor, dict[int, str]]]:
        if isinstance(self.source, LazySource):
            source: Any = self.source
            read = source.read_copies if copies else source.read
            yield from read(size, reuse=True)  # no step is needed after the next one is read
            return
        for start in range(0, self.n_samples, size):
            block = self.source[start : start + size]
            if not isinstance(block, Tensor):
                block = as_tensor(_numeric(np.asarray(block), self.owner))
            yield block, {}

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

    @contextmanager
    def overflow_named(self) -> Iterator[None]:
        """Turn the failure of a decomposition into a ValueError that names the cause: NaN, or squares that overflow."""
        try:
            yield
        except torch.linalg.LinAlgError as error:
            self.check_finite()  # on a GPU NaN may not have been reported yet
            raise self.overflow(self.dtype) from error

    def overflow(self, dtype: torch.dtype) -> ValueError:
        """Return the error for values whose squares are too large for a dtype."""
        return ValueError(_TOO_LARGE.format(owner=self.owner, dtype=dtype))

    def unreadable(self) -> ImageReadError:
        """Return the error for an X of which no image could be read."""
        return ImageReadError(
            f"none of the {self.n_samples} images could be read, one of them because: {self._first_reason}"
        )

    def map_steps(self, function: Callable[[Tensor], Tensor], size: int | None) -> Any:
        """Return `function` of all steps as one array of the type of X; rows of images that were skipped are NaN."""
        # On a CPU a step is checked for NaN and infinity only if its result is not finite.
        parts: list[Any] = []
        for step, skipped in self._read(self._scored_at_once(size), checked=self.device.type != "cpu"):
            result = function(step)
            if step.device.type == "cpu" and not np.isfinite(result.numpy()).all():
                self._check(step, sum(map(len, parts)), len(step))
            if skipped:
                result[list(skipped)] = torch.nan
            parts.append(self.like(result))
        return np.concatenate(parts) if self.array_type == "numpy" else torch.cat(parts)

    def _scored_at_once(self, size: int | None) -> int | None:
        """Return how many samples of a step are taken at once where each has a result of its own."""
        if self.device.type != "cpu":
            return size
        fitting = max(1, _SCORED_BYTES // (4 * self.n_patches * self.n_features))
        return min(self.n_samples if size is None else size, fitting)

    def like(self, result: Tensor) -> Any:
        """Return a result in X's type of array, floating dtype and device."""
        if result.is_floating_point():
            result = result.to(self.dtype)
        return result.cpu().numpy() if self.array_type == "numpy" else result.to(self.device)

    @property
    def features_in(self) -> dict[str, Any]:
        """`n_features_in_`, and `feature_names_in_` where X has names, as scikit-learn records them."""
        names = {} if self.feature_names is None else {"feature_names_in_": self.feature_names}
        return {"n_features_in_": self.n_features, **names}


class _Rows:
    """Some rows of an array, a tensor or a memory map, which are read one slice at a time."""

    def __init__(self, source: Any, rows: np.ndarray) -> None:
        self._source = source
        self._rows = rows

    def __getitem__(self, key: slice) -> Any:
        return self._source[self._rows[key]]


def read_steps(estimator: Any, X: Any, *, reset: bool) -> StepReader:
    """Check the type and the shape of X; with `reset=False` also against what the estimator was fitted on."""
    owner = type(estimator).__name__
    # Validation records names and widths. A blank estimator takes them: if the fit fails, the old one is unchanged.
    checked = _blank(estimator) if reset else estimator
    if isinstance(X, Tensor):
        if X.is_complex():
            raise ValueError(f"Complex data not supported\n{owner} got a tensor of {X.dtype}")
        source: Any = X.detach()
        array_type, device = "torch", X.device
    elif isinstance(X, LazySource):
        source, array_type, device = X, "numpy", X.device
    else:
        source, array_type, device = _as_array(checked, X, reset=reset), "numpy", torch.device("cpu")
    shape = tuple(source.shape)
    if not 2 <= len(shape) <= 4 or 0 in shape:
        raise ValueError(
            f"X passed to {owner} has shape {shape}; expected (n, m) for one PCA, (n, P, m) or (n, H, W, m) for one "
            "per patch, with at least one sample, patch and feature. Reshape your data"
        )
    names = getattr(checked, "feature_names_in_", None) if len(shape) == 2 else None
    dtype = _floating(source.dtype)
    region = getattr(source, "region", None) if isinstance(source, LazySource) else None
    steps = StepReader(
        source, shape[0], shape[1:-1], shape[-1], array_type, dtype, torch.device(device), owner, names, region
    )
    if not reset:
        learnt = estimator.n_features_in_
        if steps.n_features != learnt:
            raise ValueError(f"X has {steps.n_features} features, but {owner} is expecting {learnt} features as input")
        if steps.patch_shape != estimator.patch_shape_:
            raise ValueError(
                f"X has patches of shape {steps.patch_shape} (X.shape={shape}), but {owner} was fitted on patches of "
                f"shape {estimator.patch_shape_}"
            )
        learnt_region = estimator.region_
        if isinstance(source, LazySource) and not same_region(region, learnt_region):
            raise ValueError(
                f"X has another region of interest than what {owner} was fitted on: score with the extractor that the "
                "fit used"
            )
        steps.region = learnt_region
    return steps


def same_region(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    """Return whether two regions of interest are the same patches."""
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second)


def _blank(estimator: Any) -> Any:
    """Return an unfitted estimator of the same class and parameters, without calling its constructor."""
    blank = object.__new__(type(estimator))
    vars(blank).update(estimator.get_params(deep=False))
    return blank


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
