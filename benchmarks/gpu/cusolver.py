"""cusolverDnXsyevBatched, called in the libcusolver that torch has loaded; torch < 2.12 does not use it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu.sections import NotApplicableError

EIGENVECTORS, LOWER = 1, 0
CUDA_TYPE = {torch.float32: 0, torch.float64: 1}


def loaded_library() -> ctypes.CDLL:
    """Return the libcusolver of this process.

    Raises
    ------
    NotApplicableError
        None is loaded, or it is older than the function (CUDA 12.6 update 2).
    """
    if not torch.cuda.is_available():
        raise NotApplicableError("no GPU")
    torch.linalg.eigh(torch.eye(2, device="cuda"))  # torch loads its linear algebra at the first call
    maps = Path("/proc/self/maps")
    if not maps.exists():
        raise NotApplicableError("this system does not list the loaded libraries")
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "libcusolver.so" in line}
    if not paths:
        raise NotApplicableError("torch has loaded no libcusolver")
    library = ctypes.CDLL(sorted(paths)[0])
    for name in ("cusolverDnCreate", "cusolverDnCreateParams", "cusolverDnSetStream", "cusolverDnXsyevBatched"):
        if not hasattr(library, name):
            raise NotApplicableError(f"this libcusolver has no {name}")
    return library


class XsyevBatched:
    """Maps symmetric matrices (P, n, n) to ascending eigenvalues and eigenvectors in columns; for one thread only."""

    def __init__(self) -> None:
        self.library = loaded_library()
        self.handle, self.params = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cusolverDnCreate", ctypes.byref(self.handle))
        self._call("cusolverDnCreateParams", ctypes.byref(self.params))

    def _call(self, name: str, *arguments: object) -> None:
        function = getattr(self.library, name)
        function.restype = ctypes.c_int
        status = function(*arguments)
        if status != 0:
            raise RuntimeError(f"{name} returned status {status}")

    def __call__(self, gram: Tensor) -> tuple[Tensor, Tensor]:
        """Return the eigenvalues (P, n) and the eigenvectors (P, n, n) of `gram`."""
        batch, size, _ = gram.shape
        vectors = gram.clone(memory_format=torch.contiguous_format)  # cuSOLVER overwrites the matrices with them
        values = gram.new_empty(batch, size)
        info = torch.zeros(batch, dtype=torch.int32, device=gram.device)
        dtype = ctypes.c_int(CUDA_TYPE[gram.dtype])
        problem = (
            self.handle,
            self.params,
            ctypes.c_int(EIGENVECTORS),
            ctypes.c_int(LOWER),
            ctypes.c_int64(size),
            dtype,
            ctypes.c_void_p(vectors.data_ptr()),
            ctypes.c_int64(size),
            dtype,
            ctypes.c_void_p(values.data_ptr()),
            dtype,
        )
        stream = torch.cuda.current_stream(gram.device).cuda_stream
        self._call("cusolverDnSetStream", self.handle, ctypes.c_void_p(stream))
        on_device, on_host = ctypes.c_size_t(), ctypes.c_size_t()
        sizes = (ctypes.byref(on_device), ctypes.byref(on_host))
        self._call("cusolverDnXsyevBatched_bufferSize", *problem, *sizes, ctypes.c_int64(batch))
        device_buffer = torch.empty(max(1, on_device.value), dtype=torch.uint8, device=gram.device)
        host_buffer = ctypes.create_string_buffer(max(1, on_host.value))
        self._call(
            "cusolverDnXsyevBatched",
            *problem,
            ctypes.c_void_p(device_buffer.data_ptr()),
            on_device,
            host_buffer,
            on_host,
            ctypes.c_void_p(info.data_ptr()),
            ctypes.c_int64(batch),
        )
        torch.cuda.current_stream(gram.device).synchronize()  # before the buffers are freed
        if int(info.abs().max()) != 0:
            raise RuntimeError(f"{int((info != 0).sum())} of {batch} matrices did not converge")
        # Columns of a column-major matrix are the rows of the tensor.
        return values, vectors.mT
