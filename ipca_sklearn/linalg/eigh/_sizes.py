"""Sizes of matrices and batches at which one eigensolver overtakes another (measured: docs/dev_notes.md)."""

# Up to this size torch sends a batch to cuSOLVER in one call, whatever the version.
TORCH_BATCHED_SIZE = 32
# Above this size LAPACK's blocked code is faster than textbook code on all SIMD lanes.
NUMBA_SIZE = 80
# Fewer matrices than this are done before numba is imported.
NUMBA_BATCH = 512
# Matrices that numba's kernel takes side by side.
NUMBA_LANES = 32
# The Triton kernel reads a matrix into registers whole: 256 x 256 float32 fill those of a multiprocessor.
TRITON_SIZE = 256
