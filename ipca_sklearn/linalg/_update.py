"""The state of P incremental PCAs, and its two operations: add a step of samples, merge with another state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import torch
from scipy.linalg import helmert
from torch import Tensor

from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn.linalg._execution import for_each_chunk, full_precision
from ipca_sklearn.linalg._grouped import GroupedSamples
from ipca_sklearn.linalg._solvers import get_solver

CENTERINGS = ("incremental", "deferred")


# Samples (b, P, m): a tensor, or what makes those of some patches when they are asked for.
Samples: TypeAlias = Tensor | GroupedSamples


@dataclass(frozen=True)
class State:
    """P incremental PCAs, as learnt from the samples so far. Immutable: an update returns a new one.

    Parameters
    ----------
    rows : Tensor of shape (P, r, m)
        Unnormalised principal directions, largest first: the paper's U_k diag(s) transposed (Sec. 3.3). Their Gram
        matrix approximates the centred scatter matrix (`centering="incremental"`) or the raw one (`"deferred"`).
    mean : Tensor of shape (P, m)
        Mean of the samples, in float64 where the device has it: in float32 it would stand still where a step's share in
        it is below the spacing of numbers, such as after 30,000 samples around 1e4.
    sum_of_squares : Tensor of shape (P, m)
        Squared deviations from the mean, summed over the samples, in the dtype of `mean`. Exact, never truncated.
    count : int
        Number of samples.
    weight : float
        Sum of the samples' weights in all of the above: `count`, or less with a forgetting factor.

    Notes
    -----
    Memory: P r m numbers in the dtype and 2 P m in float64, whatever the number of samples.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn import linalg
    >>> samples = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
    >>> state = linalg.update(linalg.empty_state(3, 8), samples, n_rows=2)
    >>> state.rows.shape, state.mean.shape, state.count
    (torch.Size([3, 2, 8]), torch.Size([3, 8]), 40)
    >>> variance = state.sum_of_squares / state.degrees_of_freedom
    >>> variance.dtype, torch.allclose(variance.float(), samples.var(0))
    (torch.float64, True)
    """

    rows: Tensor
    mean: Tensor
    sum_of_squares: Tensor
    count: int
    weight: float

    @property
    def degrees_of_freedom(self) -> float:
        """The divisor that makes a sample variance of `sum_of_squares`."""
        return max(self.weight - 1, 1)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> State:
        """Return the state on another device or in another dtype. Tensors that need no change are shared."""
        rows = self.rows.to(device=device, dtype=dtype)
        mean, squares = (sums.to(rows.device, sums_dtype(rows.device)) for sums in (self.mean, self.sum_of_squares))
        return State(rows, mean, squares, self.count, self.weight)


def empty_state(
    n_patches: int,
    n_features: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> State:
    """Return the state of P PCAs of m features, without rows and samples.

    Parameters
    ----------
    n_patches, n_features : int
        P and m.
    dtype : torch.dtype, optional
        float32 or float64: the dtype of the state and of everything computed from it. None is float32.
    device : torch.device or str, optional
        Device of the state and of everything computed from it. None is the CPU.

    Returns
    -------
    State
        With no rows and count 0.

    Examples
    --------
    >>> from ipca_sklearn.linalg import empty_state
    >>> state = empty_state(3, 8)
    >>> state.rows.shape, state.count
    (torch.Size([3, 0, 8]), 0)
    """
    rows = torch.zeros(n_patches, 0, n_features, dtype=dtype or torch.float32, device=device or "cpu")
    zeros = rows.new_zeros(n_patches, n_features, dtype=sums_dtype(rows.device))
    return State(rows, zeros, zeros, 0, 0)


def sums_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of sums over all samples: float64, or float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


@lru_cache(maxsize=32)
@own_surroundings()
def _helmert(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the orthogonal Helmert matrix: row 0 averages (times sqrt(size)), the other rows sum to zero."""
    return torch.from_numpy(helmert(size, full=True)).to(dtype=dtype, device=device)


def _centre(deviations: Tensor, remainder: Tensor, old_weight: float) -> tuple[Tensor, Tensor]:
    """Return the mean of deviations (b, P, m) from a running mean of weight `old_weight`, and the rows they add to W.

    Row 0 is the shift of the mean. The deviations lack `remainder` (P, m), and may be overwritten.
    """
    n_samples, _, n_features = deviations.shape
    weight = math.sqrt(old_weight / (old_weight + n_samples))
    if n_samples <= n_features:
        helmert = _helmert(n_samples, deviations.dtype, deviations.device)
        rows = (helmert @ deviations.flatten(1)).view(deviations.shape)
        shift = rows[0] / math.sqrt(n_samples) + remainder
        torch.mul(shift, math.sqrt(n_samples) * weight, out=rows[0])
        return shift, rows
    # The rotation costs b per number and saves one row of W. A step with more samples than features is decomposed on
    # its other side, where more rows cost nothing: centre it plainly.
    mean = deviations.mean(0)
    shift = mean + remainder
    return shift, torch.cat([shift[None] * (math.sqrt(n_samples) * weight), deviations.sub_(mean)])


