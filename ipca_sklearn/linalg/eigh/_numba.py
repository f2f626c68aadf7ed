"""Leading eigenvectors of many small symmetric matrices on a CPU, 32 matrices per loop over SIMD lanes (numba).

LAPACK takes one matrix at a time, and a small one leaves the vector units idle. Here 32 matrices are interleaved and
go through the algorithm of LAPACK's `syev` together: Householder tridiagonalisation, implicit QL on the tridiagonal
matrix, the reflectors applied to the wanted vectors only (Golub & Van Loan, Matrix Computations, Sec. 8.3). A first
pass finds the eigenvalues, without vectors. They then serve as shifts, so that most vectors need one sweep only. A lane
that has converged goes on with identity rotations: no result depends on the other matrices of its group. Matrices are
scaled to a largest entry of 1; `_sizes` says what is negligible then.

Three things stop the compiler from vectorising, and the code avoids them: signed indices (numba adds Python's
wraparound), a variable stride between the rows of the scratch array (the compiler has to check for overlap), and a
constant number of lanes (the compiler unrolls short loops instead), which is why `lanes` is an argument.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from torch import Tensor

from ipca_sklearn.linalg.eigh._sizes import FAINT, MAX_SWEEPS, NEGLIGIBLE
from ipca_sklearn.linalg.eigh._sizes import NUMBA_LANES as LANES

_L = np.uint64(LANES)
_0, _1, _2, _3 = (np.uint64(number) for number in range(4))
# Rows of the scratch array: end of the active block and its last diagonal entry, the recurrence, the last rotation.
_END, _LAST, _G, _S, _C, _P, _SINE, _COSINE = (np.uint64(row * LANES) for row in range(8))

_jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})


@_jit
def _tridiagonalize(a, t, reflectors, weights, w, scratch, n, faint, lanes):
    """Reduce the lower triangles `a` to `t` (diagonal and off-diagonal rows in turn), largest rows last."""
    # Row j of `reflectors` becomes the j-th reflector: columns of `a` have the worst stride for a cache.
    half = a.dtype.type(0.5)
    zero = a.dtype.type(0)
    two = a.dtype.type(2)
    for j in range(n - _1):
        v = j * n * _L
        out = _2 * (n - _1 - j) * _L
        for s in range(lanes):
            t[out + s] = a[(j * n + j) * _L + s]
            scratch[s] = zero
        for i in range(j + _1, n):
            x = (i * n + j) * _L
            for s in range(lanes):
                reflectors[v + i * _L + s] = a[x + s]
        for i in range((j + _2) * _L, n * _L, _L):
            for s in range(lanes):
                scratch[s] += reflectors[v + i + s] * reflectors[v + i + s]
        out -= _L
        x = v + (j + _1) * _L
        for s in range(lanes):
            first = reflectors[x + s]
            rest = scratch[s]
            live = rest > faint
            norm = math.sqrt(rest + first * first)
            # The sign of the reflected entry is chosen so that nothing cancels in the reflector.
            reflected = -norm if first > zero else norm
            head = first - reflected
            t[out + s] = reflected if live else first
            reflectors[x + s] = head if live else zero
            weights[j * _L + s] = two / (rest + head * head) if live else zero
        # w = A v
        for i in range((j + _1) * _L, n * _L):
            w[i] = zero
        for i in range(j + _1, n):
            vi = v + i * _L
            row = i * n * _L
            for s in range(lanes):
                scratch[s] = a[row + i * _L + s] * reflectors[vi + s]
            for c in range((j + _1) * _L, i * _L, _L):
                for s in range(lanes):
                    scratch[s] += a[row + c + s] * reflectors[v + c + s]
                    w[c + s] += a[row + c + s] * reflectors[vi + s]
            for s in range(lanes):
                w[i * _L + s] += scratch[s]
        # w = weight (A v - weight / 2 (v^T A v) v)
        for s in range(lanes):
            scratch[s] = zero
        for i in range((j + _1) * _L, n * _L, _L):
            for s in range(lanes):
                w[i + s] *= weights[j * _L + s]
                scratch[s] += w[i + s] * reflectors[v + i + s]
        for s in range(lanes):
            scratch[s] *= half * weights[j * _L + s]
        for i in range((j + _1) * _L, n * _L, _L):
            for s in range(lanes):
                w[i + s] -= scratch[s] * reflectors[v + i + s]
        # A - v w^T - w v^T
        for i in range(j + _1, n):
            wi = i * _L
            row = i * n * _L
            for c in range((j + _1) * _L, (i + _1) * _L, _L):
                for s in range(lanes):
                    a[row + c + s] -= reflectors[v + wi + s] * w[c + s] + w[wi + s] * reflectors[v + c + s]
    for s in range(lanes):
        t[s] = a[((n - _1) * n + n - _1) * _L + s]


@_jit
def _split(t, scratch, m, relative, floor, lanes):
    """End the block at row m in the lanes whose entry below row m is negligible."""
    zero = t.dtype.type(0)
    here = t.dtype.type(m)
    x = _2 * m * _L
    for s in range(lanes):
        d = t[x + s]
        e = t[x + _L + s]
        end = scratch[_END + s]
        last = scratch[_LAST + s]
        small = e * e <= relative * abs(d * t[x + _2 * _L + s]) + floor
        scratch[_END + s] = here if small else end
        scratch[_LAST + s] = d if small else last
        t[x + _L + s] = zero if small else e


@_jit
def _find_blocks(t, scratch, start, n, relative, floor, lanes):
    """Find the end of the unreduced block that begins at `start`, and return the furthest end of all lanes."""
    bottom = t.dtype.type(n - _1)
    for s in range(lanes):
        scratch[_END + s] = bottom
        scratch[_LAST + s] = t[_2 * (n - _1) * _L + s]
    for back in range(n - _1 - start):
        _split(t, scratch, n - _2 - back, relative, floor, lanes)
    furthest = scratch[_END]
    for s in range(lanes):
        furthest = max(furthest, scratch[_END + s])
    return np.uint64(furthest)


@_jit
def _begin_sweep(t, scratch, start, shifts, known, lanes):
    one = t.dtype.type(1)
    two = t.dtype.type(2)
    zero = t.dtype.type(0)
    x = _2 * start * _L
    for s in range(lanes):
        d = t[x + s]
        e = t[x + _L + s]
        e = e if e != zero else one  # the lane is idle then
        ratio = (t[x + _2 * _L + s] - d) / (two * e)
        root = math.sqrt(ratio * ratio + one)
        wilkinson = d - e / (ratio - root if ratio < zero else ratio + root)
        shift = shifts[x + s]
        scratch[_G + s] = scratch[_LAST + s] - (shift if known else wilkinson)
        scratch[_S + s] = one
        scratch[_C + s] = one
        scratch[_P + s] = zero


@_jit
def _next_rotation(t, scratch, i, faint, lanes):
    """One step of implicit QL on rows i and i + 1 of the tridiagonal matrices."""
    one = t.dtype.type(1)
    two = t.dtype.type(2)
    zero = t.dtype.type(0)
    here = t.dtype.type(i)
    x = _2 * i * _L
    for s in range(lanes):
        # Load everything first, needed or not: the compiler does not vectorise a load in a branch.
        end = scratch[_END + s]
        g = scratch[_G + s]
        old_sine = scratch[_S + s]
        old_cosine = scratch[_C + s]
        old_p = scratch[_P + s]
        d = t[x + s]
        e = t[x + _L + s]
        lower_d = t[x + _2 * _L + s]
        lower_e = t[x + _3 * _L + s]
        on = here < end
        f = old_sine * e
        b = old_cosine * e
        square = f * f + g * g
        live = square > faint
        r = math.sqrt(square) if live else zero
        inverse = one / (r if live else one)
        sine = f * inverse if live else zero
        cosine = g * inverse if live else one
        h = lower_d - old_p
        q = (d - h) * sine + two * cosine * b
        p = sine * q
        t[x + _3 * _L + s] = r if here + one < end else lower_e
        t[x + _2 * _L + s] = h + p if on else lower_d
        scratch[_P + s] = p if on else old_p
        scratch[_G + s] = cosine * q - b if on else g
        scratch[_S + s] = sine if on else old_sine
        scratch[_C + s] = cosine if on else old_cosine
        scratch[_SINE + s] = sine if on else zero
        scratch[_COSINE + s] = cosine if on else one


@_jit
def _rotate(z, scratch, i, n, lanes):
    """Rotate rows i and i + 1 of the eigenvectors."""
    for c in range(n):
        x = (i * n + c) * _L
        y = x + n * _L
        for s in range(lanes):
            upper = z[x + s]
            lower = z[y + s]
            z[y + s] = scratch[_SINE + s] * upper + scratch[_COSINE + s] * lower
            z[x + s] = scratch[_COSINE + s] * upper - scratch[_SINE + s] * lower


@_jit
def _give_up(t, scratch, start, failed, lanes):
    """Mark the lanes whose block at `start` does not converge, and cut it so that the others go on."""
    first = t.dtype.type(start)
    for s in range(lanes):
        if scratch[_END + s] > first:
            failed[s] = True
            t[(_2 * start + _1) * _L + s] = t.dtype.type(0)


@_jit
def _diagonalize(t, z, scratch, n, relative, floor, faint, shifts, known, failed, lanes):
    """Turn `t` into eigenvalues, and rotate `z` too if `known` (`shifts` are eigenvalues then)."""
    for start in range(n - _1):
        for sweep in range(MAX_SWEEPS + 1):
            end = _find_blocks(t, scratch, start, n, relative, floor, lanes)
            if end == start:
                break
            if sweep == MAX_SWEEPS:
                _give_up(t, scratch, start, failed, lanes)
                break
            _begin_sweep(t, scratch, start, shifts, known and sweep == 0, lanes)
            for back in range(end - start):
                i = end - _1 - back
                _next_rotation(t, scratch, i, faint, lanes)
                if known:
                    _rotate(z, scratch, i, n, lanes)
            first = t.dtype.type(start)
            x = _2 * start * _L
            for s in range(lanes):
                on = scratch[_END + s] > first
                t[x + s] = t[x + s] - scratch[_P + s] if on else t[x + s]
                t[x + _L + s] = scratch[_G + s] if on else t[x + _L + s]


@_jit
def _reflect(y, reflectors, weights, scratch, n, k, lanes):
    """Take k vectors from the basis of the tridiagonal matrix to that of the matrix."""
    zero = y.dtype.type(0)
    for back in range(n - _1):
        j = n - _2 - back
        v = j * n * _L
        for r in range(k):
            x = r * n * _L
            for s in range(lanes):
                scratch[s] = zero
            for i in range((j + _1) * _L, n * _L, _L):
                for s in range(lanes):
                    scratch[s] += reflectors[v + i + s] * y[x + i + s]
            for s in range(lanes):
                scratch[s] *= weights[j * _L + s]
            for i in range((j + _1) * _L, n * _L, _L):
                for s in range(lanes):
                    y[x + i + s] -= scratch[s] * reflectors[v + i + s]


@_jit
def _leading(gram, values, vectors, relative, floor, faint, lanes):
    count = gram.shape[0]
    n = np.uint64(gram.shape[1])
    k = np.uint64(values.shape[1])
    a = np.empty(n * n * _L, gram.dtype)
    z, reflectors = np.empty(n * n * _L, gram.dtype), np.empty(n * n * _L, gram.dtype)
    y = np.empty(k * n * _L, gram.dtype)
    t, known = np.empty(_2 * n * _L, gram.dtype), np.empty(_2 * n * _L, gram.dtype)
    w, weights = np.empty(n * _L, gram.dtype), np.empty(n * _L, gram.dtype)
    scratch = np.empty(np.uint64(8) * _L, gram.dtype)
    scale = np.empty(LANES, gram.dtype)
    failed = np.empty(LANES, np.bool_)
    zero = gram.dtype.type(0)
    one = gram.dtype.type(1)
    order = np.empty(n, np.uint64)
    for first in range(0, count, LANES):
        for lane in range(LANES):
            s = np.uint64(lane)
            matrix = gram[min(first + lane, count - 1)]
            biggest = zero
            nothing = zero
            for i in range(n):
                for j in range(i + _1):
                    biggest = max(biggest, abs(matrix[i, j]))
                    nothing += matrix[i, j] * zero  # NaN for NaN and infinity
            failed[lane] = nothing != zero
            scale[lane] = biggest if biggest > zero and not failed[lane] else one
            for i in range(n):
                for j in range(i + _1):
                    a[(i * n + j) * _L + s] = zero if failed[lane] else matrix[i, j] / scale[lane]
        t[:] = 0
        _tridiagonalize(a, t, reflectors, weights, w, scratch, n, faint, lanes)
        known[:] = t
        _diagonalize(known, z, scratch, n, relative, floor, faint, known, False, failed, lanes)
        z[:] = 0
        for i in range(n):
            x = (i * n + n - _1 - i) * _L
            z[x : x + _L] = 1
        _diagonalize(t, z, scratch, n, relative, floor, faint, known, True, failed, lanes)
        for lane in range(min(LANES, count - first)):
            s = np.uint64(lane)
            for i in range(n):
                value = t[_2 * i * _L + s]
                j = i
                while j > _0 and t[_2 * order[j - _1] * _L + s] < value:
                    order[j] = order[j - _1]
                    j -= _1
                order[j] = i
            for r in range(k):
                values[first + lane, r] = t[_2 * order[r] * _L + s] * scale[lane]
                for i in range(n):
                    y[(r * n + i) * _L + s] = z[(order[r] * n + i) * _L + s]
        _reflect(y, reflectors, weights, scratch, n, k, lanes)
        for lane in range(min(LANES, count - first)):
            for r in range(k):
                for i in range(n):
                    vectors[first + lane, r, i] = y[(r * n + i) * _L + np.uint64(lane)]
            if failed[lane]:
                vectors[first + lane] = np.nan
                values[first + lane] = np.nan


def leading_eigh(gram: Tensor, n_vectors: int) -> tuple[Tensor, Tensor]:
    """Return the k largest eigenvalues (P, k) and eigenvectors as rows of lower triangles (P, n, n), or NaN."""
    values = gram.new_empty(gram.shape[0], n_vectors)
    vectors = gram.new_empty(gram.shape[0], n_vectors, gram.shape[1])
    array = gram.contiguous().numpy()
    eps = np.finfo(array.dtype).eps
    relative, floor, faint = (array.dtype.type(limit**2) for limit in (eps, NEGLIGIBLE * eps, FAINT * eps))
    _leading(array, values.numpy(), vectors.numpy(), relative, floor, faint, _L)
    return values, vectors
