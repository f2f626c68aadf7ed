"""Leading eigenvectors of many symmetric matrices on a GPU, one program per matrix (Triton).

It is reached where `torch.linalg.eigh` takes matrices larger than 32 x 32 one after the other: with torch 2.10 and
2.11, and with any build for CUDA 12.6 or older (`torch_batches_any_size`). The algorithm is that of LAPACK's `syev`:
Householder tridiagonalisation in registers, implicit QL on the tridiagonal matrix by one warp, and the reflectors
applied to the wanted vectors only (Golub & Van Loan, Matrix Computations, Sec. 8.3). Matrices are scaled to a largest
entry of 1; `_sizes` says what is negligible then.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ipca_sklearn.linalg.eigh._sizes import FAINT, MAX_SWEEPS, NEGLIGIBLE


@triton.jit
def _root(x):
    # The plain root and quotient of float32 are approximate on a GPU: too rough for thousands of rotations in a row.
    return tl.sqrt_rn(x) if x.dtype == tl.float32 else tl.sqrt(x)


@triton.jit
def _quotient(x, y):
    return tl.div_rn(x, y) if x.dtype == tl.float32 else x / y


@triton.jit
def _tridiagonalize(
    gram, scale, diagonal, off_diagonal, reflectors, weights, n, SIZE: tl.constexpr, FAINT: tl.constexpr
):
    """Write T = H G H / scale as two vectors, largest rows last, and the reflectors of H as rows."""
    matrix = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, SIZE)
    row = index[:, None]
    column = index[None, :]
    # Only the lower triangle is defined.
    address = matrix * n * n + tl.maximum(row, column) * n + tl.minimum(row, column)
    a = tl.load(gram + address, mask=(row < n) & (column < n), other=0.0)
    biggest = tl.max(tl.max(tl.abs(a), axis=1), axis=0)
    biggest = tl.where(biggest > 0, biggest, 1.0)
    a = a / biggest
    tl.store(scale + matrix, biggest)
    for j in range(0, n):
        x = tl.sum(tl.where(column == j, a, 0.0), axis=1)
        tl.store(diagonal + matrix * n + n - 1 - j, tl.sum(tl.where(index == j, x, 0.0), axis=0))
        first = tl.sum(tl.where(index == j + 1, x, 0.0), axis=0)
        x = tl.where(index > j + 1, x, 0.0)
        rest = tl.sum(x * x, axis=0)
        live = rest > FAINT
        norm = _root(rest + first * first)
        # The sign of the reflected entry is chosen so that nothing cancels in the reflector.
        reflected = tl.where(first > 0, -norm, norm)
        head = first - reflected
        v = tl.where(live, tl.where(index == j + 1, head, x), 0.0)
        weight = tl.where(live, 2.0 / tl.where(live, rest + head * head, 1.0), 0.0)
        if j < n - 1:
            tl.store(off_diagonal + matrix * n + n - 2 - j, tl.where(live, reflected, first))
            tl.store(reflectors + (matrix * n + j) * n + index, v, mask=index < n)
            tl.store(weights + matrix * n + j, weight)
        w = weight * tl.sum(a * v[None, :], axis=1)
        w -= (0.5 * weight * tl.sum(w * v, axis=0)) * v
        a -= v[:, None] * w[None, :] + w[:, None] * v[None, :]


@triton.jit
def _diagonalize(
    diagonal, off_diagonal, vectors, failed, n,
    SIZE: tl.constexpr, SWEEPS: tl.constexpr, RELATIVE: tl.constexpr, NEGLIGIBLE: tl.constexpr, FAINT: tl.constexpr,
):  # fmt: skip
    """Implicit QL with Wilkinson shifts; rotates the rows of `vectors` (n, n), which start as the identity."""
    matrix = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, SIZE)
    d_start = diagonal + matrix * n
    e_start = off_diagonal + matrix * n
    z_start = vectors + matrix * n * n
    for start in range(0, n - 1):
        end = start + 1
        sweep = 0
        while (end > start) & (sweep <= SWEEPS):
            # From here on, other threads read what the last sweep stored.
            tl.debug_barrier()
            d = tl.load(d_start + index, mask=index < n, other=0.0)
            d_next = tl.load(d_start + index + 1, mask=index < n - 1, other=0.0)
            e = tl.load(e_start + index, mask=index < n - 1, other=0.0)
            small = e * e <= RELATIVE * tl.abs(d * d_next) + NEGLIGIBLE
            end = tl.min(tl.where(small & (index >= start) & (index < n - 1), index, n - 1), axis=0)
            if (end > start) & (sweep < SWEEPS):
                d_first = tl.load(d_start + start)
                e_first = tl.load(e_start + start)
                ratio = (tl.load(d_start + start + 1) - d_first) / (2 * e_first)
                root = _root(ratio * ratio + 1)
                d_low = tl.load(d_start + end)
                g = d_low - d_first + e_first / (ratio + tl.where(ratio < 0, -root, root))
                s = g * 0 + 1
                c = s
                p = g * 0
                carried = tl.load(z_start + end * n + index, mask=index < n, other=0.0)
                for step in range(0, end - start):
                    i = end - 1 - step
                    d_i = tl.load(d_start + i)
                    e_i = tl.load(e_start + i)
                    upper = tl.load(z_start + i * n + index, mask=index < n, other=0.0)
                    f = s * e_i
                    b = c * e_i
                    square = f * f + g * g
                    live = square > FAINT
                    r = tl.where(live, _root(square), 0.0)
                    safe = tl.where(live, r, 1.0)
                    s = tl.where(live, _quotient(f, safe), 0.0)
                    c = tl.where(live, _quotient(g, safe), 1.0)
                    # The entry below the block is negligible and becomes zero.
                    tl.store(e_start + i + 1, tl.where(step > 0, r, 0.0))
                    g = d_low - p
                    q = (d_i - g) * s + 2 * c * b
                    p = s * q
                    tl.store(d_start + i + 1, g + p)
                    g = c * q - b
                    d_low = d_i
                    tl.store(z_start + (i + 1) * n + index, s * upper + c * carried, mask=index < n)
                    carried = c * upper - s * carried
                tl.store(d_start + start, d_low - p)
                tl.store(e_start + start, g)
                tl.store(z_start + start * n + index, carried, mask=index < n)
            sweep += 1
        if end > start:
            tl.store(failed + matrix, 1)


@triton.jit
def _reflect(vectors, reflectors, weights, n, k, ROWS: tl.constexpr, SIZE: tl.constexpr):
    """Take `k` rows per matrix from the basis of T to that of G."""
    matrix = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    index = tl.arange(0, SIZE)
    address = vectors + (matrix * k + row[:, None]) * n + index[None, :]
    mask = (row[:, None] < k) & (index[None, :] < n)
    y = tl.load(address, mask=mask, other=0.0)
    for step in range(0, n - 2):
        j = n - 3 - step
        v = tl.load(reflectors + (matrix * n + j) * n + index, mask=index < n, other=0.0)
        weight = tl.load(weights + matrix * n + j)
        y -= (weight * tl.sum(y * v[None, :], axis=1))[:, None] * v[None, :]
    tl.store(address, y, mask=mask)


def leading_eigh(gram: Tensor, n_vectors: int) -> tuple[Tensor, Tensor]:
    """Return the k largest eigenvalues (P, k), descending, and eigenvectors as rows, of the lower triangles (P, n, n).

    n is at most `TRITON_SIZE`. Results are NaN for a matrix that does not converge, or that holds NaN or infinity.
    """
    count, n = gram.shape[0], gram.shape[1]
    gram = gram.contiguous()
    size = triton.next_power_of_2(n)
    values, off_diagonal = gram.new_empty(count, n), gram.new_empty(count, n)
    scale, weights = gram.new_empty(count), gram.new_empty(count, n)
    reflectors = torch.empty_like(gram)
    vectors = torch.eye(n, dtype=gram.dtype, device=gram.device).flip(0).expand(count, n, n).contiguous()
    failed = torch.zeros(count, dtype=torch.int32, device=gram.device)
    # Squares are compared with squares.
    eps = torch.finfo(gram.dtype).eps
    relative, negligible, faint = eps**2, (NEGLIGIBLE * eps) ** 2, (FAINT * eps) ** 2
    _tridiagonalize[(count,)](
        gram, scale, values, off_diagonal, reflectors, weights, n,
        SIZE=size, FAINT=faint, num_warps=min(32, max(1, size * size // 1024)), enable_fp_fusion=True,
    )  # fmt: skip
    _diagonalize[(count,)](
        values, off_diagonal, vectors, failed, n,
        SIZE=size, SWEEPS=MAX_SWEEPS, RELATIVE=relative, NEGLIGIBLE=negligible, FAINT=faint,
        num_warps=1, enable_fp_fusion=True,
    )  # fmt: skip
    values, order = torch.sort(values, dim=1, descending=True)
    order = order[:, :n_vectors, None].expand(-1, -1, n)
    leading = torch.gather(vectors, 1, order)
    rows = min(16, triton.next_power_of_2(n_vectors))
    _reflect[(count, triton.cdiv(n_vectors, rows))](
        leading, reflectors, weights, n, n_vectors, ROWS=rows, SIZE=size, num_warps=4, enable_fp_fusion=True
    )
    values = torch.where(failed[:, None] > 0, torch.nan, values[:, :n_vectors] * scale[:, None])
    return values, leading