def _squared_norms(rows: Tensor) -> Tensor:
    """Return sums of squares over the first axis. The norm needs no temporary, but is many times slower on a CPU."""
    return rows.square().sum(0) if rows.device.type == "cpu" else torch.linalg.vector_norm(rows, dim=0).square_()


def update(
    state: State,
    step: Tensor,
    *,
    n_rows: int,
    centering: str = "incremental",
    solver: str = "auto",
    svd_driver: str | None = None,
    forgetting_factor: float = 1.0,
    out: Tensor | None = None,
) -> State:
    """Add one step of samples to every PCA.

    Parameters
    ----------
    state : State
        P PCAs of m features; not changed.
    step : Tensor of shape (b, P, m)
        b >= 1 samples for each of the P PCAs, finite, in any strides; not changed.
    n_rows : int
        Largest number of directions to keep (components and oversamples).
    centering : {"incremental", "deferred"}, default="incremental"
        `"incremental"` keeps the scatter around the running mean, with one row of W for the shift of the mean (Ross et
        al.). `"deferred"` keeps raw samples, and `finalize` removes the mean (paper, Eq. 4-6).
    solver : {"auto", "gram_eigh", "gram_svd", "svd"}, default="auto"
        How to find the leading rows of W:

        - `"gram_eigh"`: `torch.linalg.eigh` of the Gram matrix, and a second one of the directions that the first one
          leaves inexact: those below 0.01 (float32) of the largest.
        - `"auto"`: the same with the fastest eigensolver for the device and the size (`choose_eigensolver`).
        - `"gram_svd"`: SVD of the Gram matrix, the paper's choice (Sec. 3.3).
        - `"svd"`: SVD of W itself, the slowest and most accurate (the paper's unoptimised Eq. 6).
    svd_driver : {"gesvd", "gesvdj", "gesvda"}, optional
        cuSOLVER's routine for the two SVD solvers on a GPU, as in :func:`torch.linalg.svd`.
    forgetting_factor : float in (0, 1], default=1.0
        A sample followed by t later samples of later steps has weight `forgetting_factor ** t`. (Levy & Lindenbaum
        age by the step. Ageing by the sample makes the weights independent of the step size.)
    out : Tensor of shape (P, n_rows, m), optional
        Optional output buffer for the rows, such as the rows of an older state that is no longer used, but not
        `state.rows`. It is ignored if shape, dtype or device differ. Reusing it avoids page faults on the CPU.

    Returns
    -------
    State
        With `min(n_rows, r + b, m)` rows, where the first centred step counts b - 1 samples.

    Raises
    ------
    ValueError
        `centering` or `solver` is unknown, or `svd_driver` is given where it has no effect.
    torch.linalg.LinAlgError
        A decomposition does not converge: the step holds NaN or infinity, or its squares overflow.

    See Also
    --------
    merge : Combines two states.
    finalize : Makes components and variances of a state.

    Notes
    -----
    The rows of the state and of the step together are W, and the new rows are the leading rows of its decomposition.
    The centred samples of a step have rank b - 1. With `"incremental"` the step is rotated by a Helmert matrix, and the
    row for the shift of the mean replaces the row that becomes zero. So W has r + b rows, not r + b + 1.

    Cost per PCA: (r + b)^2 m for the Gram matrix, n_rows (r + b) m for the new rows, and a decomposition of
    (r + b) x (r + b), or of m x m where that is smaller. Temporaries are as large as a chunk of patches, not the step.

    References
    ----------
    - Ross et al., "Incremental learning for robust visual tracking", IJCV 77, 2008.
    - Levy & Lindenbaum, "Sequential Karhunen-Loeve basis extraction", IEEE Trans. Image Process. 9, 2000.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn import linalg
    >>> samples = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
    >>> state = linalg.empty_state(3, 8)
    >>> for step in samples.split(16):
    ...     state = linalg.update(state, step, n_rows=4)
    >>> state.rows.shape, state.count
    (torch.Size([3, 4, 8]), 40)
    """
    check_centering(centering)
    n_samples, n_patches, n_features = step.shape
    dtype, device = state.rows.dtype, state.rows.device
    ageing = forgetting_factor**n_samples
    old_weight = ageing * state.weight
    total = old_weight + n_samples
    first_row = 1 if centering == "incremental" and state.count == 0 else 0
    height = state.rows.shape[1] + n_samples - first_row
    chosen = get_solver(solver, svd_driver, state.rows, min(height, n_features))
    kept = min(n_rows, height, n_features)
    rows = state.rows.new_empty(0) if out is None else out
    if rows.shape != (n_patches, kept, n_features) or rows.dtype != dtype or rows.device != device:
        rows = state.rows.new_empty(n_patches, kept, n_features)
    mean = torch.empty_like(state.mean)
    sum_of_squares = torch.empty_like(state.sum_of_squares)

    def task(patches: slice) -> None:
        samples = step[:, patches].to(dtype=dtype, device=device)
        centre = state.mean[patches] if state.count else samples[0].to(mean.dtype)
        reference = centre.to(dtype)
        remainder = (reference - centre).to(dtype)  # what rounding took from the mean
        new = samples - reference
        if centering == "incremental":
            shift, new = _centre(new, remainder, old_weight)
            growth = _squared_norms(new)
            new = new[first_row:]
        else:
            new += remainder
            shift = new.mean(0)
            growth = (_squared_norms(new) - shift.square() * (n_samples**2 / total)).clamp_min_(0)
            new = samples
        torch.add(growth, state.sum_of_squares[patches], alpha=ageing, out=sum_of_squares[patches])
        torch.add(centre, shift, alpha=n_samples / total, out=mean[patches])
        if kept:
            old = state.rows[patches] if ageing == 1 else state.rows[patches] * math.sqrt(ageing)
            new = new.transpose(0, 1)
            chosen.write_leading_rows([old, new] if old.shape[1] else [new], rows[patches])

    with full_precision():
        bytes_per_patch = (3 * n_samples + 2 * kept + height) * n_features * rows.element_size()
        for_each_chunk(task, n_patches, bytes_per_patch, device, group=chosen.group)
    return State(rows, mean, sum_of_squares, state.count + n_samples, total)


