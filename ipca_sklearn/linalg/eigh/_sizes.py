"""Sizes of matrices and batches at which one eigensolver overtakes another (measured: docs/dev_notes.md)."""

# Up to this size torch sends a batch to cuSOLVER in one call, whatever the version.
TORCH_BATCHED_SIZE = 32
# Above this size LAPACK's blocked code is faster than textbook code on all SIMD lanes.
NUMBA_SIZE = 80
# Solving fewer matrices than this takes less time than importing numba.
NUMBA_BATCH = 512
# The numba kernel works on this number of matrices side by side.
NUMBA_LANES = 32
# The Triton kernel holds a whole matrix in registers: 256 x 256 float32 fill the registers of a multiprocessor.
TRITON_SIZE = 256
