"""The k largest eigenvalues and eigenvectors of many symmetric matrices: which routine is the fastest where.

An eigensolver takes `gram` (P, n, n), of which it reads the lower triangle, and k, and returns the values (P, k),
descending, and the vectors as rows (P, k, n). docs/dev_notes.md has the figures behind `choose_eigensolver`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from ipca_sklearn.linalg._execution import for_each_chunk
from ipca_sklearn.linalg.eigh._sizes import NUMBA_BATCH, NUMBA_LANES, NUMBA_SIZE, TORCH_BATCHED_SIZE, TRITON_SIZE


@dataclass(frozen=True)
class Eigensolver:
    """A routine, its name, and how many matrices one call should take at least (a full set of SIMD lanes)."""

    name: str
    solve: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    group: int = 1


def _torch(gram: Tensor, n_vectors: int) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(gram, UPLO="L")
    return values.flip(-1)[:, :n_vectors], vectors.flip(-1)[..., :n_vectors].mT.contiguous()


def _numba(gram: Tensor, n_vectors: int) -> tuple[Tensor, Tensor]:
    from ipca_sklearn.linalg.eigh._numba import leading_eigh

    return leading_eigh(gram, n_vectors)


def _triton(gram: Tensor, n_vectors: int) -> tuple[Tensor, Tensor]:
    from ipca_sklearn.linalg.eigh._triton import leading_eigh

    return leading_eigh(gram, n_vectors)


def _host(gram: Tensor, n_vectors: int) -> tuple[Tensor, Tensor]:
    """Let the CPU's threads do it: for devices whose own routine takes one matrix after the other."""
    matrices = gram.cpu()
    n_patches, size = gram.shape[:2]
    values = matrices.new_empty(n_patches, n_vectors)
    vectors = matrices.new_empty(n_patches, n_vectors, size)
    solver = choose_eigensolver(matrices.device, gram.dtype, size, n_patches)

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
    """Return the fastest exact routine for `n_patches` matrices of `size` x `size`.

    Never by the size of a chunk: a model must not depend on how its patches are split.
    """
    if device.type == "cpu":
        usable = size <= NUMBA_SIZE and n_patches >= NUMBA_BATCH and numba_works()
        return EIGENSOLVERS["numba" if usable else "torch"]
    if device.type != "cuda":
        return EIGENSOLVERS["host"]
    if size <= TORCH_BATCHED_SIZE or torch_batches_any_size(torch.__version__, torch.version.cuda):
        return EIGENSOLVERS["torch"]
    return EIGENSOLVERS["triton" if size <= TRITON_SIZE and triton_works(device, dtype) else "host"]


def torch_batches_any_size(torch_version: str, cuda_version: str | None) -> bool:
    """Return whether `torch.linalg.eigh` makes one cuSOLVER call of a batch of matrices larger than 32 x 32.

    From torch 2.12 on, built for CUDA 12.6 Update 2 or later (cusolverDnXsyevBatched; builds for 12.6 may lack it).
    """

    def major_minor(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split("+")[0].split(".")[:2])

    return cuda_version is not None and major_minor(torch_version) >= (2, 12) and major_minor(cuda_version) > (12, 6)


@lru_cache(maxsize=1)
def numba_works() -> bool:
    """Return whether the optional dependency numba is there; one that cannot be imported is said once."""
    if find_spec("numba") is None:
        return False
    try:
        import ipca_sklearn.linalg.eigh._numba  # noqa: F401
    except Exception as error:  # numba checks numpy's version when imported
        warnings.warn(
            f"numba is installed and cannot be used ({error}); small eigenproblems go to LAPACK, which is slower",
            UserWarning,
            stacklevel=2,
        )
        return False
    return True


@lru_cache(maxsize=8)
def triton_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the Triton kernel compiles on this GPU and is right there; a failure is said once."""
    if find_spec("triton") is None:
        return False
    rows = torch.randn(4, 40, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram = rows @ rows.mT
    try:
        values, vectors = (result.cpu().double() for result in _triton(gram.to(device, dtype), 20))
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
