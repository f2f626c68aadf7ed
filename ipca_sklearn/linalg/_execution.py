"""How work on thousands of small matrices is spread: chunks of patches, one LAPACK thread each, full precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

# cuSOLVER's batched eigensolver slows down past this many matrices.
CUDA_CHUNK = 16_384
# It also counts n * n * batch in 32 bits, which these bytes of rows and temporaries per chunk stay far below.
CUDA_CHUNK_BYTES = 256 << 20
# A worker's chunk of rows and temporaries should stay within a core's cache.
CPU_CHUNK_BYTES = 4 << 20


def chunk_size(n_patches: int, bytes_per_patch: int, device: torch.device, group: int = 1) -> int:
    """Return how many patches one call of a batched routine takes: a multiple of `group` that fits, evenly spread."""
    limit = CPU_CHUNK_BYTES if device.type == "cpu" else CUDA_CHUNK_BYTES
    fitting = max(1, min(CUDA_CHUNK, limit // max(1, bytes_per_patch)) // group) * group
    even = math.ceil(n_patches / math.ceil(n_patches / fitting))
    return min(n_patches, math.ceil(even / group) * group)


def for_each_chunk(
    task: Callable[[slice], None], n_patches: int, bytes_per_patch: int, device: torch.device, *, group: int = 1
) -> None:
    """Call `task(slice)` on consecutive chunks of the patch axis until all patches are done.

    On a CPU the chunks run on as many threads as torch may use (`torch.get_num_threads()`), with one BLAS/LAPACK
    thread in each: LAPACK releases the GIL, and two threads inside one small decomposition are slower than one. What a
    worker sets is also what torch gives to every thread that is started later, so the caller's count is set again.
    """
    size = chunk_size(n_patches, bytes_per_patch, device, group)
    chunks = [slice(start, min(start + size, n_patches)) for start in range(0, n_patches, size)]
    available = torch.get_num_threads()
    n_threads = min(len(chunks), available) if device.type == "cpu" else 1
    if n_threads == 1:
        for chunk in chunks:
            task(chunk)
        return
    try:
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(task, chunks):
                pass
    finally:
        torch.set_num_threads(available)


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep TF32 and bfloat16 out of float32 matrix products, whatever the user has allowed globally.

    A Gram matrix in TF32 errs by 1.5e-3 in the leading subspace where float32 errs by 2.9e-4 (condition number 1e4).
    """
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
