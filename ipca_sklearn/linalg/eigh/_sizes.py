"""Limits of the eigensolvers: sizes at which one overtakes another, and what the kernels take as negligible."""

# Sizes of matrices and batches were measured (docs/dev_notes.md).
# Up to this size torch sends a batch to cuSOLVER in one call, whatever the version.
TORCH_BATCHED_SIZE = 32
# Above this size LAPACK's blocked code is faster than textbook code on all SIMD lanes.
NUMBA_SIZE = 80
# The numba kernel works on this number of matrices side by side.
NUMBA_LANES = 32
# Sizes at which bisection for the wanted vectors overtakes LAPACK's `syevd` for all, and the largest that was tried.
BISECTION_SIZES = 160, 512
# For fewer matrices of these sizes it saves less time than the import of numba takes.
BISECTION_BATCH = 64
# The Triton kernel holds a whole matrix in registers: 256 x 256 float32 fill the registers of a multiprocessor.
TRITON_SIZE = 256

# Sweeps per eigenvalue after which a kernel gives a matrix up; 1.7 is usual.
MAX_SWEEPS = 60
# The kernels scale a matrix to a largest entry of 1. An off-diagonal entry e between the diagonal entries d and d' is
# negligible then if e^2 <= eps^2 |d d'| (LAPACK's test) or |e| <= NEGLIGIBLE * eps. Without the second test, a matrix
# whose small rows lie between large ones does not converge: each sweep adds rounding errors of the large rows to e.
NEGLIGIBLE = 1e-3
# A rotation or a reflector of entries below FAINT * eps is left out: their squares have lost digits to underflow in
# float32, so it would not be orthogonal. This must be well below NEGLIGIBLE, and FAINT * eps >= sqrt(tiny) / eps.
FAINT = 1e-5
