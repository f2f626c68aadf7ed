"""How to work on thousands of small matrices: in chunks of patches, one LAPACK thread each, in full precision."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from ipca_sklearn._utils._surroundings import without_autocast
from ipca_sklearn._utils._threads import ProcessSetting, kept_workers

# cuSOLVER's batched eigensolver slows down past this many matrices.
CUDA_CHUNK = 16_384
# It also counts n * n * batch in 32 bits. Chunks of these bytes of rows and temporaries stay far below that.
CUDA_CHUNK_BYTES = 256 << 20
# A worker's chunk of rows and temporaries should stay within a core's cache.
CPU_CHUNK_BYTES = 4 << 20
# For fewer patches than this, numba's kernels save less time than its import takes.
NUMBA_BATCH = 512

# For devices that ran out of memory with chunks of the usual size: the bytes of a chunk that fitted.
_smaller_chunks: dict[torch.device, int] = {}


@lru_cache(maxsize=1)
def numba_works() -> bool:
    """Return whether the optional dependency numba can be used; warn once if it is installed and cannot."""
    if find_spec("numba") is None:
        return False
    try:  # numba checks the version of numpy when it is imported, and for a place of its cache when it meets a kernel
        for kernels in ("_numba_distances", "eigh._numba", "eigh._bisection"):
            import_module(f"ipca_sklearn.linalg.{kernels}")
    except Exception as error:
        warnings.warn(
            f"numba is installed and cannot be used ({error}): LAPACK and BLAS take the small matrices of the patches, "
            "which is slower",
            UserWarning,
            stacklevel=2,
        )
        return False
    return True


def chunk_size(n_patches: int, bytes_per_patch: int, device: torch.device, group: int = 1) -> int:
    """Return how many patches one call of a batched routine takes: a multiple of `group` that fits, in even chunks."""
    limit = CPU_CHUNK_BYTES if device.type == "cpu" else _smaller_chunks.get(device, CUDA_CHUNK_BYTES)
    fitting = max(1, min(CUDA_CHUNK, limit // max(1, bytes_per_patch)) // group) * group
    even = math.ceil(n_patches / math.ceil(n_patches / fitting))
    return min(n_patches, math.ceil(even / group) * group)


def for_each_chunk(
    task: Callable[[slice], None],
    n_patches: int,
    bytes_per_patch: int,
    device: torch.device,
    *,
    group: int = 1,
    with_caller: bool = False,
) -> None:
    """Call `task(slice)` on consecutive chunks of the patch axis until all patches are done.

    On a CPU the chunks run on as many threads as torch may use, with one BLAS/LAPACK thread in each: two threads inside
    one small decomposition are slower than one. `with_caller`, for short tasks without BLAS, makes the calling thread
    one of them. A chunk that does not fit the memory of a device is halved until it fits, and so are all later chunks:
    a task writes to its own patches only, and calling it again is harmless.
    """
    size = chunk_size(n_patches, bytes_per_patch, device, group)
    left = deque(slice(start, min(start + size, n_patches)) for start in range(0, n_patches, size))
    if device.type == "cpu" and min(torch.get_num_threads(), len(left)) > 1:
        _on_threads(task, left, with_caller)
        return
    while left:
        chunk = left.popleft()
        try:
            task(chunk)
            continue
        except RuntimeError as error:
            # Libraries that allocate their own memory have an error of their own.
            is_out = isinstance(error, torch.OutOfMemoryError) or "STATUS_ALLOC_FAILED" in str(error)
            if chunk.stop - chunk.start <= group or not is_out:
                raise
        # Outside of the except clause the traceback no longer keeps the tensors of the failed attempt alive.
        left.extendleft(reversed(_halves(chunk, bytes_per_patch, device, group)))


def _on_threads(task: Callable[[slice], None], chunks: Collection[slice], with_caller: bool) -> None:
    # Of the calling thread alone: workers write to its tensors.
    inference, with_gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    left = iter(chunks)  # one for all threads: each takes the next chunk

    def work() -> None:
        with torch.inference_mode(inference), torch.set_grad_enabled(with_gradients):
            for chunk in left:
                task(chunk)

    n_threads = torch.get_num_threads()
    with kept_workers(n_threads) as pool:
        jobs = [pool.submit(work) for _ in range(min(n_threads, len(chunks)) - with_caller)]
        try:
            if with_caller:
                work()
        finally:
            for job in jobs:
                if not (with_caller and job.cancel()):  # nothing is left for a thread that has not begun
                    job.result()


def _halves(chunk: slice, bytes_per_patch: int, device: torch.device, group: int) -> tuple[slice, slice]:
    """Return the halves of a chunk that does not fit the memory of a device; later chunks are no larger."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    size = chunk.stop - chunk.start
    half = max(group, math.ceil(size / 2 / group) * group)
    if device not in _smaller_chunks:
        warnings.warn(
            f"{device} has no memory left for {size} patches at once: from now on it takes {half} or fewer. The "
            "result is the same; a smaller step_size or batch_size needs less memory",
            UserWarning,
            stacklevel=2,
        )
    _smaller_chunks[device] = min(_smaller_chunks.get(device, CUDA_CHUNK_BYTES), half * bytes_per_patch)
    return slice(chunk.start, chunk.start + half), slice(chunk.start + half, chunk.stop)


# Each of these has a precision of its own, which `get_float32_matmul_precision` may not know.
_BACKENDS: Any = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]


def _common_precision() -> str | None:
    """Return the precision of all backends, or None where they were set one by one."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # "mix of the legacy and new APIs"
        return None


def _save_precision() -> Callable[[], None]:
    common, of_backends = _common_precision(), [backend.fp32_precision for backend in _BACKENDS]

    def restore() -> None:
        if common is not None:
            torch.set_float32_matmul_precision(common)
        for backend, precision in zip(_BACKENDS, of_backends, strict=True):
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision

    return restore


_matmul_precision = ProcessSetting(
    is_set=lambda: _common_precision() == "highest",
    change=lambda: torch.set_float32_matmul_precision("highest"),
    save=_save_precision,
)


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 matrix products without TF32 and bfloat16, whatever the program has set.

    `torch.set_float32_matmul_precision` is a setting of the whole process. While at least one thread is inside this
    block it is "highest", and then again what it was before. `torch.autocast`, a setting of the calling thread, is off.
    Blocks may nest and overlap in time.

    Notes
    -----
    A Gram matrix in TF32 errs by 1.5e-3 in the leading subspace where float32 errs by 2.9e-4 (condition number 1e4).

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn.linalg import full_precision
    >>> torch.set_float32_matmul_precision("high")
    >>> with full_precision():
    ...     print(torch.get_float32_matmul_precision())
    highest
    >>> print(torch.get_float32_matmul_precision())
    high
    >>> torch.set_float32_matmul_precision("highest")
    """
    with _matmul_precision.needed(), without_autocast():
        yield
