"""The choice of the fastest eigensolver: a table of routines, the rules, and checks that a routine works.

An eigensolver takes `gram` (P, n, n) and k. It reads the lower triangle only and returns the k largest eigenvalues
(P, k), descending, and their eigenvectors as rows (P, k, n). docs/dev_notes.md has the figures behind
`choose_eigensolver`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from ipca_sklearn.linalg._execution import NUMBA_BATCH, for_each_chunk, numba_works
from ipca_sklearn.linalg._rounded import share_of_rounding
from ipca_sklearn.linalg.eigh._alone import Decomposition, one_at_a_time, solve_failures_alone
from ipca_sklearn.linalg.eigh._sizes import (
    BISECTION_BATCH,
    BISECTION_SIZES,
    NUMBA_LANES,
    NUMBA_SIZE,
    TORCH_BATCHED_SIZE,
    TRITON_SIZE,
)


@dataclass(frozen=True)
class Eigensolver:
    """A routine for the leading eigenvectors of many small symmetric matrices.

    Parameters
    ----------
    name : str
        Its key in `EIGENSOLVERS`.
    solve : callable
        Takes `gram` (P, n, n) and k, and reads the lower triangle only. Returns the k largest eigenvalues (P, k),
        descending, and their eigenvectors as rows (P, k, n). `gram` is not changed. A matrix on which the routine fails
        is solved alone, by LAPACK in float64. Only NaN, infinity or an eigenvalue that overflows raises
        :class:`torch.linalg.LinAlgError`.
    group : int, default=1
        How many matrices one call should take at least, such as a full set of SIMD lanes.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn.linalg import EIGENSOLVERS
    >>> values, vectors = EIGENSOLVERS["torch"].solve(torch.diag_embed(torch.tensor([[1.0, 3.0, 2.0]])), 2)
    >>> values, vectors.shape
    (tensor([[3., 2.]]), torch.Size([1, 2, 3]))
    """

    name: str
    solve: Decomposition
    group: int = 1


def _torch_as_it_is(gram: Tensor, n_vectors: int, *, each_alone: bool = False) -> tuple[Tensor, Tensor]:
    values, vectors = one_at_a_time(torch.linalg.eigh, gram, gram.shape[1]) if each_alone else torch.linalg.eigh(gram)
    return values.flip(-1)[:, :n_vectors], vectors.flip(-1)[..., :n_vectors].mT.contiguous()


def _torch(gram: Tensor, n_vectors: int) -> tuple[Tensor, Tensor]:
    try:
        found = _torch_as_it_is(gram, n_vectors)
    except torch.linalg.LinAlgError:
        found = _torch_as_it_is(gram, n_vectors, each_alone=True)
    return solve_failures_alone(gram, *found)


def _numba(gram: Tensor, n_vectors: int) -> tuple[Tensor, Tensor]:
    from ipca_sklearn.linalg.eigh._numba import leading_eigh  # numba is optional

    return solve_failures_alone(gram, *leading_eigh(gram, n_vectors))


def _bisection(gram: Tensor, n_vectors: int, *, negligible: float) -> tuple[Tensor, Tensor]:
    from ipca_sklearn.linalg.eigh._bisection import leading_eigh  # numba is optional

    return solve_failures_alone(gram, *leading_eigh(gram, n_vectors, negligible=negligible))


def _triton_as_it_is(gram: Tensor, n_vectors: int) -> tuple[Tensor, Tensor]:
    from ipca_sklearn.linalg.eigh._triton import leading_eigh  # triton is optional

    return leading_eigh(gram, n_vectors)


def _triton(gram: Tensor, n_vectors: int) -> tuple[Tensor, Tensor]:
    return solve_failures_alone(gram, *_triton_as_it_is(gram, n_vectors))


def _host(gram: Tensor, n_vectors: int) -> tuple[Tensor, Tensor]:
    """Solve on the CPU's threads: for devices whose own routine takes one matrix after the other."""
    matrices = gram.cpu()
    n_patches, size = gram.shape[:2]
    solver = choose_eigensolver(matrices.device, gram.dtype, size, n_patches)
    values = matrices.new_empty(n_patches, n_vectors)
    vectors = matrices.new_empty(n_patches, n_vectors, size)

    def task(patches: slice) -> None:
        values[patches], vectors[patches] = solver.solve(matrices[patches], n_vectors)

    bytes_per_patch = 4 * size * size * matrices.element_size()
    for_each_chunk(task, n_patches, bytes_per_patch, matrices.device, group=solver.group)
    return values.to(gram.device), vectors.to(gram.device)


