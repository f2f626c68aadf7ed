"""Leading eigenvectors of symmetric matrices of some hundred rows on a CPU, one matrix after the other (numba).

LAPACK's `syevd`, which `torch.linalg.eigh` calls, computes all vectors. Here only the wanted ones are: a Householder
tridiagonalisation in the dtype of the matrix, and on the tridiagonal matrix, in float64, bisection for the wanted
eigenvalues side by side, a vector of each by a twisted factorisation (Dhillon & Parlett, "Multiple representations to
compute orthogonal eigenvectors of symmetric tridiagonal matrices", 2004), and the reflectors on the wanted vectors. In
float64 such vectors are orthogonal without a Gram-Schmidt where eigenvalues differ by 1e-9 of the largest one; where
they do not, the check at the end finds it, and the matrix is given up.

A pass over the matrix removes the last reflector and multiplies by the next one, so the matrix is read once per row.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

# Halvings of the interval of an eigenvalue; what is left are 3e-8 of the largest one. Each vector corrects its own.
_HALVINGS, _CORRECTIONS = 26, 2
# Vectors side by side: their pivots stay in the cache.
_LANES = 32
# Rows are padded to a multiple of this, so that no loop over them has a rest that is not vectorised.
_PADDING = 32
# What is left of an eigenvalue's equation, and of the products of two vectors, in a matrix whose largest entry is 1.
_RESIDUAL, _NOT_ORTHOGONAL = 1e-9, 3e-6

_sums = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})
_exact = numba.njit(cache=True, nogil=True, error_model="numpy")  # the same bits in vectors and in what is left over


@_sums
def _remove_and_multiply(a, v, w, u, product, n, padded):
    """Set `a` to a - v w^T - w v^T, and `product` to its product with `u`, for n rows."""
    for i in range(0, n - 1, 2):
        first, second = a[i], a[i + 1]
        v0, v1, w0, w1 = v[i], v[i + 1], w[i], w[i + 1]
        sum0 = sum1 = a.dtype.type(0)
        for c in range(padded):
            x0 = first[c] - v0 * w[c] - w0 * v[c]
            x1 = second[c] - v1 * w[c] - w1 * v[c]
            first[c], second[c] = x0, x1
            sum0 += x0 * u[c]
            sum1 += x1 * u[c]
        product[i], product[i + 1] = sum0, sum1
    if n % 2:
        last, v0, w0, sum0 = a[n - 1], v[n - 1], w[n - 1], a.dtype.type(0)
        for c in range(padded):
            x0 = last[c] - v0 * w[c] - w0 * v[c]
            last[c] = x0
            sum0 += x0 * u[c]
        product[n - 1] = sum0


@_sums
def _dot(first, second, n):
    total = first.dtype.type(0)
    for i in range(n):
        total += first[i] * second[i]
    return total


@_sums
def _tridiagonalize(a, reflectors, weights, diagonal, beside, faint):
    """Reduce the symmetric matrix `a` from its last row on; row j of `reflectors` is the v of I - weight v v^T."""
    n = len(diagonal)
    width = a.shape[1]
    two = a.dtype.type(2)
    v, w, product = np.zeros(width, a.dtype), np.zeros(width, a.dtype), np.zeros(width, a.dtype)
    for j in range(n - 1, 0, -1):
        row, u = a[j], reflectors[j]
        diagonal[j] = row[j] - two * v[j] * w[j]
        vj, wj = v[j], w[j]
        for c in range(j):
            u[c] = row[c] - vj * w[c] - wj * v[c]
        v[j] = w[j] = 0
        rest = _dot(u, u, j - 1)
        first = u[j - 1]
        if rest > faint:
            norm = math.sqrt(rest + first * first)
            reflected = -norm if first > 0 else norm  # nothing cancels in the reflector then
            u[j - 1] = first - reflected
            weight = two / (rest + u[j - 1] * u[j - 1])
        else:
            reflected = first
            u[: j + 1] = 0
            weight = a.dtype.type(0)
        weights[j] = weight
        beside[j - 1] = reflected
        padded = min(width, (j + _PADDING - 1) // _PADDING * _PADDING)
        _remove_and_multiply(a, v, w, u, product, j, padded)
        inner = weight * _dot(u, product, j) / two
        for c in range(j):
            v[c] = u[c]
            w[c] = weight * (product[c] - inner * u[c])
    diagonal[0] = a[0, 0] - two * v[0] * w[0]


@_exact
def _bisect(diagonal, squares, low, high, smallest):
    """Halve the intervals of the largest eigenvalues, in descending order, until they are short."""
    n, k = len(diagonal), len(low)
    middle, pivot, below = np.empty(k), np.empty(k), np.empty(k)
    for _ in range(_HALVINGS):
        for s in range(k):
            middle[s] = 0.5 * (low[s] + high[s])
            q = diagonal[0] - middle[s]
            pivot[s] = -smallest if abs(q) < smallest else q
            below[s] = 1.0 if pivot[s] < 0 else 0.0
        for i in range(1, n):
            d, square = diagonal[i], squares[i - 1]
            for s in range(k):
                q = d - middle[s] - square / pivot[s]
                q = -smallest if abs(q) < smallest else q
                pivot[s] = q
                below[s] += 1.0 if q < 0 else 0.0
        for s in range(k):
            above = below[s] <= n - 1 - s
            low[s] = middle[s] if above else low[s]
            high[s] = high[s] if above else middle[s]


@_exact
def _correct(diagonal, beside, values, z, down, up, twist, least, smallest):
    """Set columns of `z` to unit vectors of corrected `values`, by pivots `down` and `up` that meet at `twist`."""
    n, k = z.shape
    for s in range(k):
        q = diagonal[0] - values[s]
        down[0, s] = smallest if abs(q) < smallest else q
    for i in range(1, n):
        d, square = diagonal[i], beside[i - 1] * beside[i - 1]
        for s in range(k):
            q = d - values[s] - square / down[i - 1, s]
            down[i, s] = smallest if abs(q) < smallest else q
    for s in range(k):
        q = diagonal[n - 1] - values[s]
        up[n - 1, s] = smallest if abs(q) < smallest else q
        twist[s], least[s] = n - 1, down[n - 1, s]
    for i in range(n - 2, -1, -1):
        d, square = diagonal[i], beside[i] * beside[i]
        for s in range(k):
            quotient = square / up[i + 1, s]
            q = d - values[s] - quotient
            up[i, s] = smallest if abs(q) < smallest else q
            gamma = down[i, s] - quotient
            nearer = abs(gamma) < abs(least[s])
            least[s] = gamma if nearer else least[s]
            twist[s] = i if nearer else twist[s]
    for i in range(n):  # zero, but for a one at the twist
        for s in range(k):
            z[i, s] = 1.0 if i == twist[s] else 0.0
    squares = np.ones(k)
    for i in range(n - 2, -1, -1):
        e = beside[i]
        for s in range(k):
            x = -e / down[i, s] * z[i + 1, s]
            x = x if i < twist[s] else 0.0
            squares[s] += x * x
            z[i, s] += x
    for i in range(n - 1):
        e = beside[i]
        for s in range(k):
            x = -e / up[i + 1, s] * z[i, s]
            x = x if i >= twist[s] else 0.0
            squares[s] += x * x
            z[i + 1, s] += x
    for s in range(k):
        values[s] += least[s] / squares[s]
        squares[s] = 1 / math.sqrt(squares[s])
        least[s] *= squares[s]
    for i in range(n):
        for s in range(k):
            z[i, s] *= squares[s]


@_sums
def _reflect(vectors, reflectors, weights):
    """Take vectors (k, width), k a multiple of 4, from the basis of the tridiagonal matrix to that of the matrix."""
    # Four vectors go through two reflectors at a time, so that each is read and written half as often.
    n = len(weights)
    zero = vectors.dtype.type(0)
    between = np.zeros(n, vectors.dtype)  # products of the reflectors of a pair
    for j in range(1, n - 1, 2):
        between[j] = _dot(reflectors[j], reflectors[j + 1], j)
    for r in range(0, len(vectors), 4):
        first, second, third, fourth = vectors[r], vectors[r + 1], vectors[r + 2], vectors[r + 3]
        for j in range(1, n, 2):
            later = min(j + 1, n - 1)
            weight, next_weight = weights[j], weights[later] if later > j else zero
            u, v = reflectors[j], reflectors[later]
            padded = (later + _PADDING - 1) // _PADDING * _PADDING
            x0 = y0 = z0 = t0 = x1 = y1 = z1 = t1 = zero
            for c in range(padded):
                x0 += first[c] * u[c]
                y0 += second[c] * u[c]
                z0 += third[c] * u[c]
                t0 += fourth[c] * u[c]
                x1 += first[c] * v[c]
                y1 += second[c] * v[c]
                z1 += third[c] * v[c]
                t1 += fourth[c] * v[c]
            x0, y0, z0, t0 = x0 * weight, y0 * weight, z0 * weight, t0 * weight
            x1, y1 = next_weight * (x1 - x0 * between[j]), next_weight * (y1 - y0 * between[j])
            z1, t1 = next_weight * (z1 - z0 * between[j]), next_weight * (t1 - t0 * between[j])
            for c in range(padded):
                first[c] -= x0 * u[c] + x1 * v[c]
                second[c] -= y0 * u[c] + y1 * v[c]
                third[c] -= z0 * u[c] + z1 * v[c]
                fourth[c] -= t0 * u[c] + t1 * v[c]


@_exact
def _prepare(matrix, a):
    """Copy the lower triangle to both sides of `a`, scaled to a largest entry of 1; return the scale, or NaN."""
    n = len(matrix)
    zero = matrix.dtype.type(0)
    biggest = nothing = zero
    for i in range(n):
        for j in range(i + 1):
            biggest = max(biggest, abs(matrix[i, j]))
            nothing += matrix[i, j] * zero  # NaN for NaN and infinity
    if nothing != zero:
        return np.nan
    scale = biggest if biggest > zero else matrix.dtype.type(1)
    for i in range(n):
        for j in range(i + 1):
            a[i, j] = matrix[i, j] / scale
        for j in range(i):
            a[j, i] = a[i, j]
    return float(scale)


class _Workspace:
    """What one matrix after the other is decomposed in."""

    def __init__(self, n: int, dtype: np.dtype) -> None:
        width = -(-n // _PADDING) * _PADDING
        self.matrix, self.reflectors = np.zeros((n, width), dtype), np.zeros((n, width), dtype)
        self.weights = np.zeros(n, dtype)
        self.diagonal, self.beside = np.empty(n), np.empty(n - 1)
        self.z, self.down, self.up = (np.empty((n, _LANES)) for _ in range(3))
        self.shifts, self.twist, self.least = (np.empty(_LANES) for _ in range(3))
        self.faint = dtype.type(np.finfo(dtype).eps ** 2 * 1e-10)

    def solve(self, matrix: np.ndarray, values: np.ndarray, rows: np.ndarray, negligible: float) -> bool:
        """Write the largest eigenvalues, and vectors to the zero rows; return whether they are right."""
        self.matrix[:, len(matrix) :] = 0
        scale = _prepare(matrix, self.matrix)
        if math.isnan(scale):
            return False
        self.reflectors[:] = 0
        _tridiagonalize(self.matrix, self.reflectors, self.weights, self.diagonal, self.beside, self.faint)
        n_vectors, right = self._solve_tridiagonal(values, rows, negligible)
        _reflect(rows[: -(-n_vectors // 4) * 4], self.reflectors, self.weights)
        values *= scale
        return right

    def _solve_tridiagonal(self, values: np.ndarray, rows: np.ndarray, negligible: float) -> tuple[int, bool]:
        diagonal, beside = self.diagonal, self.beside
        radius = np.zeros(len(diagonal))  # of Gershgorin's discs
        radius[1:] = np.abs(beside)
        radius[:-1] += np.abs(beside)
        lowest, highest = (diagonal - radius).min(), (diagonal + radius).max()
        size = max(abs(lowest), abs(highest), 1e-300)
        smallest = 1e-30 * size
        low, high = np.full(len(values), lowest - 1e-7 * size), np.full(len(values), highest + 1e-7 * size)
        _bisect(diagonal, beside * beside, low, high, smallest)
        np.multiply(low + high, 0.5, out=values)
        wanted = len(values) if negligible == 0 else int((values > negligible / 2 * values[0]).sum())
        right = True
        for start in range(0, wanted, _LANES):
            bisected = values[start : min(start + _LANES, wanted)]
            self.shifts[:] = bisected[0]  # the lanes that are left over
            self.shifts[: len(bisected)] = bisected
            for _ in range(_CORRECTIONS + 1):
                _correct(diagonal, beside, self.shifts, self.z, self.down, self.up, self.twist, self.least, smallest)
            shifts, least = self.shifts[: len(bisected)], self.least[: len(bisected)]
            # NaN is not right.
            right = right and bool(
                np.abs(least).max() <= _RESIDUAL * size and np.abs(shifts - bisected).max() <= 1e-6 * size
            )
            bisected[:] = shifts
            rows[start : start + len(shifts), : len(diagonal)] = self.z[:, : len(shifts)].T
        return wanted, right


def leading_eigh(gram: Tensor, n_vectors: int, *, negligible: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the k largest eigenvalues (P, k) and eigenvectors as rows, of float32 lower triangles (P, n, n).

    Vectors of eigenvalues below about a share `negligible` of the largest one may be zero. Results are NaN for a matrix
    that holds NaN or infinity, or eigenvalues too near to each other. Cost: 4/3 n^3, some 40 n k divisions, 2 n^2 k. No
    result depends on the other matrices, nor on k where the vectors are orthogonal.
    """
    n_matrices, n = gram.shape[:2]
    work = _Workspace(n, gram.new_empty(0).numpy().dtype)
    vectors = gram.new_zeros(n_matrices, -(-n_vectors // 4) * 4, work.matrix.shape[1])
    values = gram.new_empty(n_matrices, n_vectors, dtype=torch.float64)
    for matrix, found, rows in zip(gram.contiguous().numpy(), values.numpy(), vectors.numpy(), strict=True):
        if not work.solve(matrix, found, rows, negligible):
            found[:] = np.nan
    vectors = vectors[:, :n_vectors, :n]
    products = vectors @ vectors.mT
    products.diagonal(dim1=1, dim2=2).zero_()
    failed = ~(products.abs().amax((1, 2)) < _NOT_ORTHOGONAL) | values.isnan().any(1)
    if failed.any():
        values[failed], vectors[failed] = torch.nan, torch.nan
    return values.to(gram.dtype), vectors.contiguous()
