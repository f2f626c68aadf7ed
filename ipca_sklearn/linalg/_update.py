"""The state of a batch of P incremental PCAs, and the two ways in which it grows: a step of samples, another state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from scipy.linalg import helmert
from torch import Tensor

from ipca_sklearn.linalg._execution import for_each_chunk, full_precision
from ipca_sklearn.linalg._solvers import Solver, get_solver

CENTERINGS = ("incremental", "deferred")


@dataclass(frozen=True)
class State:
    """What P incremental PCAs remember of the samples seen so far. Immutable: an update returns a new one.

    Parameters
    ----------
    rows : Tensor of shape (P, r, m)
        Unnormalised principal directions, largest first: the paper's U_k diag(s) transposed (Sec. 3.3). They
        approximate the centred scatter matrix (`centering="incremental"`) or the raw Gram matrix (`"deferred"`).
    mean : Tensor of shape (P, m)
        Mean of the samples.
    sum_of_squares : Tensor of shape (P, m)
        Sum over the samples of the squared deviation from the mean, per feature (exact, never truncated).
    count : int
        Number of samples.
    weight : float
        Sum of their weights in all of the above: `count`, or less where the past is forgotten.
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

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        """Return the state on another device or in another dtype (itself where nothing changes)."""
        tensors = (self.rows, self.mean, self.sum_of_squares)
        rows, mean, sum_of_squares = (tensor.to(device=device, dtype=dtype) for tensor in tensors)
        return State(rows, mean, sum_of_squares, self.count, self.weight)


