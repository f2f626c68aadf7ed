"""How work on thousands of small matrices is spread: chunks of patches, one LAPACK thread each, full precision."""

from __future__ import annotations

import math
import warnings
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


# Devices that ran out of memory with chunks of the usual size, and the bytes of a chunk that they took instead.
_smaller_chunks: dict[torch.device, int] = {}


def chunk_size(n_patches: int, bytes_per_patch: int, device: torch.device, group: int = 1) -> int:
    """Return how many patches one call of a batched routine takes: a multiple of `group` that fits, evenly spread."""
    limit = CPU_CHUNK_BYTES if device.type == "cpu" else _smaller_chunks.get(device, CUDA_CHUNK_BYTES)
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

    A chunk for which a device has no memory is halved until it fits, and so are all later ones; a warning says so
    once. Tasks therefore write to their own patches only, and may be repeated.
    """
    task = _halving_what_does_not_fit(task, bytes_per_patch, device, group)
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


def _halving_what_does_not_fit(
    task: Callable[[slice], None], bytes_per_patch: int, device: torch.device, group: int
) -> Callable[[slice], None]:
    def attempt(chunk: slice) -> None:
        size = chunk.stop - chunk.start
        try:
            task(chunk)
            return
        except RuntimeError as error:
            if size <= group or not _is_out_of_memory(error):
                raise
        # Out of the except clause the traceback no longer holds the tensors of the failed attempt.
        if device.type == "cuda":
            torch.cuda.empty_cache()
        half = max(group, math.ceil(size / 2 / group) * group)
        if device not in _smaller_chunks:
            warnings.warn(
                f"{device} has no memory left for {size} patches at once: they are taken {half} at a time, and smaller "
                "chunks from now on. The result is the same; a smaller step_size or batch_size needs less",
                UserWarning,
                stacklevel=2,
            )
        _smaller_chunks[device] = min(_smaller_chunks.get(device, CUDA_CHUNK_BYTES), half * bytes_per_patch)
        attempt(slice(chunk.start, chunk.start + half))
        attempt(slice(chunk.start + half, chunk.stop))

    return attempt


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch, or one of the libraries that allocate their own memory, has none left."""
    return isinstance(error, torch.OutOfMemoryError) or "STATUS_ALLOC_FAILED" in str(error)


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