def merge(
    first: State,
    second: State,
    *,
    n_rows: int,
    centering: str = "incremental",
    solver: str = "auto",
    svd_driver: str | None = None,
) -> State:
    """Combine the PCAs of two disjoint sets of samples.

    Parameters
    ----------
    first, second : State
        P PCAs of m features each, learnt with the same `centering`; at least one of them has samples. Not changed.
    n_rows : int
        Largest number of directions to keep.
    centering, solver, svd_driver
        As in `update`.

    Returns
    -------
    State
        In the dtype and on the device of `first`, with `min(n_rows, r1 + r2 + 1, m)` rows (`"deferred"`: r1 + r2).

    Raises
    ------
    ValueError, torch.linalg.LinAlgError
        As in `update`.

    Notes
    -----
    The rows of both and, for incremental centring, one row for the distance of the means (Chan et al., "Updating
    formulae and a pairwise algorithm for computing sample variances", 1979) are decomposed together. The result is
    exact if the samples of both have rank <= `n_rows`. Cost per PCA: that of `update` with b = r2 + 1.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn import linalg
    >>> samples = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
    >>> halves = [linalg.update(linalg.empty_state(3, 8), half, n_rows=8) for half in samples.split(20)]
    >>> state = linalg.merge(*halves, n_rows=8)
    >>> state.count, torch.allclose(state.mean.float(), samples.mean(0), atol=1e-6)
    (40, True)
    """
    check_centering(centering)
    dtype, device = first.rows.dtype, first.rows.device
    second = second.to(device=device, dtype=dtype)
    total = first.weight + second.weight
    shift = second.mean - first.mean
    mean_row = shift * math.sqrt(first.weight * second.weight / total)
    blocks = [rows for rows in (first.rows, second.rows) if rows.shape[1]]
    if centering == "incremental":
        blocks.append(mean_row[:, None].to(dtype))
    n_patches, n_features = shift.shape
    height = sum(block.shape[1] for block in blocks)
    kept = min(n_rows, height, n_features)
    chosen = get_solver(solver, svd_driver, first.rows, min(height, n_features))
    rows = first.rows.new_empty(n_patches, kept, n_features)

    def task(patches: slice) -> None:
        chosen.write_leading_rows([block[patches] for block in blocks], rows[patches])

    if kept:
        with full_precision():
            bytes_per_patch = (2 * height + kept) * n_features * rows.element_size()
            for_each_chunk(task, n_patches, bytes_per_patch, device, group=chosen.group)
    mean = first.mean + shift * (second.weight / total)
    sum_of_squares = first.sum_of_squares + second.sum_of_squares + mean_row.square()
    return State(rows, mean, sum_of_squares, first.count + second.count, total)


def check_centering(centering: str) -> None:
    """Refuse an unknown `centering`."""
    if centering not in CENTERINGS:
        raise ValueError(f"centering={centering!r} is unknown; use one of {', '.join(map(repr, CENTERINGS))}")