def empty_state(
    n_patches: int,
    n_features: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> State:
    """Return the state of P PCAs that have seen nothing."""
    zeros = torch.zeros(n_patches, n_features, dtype=dtype, device=device)
    return State(zeros.new_zeros(n_patches, 0, n_features), zeros, zeros, 0, 0)


@lru_cache(maxsize=32)
def _helmert(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the orthogonal Helmert matrix: row 0 averages (times sqrt(size)), the other rows sum to zero."""
    return torch.from_numpy(helmert(size, full=True)).to(dtype=dtype, device=device)


def _centre(deviations: Tensor, old_weight: float) -> tuple[Tensor, Tensor]:
    """Return the mean of (b, P, m) deviations from a running mean of weight `old_weight`, and the rows they add to W.

    Row 0 stands for the shift of the mean, the others for the scatter around the step's own mean.
    """
    n_samples, _, n_features = deviations.shape
    weight = math.sqrt(old_weight / (old_weight + n_samples))
    if n_samples <= n_features:
        helmert = _helmert(n_samples, deviations.dtype, deviations.device)
        rows = (helmert @ deviations.flatten(1)).view(deviations.shape)
        shift = rows[0] / math.sqrt(n_samples)
        rows[0] *= weight
        return shift, rows
    # The rotation costs b per number and saves one row of W. A step taller than wide is decomposed on its other side,
    # where the height is free: centre it plainly.
    shift = deviations.mean(0, keepdim=True)
    return shift[0], torch.cat([shift * (math.sqrt(n_samples) * weight), deviations.sub_(shift)])


def _squared_norms(rows: Tensor) -> Tensor:
    """Sum over the first axis. The norm needs no temporary, but along this axis it is many times slower on a CPU."""
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
        What is known; not changed.
    step : Tensor of shape (b, P, m)
        b >= 1 samples for each of the P PCAs, finite, in any strides; not changed.
    n_rows : int
        How many directions are kept at most (components and oversamples).
    centering : {"incremental", "deferred"}
        `"incremental"` keeps the scatter around the running mean: one row of W stands for the shift of the mean
        (Ross et al., IJCV 77, 2008). The centred samples of a step have rank b - 1, so the step is rotated by a
        Helmert matrix and that row takes the place of the first: W has r + b rows, not r + b + 1. `"deferred"` is
        the paper's Eq. 4-6: raw samples, the mean is taken out at the end.
    solver, svd_driver : str
        See `ipca_sklearn.linalg.SOLVERS` and `torch.linalg.svd`.
    forgetting_factor : float in (0, 1], default=1.0
        What the weight of every old sample is multiplied by for each new one: after the step, a sample that t samples
        of later steps came after weighs `forgetting_factor ** t`. (Levy & Lindenbaum, 2000, age by the step; this way
        what is forgotten does not depend on the size of the steps.)
    out : Tensor of shape (P, n_rows, m), optional
        Optional output buffer for the rows, such as the rows of a state that is no longer used. It is ignored if shape,
        dtype or device differ. Reusing it avoids page faults on the CPU.

    Returns
    -------
    State
        With `min(n_rows, r + b, m)` rows, where the first centred step counts b - 1 samples.

    Notes
    -----
    Cost per PCA: (r + b)^2 m for the Gram matrix, n_rows (r + b) m for the new rows, and a decomposition of
    (r + b) x (r + b), or of m x m where that is smaller. Temporaries are as large as a chunk of patches, not the step.
    """
    n_samples, n_patches, n_features = step.shape
    dtype, device = state.mean.dtype, state.mean.device
    ageing = forgetting_factor**n_samples
    old_weight = ageing * state.weight
    total = old_weight + n_samples
    first_row = 1 if centering == "incremental" and state.count == 0 else 0
    height = state.rows.shape[1] + n_samples - first_row
    chosen = get_solver(solver, svd_driver, state.mean, min(height, n_features))
    kept = min(n_rows, height, n_features)
    rows = state.mean.new_empty(0) if out is None else out
    if rows.shape != (n_patches, kept, n_features) or rows.dtype != dtype or rows.device != device:
        rows = state.mean.new_empty(n_patches, kept, n_features)
    mean = torch.empty_like(state.mean)
    sum_of_squares = torch.empty_like(state.sum_of_squares)

    def task(patches: slice) -> None:
        samples = step[:, patches].to(dtype=dtype, device=device)
        reference = state.mean[patches] if state.count else samples[0]
        new = samples - reference
        if centering == "incremental":
            shift, new = _centre(new, old_weight)
            growth = _squared_norms(new)
            new = new[first_row:]
        else:
            shift = new.mean(0)
            growth = (_squared_norms(new) - shift.square() * (n_samples**2 / total)).clamp_min_(0)
            new = samples
        torch.add(growth, state.sum_of_squares[patches], alpha=ageing, out=sum_of_squares[patches])
        torch.add(reference, shift, alpha=n_samples / total, out=mean[patches])
        if kept:
            old = state.rows[patches] if ageing == 1 else state.rows[patches] * math.sqrt(ageing)
            _write_leading(chosen, [old, new.transpose(0, 1)], rows[patches])

    with full_precision():
        bytes_per_patch = (3 * n_samples + 2 * kept + height) * n_features * state.mean.element_size()
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
    """Combine the PCAs of two disjoint sets of samples; the arguments are as in `update`.

    The rows of both and, for incremental centring, one row for the distance of the means (Chan et al., 1979) are
    decomposed together, so the result is exact where the samples of both have rank <= `n_rows`.
    """
    dtype, device = first.mean.dtype, first.mean.device
    second = second.to(device=device, dtype=dtype)
    total = first.weight + second.weight
    shift = second.mean - first.mean
    mean_row = shift * math.sqrt(first.weight * second.weight / total)
    blocks = [first.rows, second.rows]
    if centering == "incremental":
        blocks.append(mean_row[:, None])
    n_patches, n_features = shift.shape
    height = sum(block.shape[1] for block in blocks)
    kept = min(n_rows, height, n_features)
    chosen = get_solver(solver, svd_driver, shift, min(height, n_features))
    rows = shift.new_empty(n_patches, kept, n_features)

    def task(patches: slice) -> None:
        _write_leading(chosen, [block[patches] for block in blocks], rows[patches])

    if kept:
        with full_precision():
            bytes_per_patch = (2 * height + kept) * n_features * shift.element_size()
            for_each_chunk(task, n_patches, bytes_per_patch, device, group=chosen.group)
    mean = first.mean + shift * (second.weight / total)
    sum_of_squares = first.sum_of_squares + second.sum_of_squares + mean_row.square()
    return State(rows, mean, sum_of_squares, first.count + second.count, total)


def _write_leading(solver: Solver, blocks: list[Tensor], out: Tensor) -> None:
    """Solve for the blocks that have rows (a first step has no old rows)."""
    solver.write_leading_rows([block for block in blocks if block.shape[1]], out)