EIGENSOLVERS = {
    "torch": Eigensolver("torch", _torch),
    "numba": Eigensolver("numba", _numba, group=NUMBA_LANES),
    "triton": Eigensolver("triton", _triton),
    "host": Eigensolver("host", _host),
}


def choose_eigensolver(device: torch.device, dtype: torch.dtype, size: int, n_patches: int) -> Eigensolver:
    """Return the fastest exact routine for many symmetric matrices.

    Parameters
    ----------
    device : torch.device
        Where the matrices are.
    dtype : torch.dtype
        float32 or float64.
    size : int
        n, for matrices of n x n.
    n_patches : int
        Number of matrices: all of them, never those of a chunk, because a model must not depend on how its patches are
        split.

    Returns
    -------
    Eigensolver
        One of `EIGENSOLVERS`.

    Warns
    -----
    UserWarning
        Once, if numba or Triton is installed, would be the fastest and does not work here.

    Notes
    -----
    Cost: none, except for the first call that considers Triton: it compiles the kernel for a few seconds.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn.linalg import choose_eigensolver
    >>> choose_eigensolver(torch.device("cpu"), torch.float32, size=128, n_patches=3136).name
    'torch'
    """
    if device.type == "cpu":
        usable = size <= NUMBA_SIZE and n_patches >= NUMBA_BATCH and numba_works()
        return EIGENSOLVERS["numba" if usable else "torch"]
    if device.type != "cuda":
        return EIGENSOLVERS["host"]
    if size <= TORCH_BATCHED_SIZE or torch_batches_any_size(torch.__version__, torch.version.cuda):
        return EIGENSOLVERS["torch"]
    return EIGENSOLVERS["triton" if size <= TRITON_SIZE and triton_works(device, dtype) else "host"]


def scatter_eigensolver(device: torch.device, dtype: torch.dtype, size: int, n_patches: int) -> Eigensolver:
    """Return the fastest routine for scatter matrices, of which the leading vectors alone are wanted.

    Vectors of eigenvalues below `share_of_rounding` of the largest one may be zero. The choice does not depend on the
    number of vectors: a model of fewer components has the bits of one with more.
    """
    if device.type != "cpu":
        return Eigensolver("torch", _torch_as_it_is)  # as it is: a look for failures makes the host wait for the device
    smallest, largest = BISECTION_SIZES
    usable = dtype == torch.float32 and n_patches >= BISECTION_BATCH
    if not (usable and smallest <= size <= largest and numba_works()):
        return EIGENSOLVERS["torch"]
    return bisection(share_of_rounding(size, dtype))


def bisection(negligible: float = 0.0) -> Eigensolver:
    """Return the routine for float32 matrices of some hundred rows, which may leave out negligible vectors."""
    return Eigensolver("bisection", partial(_bisection, negligible=negligible))


def torch_batches_any_size(torch_version: str, cuda_version: str | None) -> bool:
    """Return whether `torch.linalg.eigh` makes one cuSOLVER call (XsyevBatched) of matrices larger than 32 x 32."""
    # From torch 2.12 on, built for CUDA 12.6 Update 2 or later; builds for 12.6 may lack that update.
    if cuda_version is None:
        return False
    # ".dev0" lets in pre-releases too, such as the 2.12.0a0 of builds from source.
    return TorchVersion(torch_version) >= "2.12.dev0" and TorchVersion(cuda_version) >= "12.7"


@lru_cache(maxsize=8)
def triton_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the Triton kernel compiles on this GPU and its results are right; warn once if not."""
    if find_spec("triton") is None:
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    rows = torch.randn(4, 40, 60, generator=generator, dtype=torch.float64, device="cpu")
    gram = rows @ rows.mT
    try:
        values, vectors = (result.cpu().double() for result in _triton_as_it_is(gram.to(device, dtype), 20))
    except Exception as error:  # whatever a compiler raises
        problem = f"{type(error).__name__}: {error}"
    else:
        wrong = (vectors @ gram - values[..., None] * vectors).abs().amax() / gram.abs().amax()
        if wrong < 1000 * torch.finfo(dtype).eps:
            return True
        problem = f"its eigenvectors are wrong by {wrong:.1e}"
    warnings.warn(
        f"the Triton eigensolver fails on {device} ({problem}); eigenproblems larger than {TORCH_BATCHED_SIZE} x "
        f"{TORCH_BATCHED_SIZE} go to the CPU, which is slower",
        UserWarning,
        stacklevel=2,
    )
    return False
