"""The eigensolvers against float64 LAPACK, and the choice between them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ipca_sklearn.linalg import EIGENSOLVERS, _execution, choose_eigensolver
from ipca_sklearn.linalg._execution import numba_works
from ipca_sklearn.linalg.eigh import _choice as _eigh
from ipca_sklearn.linalg.eigh import scatter_eigensolver

CPU = torch.device("cpu")
SIZES = [1, 2, 3, 16, 31, 32, 33, 48, 80]
DTYPES = [torch.float32, torch.float64]


def available(device):
    names = ["torch", "host"]
    if device.type == "cpu" and numba_works():
        names.append("numba")
    if device.type == "cuda" and _eigh.triton_works(device, torch.float32):
        names.append("triton")
    return names


@pytest.fixture(params=list(EIGENSOLVERS))
def eigensolver(request, device):
    if request.param not in available(device):
        pytest.skip(f"{request.param} does not run on {device} here")
    return EIGENSOLVERS[request.param]


def grams(count, size, dtype, seed, *, decay=1.0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, size, 2 * size, generator=generator, dtype=torch.float64)
    rows *= torch.arange(1, size + 1)[:, None] ** -decay
    return (rows @ rows.mT).to(dtype)


def graded(count, size, dtype, seed):
    """Gram matrices of rows whose norms are spread over as many decades as float32 has digits, or twice as many."""
    generator = torch.Generator().manual_seed(seed)
    decades = 10 if dtype == torch.float32 else 20
    scales = 10 ** (-decades * torch.rand(count, size, 1, generator=generator, dtype=torch.float64))
    rows = (scales * torch.randn(count, size, 2 * size, generator=generator, dtype=torch.float64)).to(dtype)
    return rows @ rows.mT


def assert_leading(matrices, values, vectors, k):
    """Check backward stability: eigenvalues, residuals and orthogonality within rounding of each matrix' norm."""
    exact = matrices.double().tril()
    exact = exact + exact.tril(-1).mT
    size = matrices.shape[1]
    eps = torch.finfo(matrices.dtype).eps * 10 * (size + 3)
    values, vectors = values.cpu().double(), vectors.cpu().double()
    assert values.shape == (len(matrices), k)
    assert vectors.shape == (len(matrices), k, size)
    norm = torch.linalg.matrix_norm(exact, ord=2)[:, None]
    wanted = torch.linalg.eigvalsh(exact).flip(-1)[:, :k]
    assert ((values - wanted).abs() <= eps * norm).all()
    residual = torch.linalg.vector_norm(vectors @ exact - values[..., None] * vectors, dim=-1)
    assert (residual <= eps * norm).all()
    assert (vectors @ vectors.mT - torch.eye(k, dtype=torch.float64)).abs().max() <= eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_leading_eigenvectors_equal_those_of_float64(eigensolver, device, size, dtype, global_random_seed):
    for k in {1, (size + 1) // 2, size}:
        matrices = grams(5, size, dtype, global_random_seed)
        values, vectors = eigensolver.solve(matrices.to(device), k)
        assert values.dtype == vectors.dtype == dtype
        assert values.device == vectors.device == device
        assert_leading(matrices, values, vectors, k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_hard_matrices(eigensolver, device, dtype, scale):
    size = 12
    rank_one = torch.ones(size, size)
    graded = torch.diag(torch.logspace(0, -30, size, dtype=torch.float64)).to(dtype)
    graded_up = graded.flip(0, 1)
    clustered = torch.eye(size) + 1e-6 * rank_one
    arrow = torch.eye(size)
    arrow[-1] = 1
    cases = [torch.zeros(size, size), torch.eye(size), rank_one, graded, graded_up, clustered, arrow, -rank_one]
    matrices = torch.stack([case.to(dtype) for case in cases]) * scale
    values, vectors = eigensolver.solve(matrices.to(device), 7)
    assert_leading(matrices, values, vectors, 7)


def test_only_the_lower_triangle_is_read(eigensolver, device):
    matrices = grams(3, 10, torch.float64, 0)
    nonsense = matrices.tril() + torch.full_like(matrices, 1e3).triu(1)
    values, vectors = eigensolver.solve(nonsense.to(device), 4)
    expected_values, expected_vectors = eigensolver.solve(matrices.to(device), 4)
    assert torch.equal(values, expected_values)
    assert torch.equal(vectors, expected_vectors)


def test_input_is_not_changed(eigensolver, device):
    matrices = grams(3, 10, torch.float32, 0).to(device)
    before = matrices.clone()
    eigensolver.solve(matrices, 4)
    assert torch.equal(matrices, before)


def test_no_result_depends_on_the_other_matrices_of_a_batch(eigensolver, device):
    matrices = grams(70, 20, torch.float32, 0, decay=0.3)
    matrices[3] = 0
    matrices[40] *= 1e12
    matrices = matrices.to(device)
    values, vectors = eigensolver.solve(matrices, 9)
    for part in (slice(0, 1), slice(3, 41), slice(69, 70)):
        alone = eigensolver.solve(matrices[part], 9)
        assert torch.equal(alone[0], values[part])
        assert torch.equal(alone[1], vectors[part])


def test_nan_is_an_error_or_nan_but_never_hangs(eigensolver, device):
    matrices = grams(3, 40, torch.float32, 0)
    matrices[1, 20, 3] = float("nan")
    try:
        values, _ = eigensolver.solve(matrices.to(device), 4)
    except torch.linalg.LinAlgError:
        return
    assert values.isnan().any()


@pytest.mark.skipif(not numba_works(), reason="numba is not installed")
@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 24), seed=st.integers(0, 2**32 - 1), decay=st.floats(-3, 3), rank=st.integers(0, 24))
def test_any_spectrum_on_simd_lanes(size, seed, decay, rank):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(3, size, max(1, min(rank, size)), generator=generator, dtype=torch.float64)
    rows *= torch.arange(1, size + 1)[:, None] ** -decay
    matrices = (rows @ rows.mT).float() if rank else torch.zeros(3, size, size)
    assert_leading(matrices, *EIGENSOLVERS["numba"].solve(matrices, size), size)


def test_triton_kernel_in_the_interpreter():
    pytest.importorskip("triton", reason="triton comes with torch on Linux with CUDA")
    script = """
import torch
from ipca_sklearn.linalg.eigh._alone import solve_failures_alone
from ipca_sklearn.linalg.eigh._triton import leading_eigh
from test_eigh import assert_leading, grams, graded
for dtype in (torch.float32, torch.float64):
    for size, k in ((1, 1), (2, 2), (3, 1), (11, 6)):
        matrices = grams(2, size, dtype, 0)
        assert_leading(matrices, *leading_eigh(matrices, k), k)
    hard = [torch.zeros(6, 6), torch.eye(6), torch.ones(6, 6), torch.diag(torch.logspace(0, -20, 6))]
    hard = torch.stack(hard).to(dtype)
    assert_leading(hard, *leading_eigh(hard, 4), 4)
    scales = graded(3, 12, dtype, 0)
    assert_leading(scales, *leading_eigh(scales, 6), 6)
    assert_leading(scales * 1e-30, *leading_eigh(scales * 1e-30, 6), 6)
    nan = grams(2, 4, dtype, 0)
    nan[1, 2, 1] = float("nan")
    values, vectors = leading_eigh(nan, 2)
    assert values[1].isnan().all() and values[0].isfinite().all() and vectors[0].isfinite().all()
    try:
        solve_failures_alone(nan, values, vectors)
    except torch.linalg.LinAlgError:
        print("all is well")
"""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), environment["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.splitlines() == ["all is well"] * 2, done.stderr


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_triton_kernels_compile_for_a_gpu_that_is_not_here(dtype):
    triton = pytest.importorskip("triton", minversion="3.3", reason="compiles without a GPU from Triton 3.3 on")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ipca_sklearn.linalg.eigh import _triton as _eigh_triton

    pointers = ["gram", "scale", "diagonal", "off_diagonal", "reflectors", "weights", "vectors"]
    types = dict.fromkeys(pointers, f"*{dtype}") | {"failed": "*i32", "n": "i32", "k": "i32"}
    constants = {"SIZE": 64, "SWEEPS": 60, "ROWS": 16, "RELATIVE": 5e-32, "NEGLIGIBLE": 5e-38, "FAINT": 5e-42}
    for kernel, warps in (("_tridiagonalize", 4), ("_diagonalize", 1), ("_reflect", 4)):
        function = getattr(_eigh_triton, kernel)
        signature = {name: types.get(name, "constexpr") for name in function.arg_names}
        values = {(i,): constants[name] for i, name in enumerate(function.arg_names) if name in constants}
        source = ASTSource(fn=function, signature=signature, constexprs=values)
        options = {"num_warps": warps, "enable_fp_fusion": True}
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert kernel.encode() in compiled.asm["cubin"]


@pytest.mark.parametrize(
    ("torch_version", "cuda_version", "expected"),
    [
        ("2.6.0+cu124", "12.4", False),
        ("2.11.0+cu130", "13.0", False),
        ("2.12.0+cu126", "12.6", False),
        ("2.12.0+cu128", "12.8", True),
        ("2.15.0.dev20260101+cu132", "13.2", True),
        ("2.12.0a0+git1234567", "12.8", True),
        ("2.12.0", "12.6.85", False),
        ("3.0.1", "13.4", True),
        ("2.15.0+cpu", None, False),
    ],
)
def test_versions_that_batch_matrices_of_any_size(torch_version, cuda_version, expected):
    assert _eigh.torch_batches_any_size(torch_version, cuda_version) is expected


@pytest.mark.skipif(not numba_works(), reason="numba is not installed")
@pytest.mark.parametrize(("size", "k"), [(129, 40), (192, 192), (255, 96), (256, 1)])
def test_bisection_finds_the_leading_vectors_of_large_matrices(size, k, global_random_seed):
    from ipca_sklearn.linalg.eigh._bisection import leading_eigh

    matrices = torch.cat(
        [grams(2, size, torch.float32, global_random_seed, decay=0.3), graded(2, size, torch.float32, 1)]
    )
    values, vectors = leading_eigh(matrices, k)
    solved = values.isfinite().all(1)  # where rows are of twelve decades, many eigenvalues are the same to float32
    assert solved[:2].all()
    assert_leading(matrices[solved], values[solved], vectors[solved], k)
    assert_leading(matrices, *_eigh.bisection().solve(matrices, k), k)


@pytest.mark.skipif(not numba_works(), reason="numba is not installed")
def test_bisection_gives_up_what_it_cannot_tell_apart_and_only_that():
    from ipca_sklearn.linalg.eigh._bisection import leading_eigh

    matrices = grams(4, 40, torch.float32, 0)
    matrices[1] = torch.eye(40)
    matrices[2, 30, 7] = torch.inf
    values, vectors = leading_eigh(matrices, 10)
    assert values.isnan().any(1).tolist() == vectors.isnan().any(2).any(1).tolist() == [False, True, True, False]
    assert_leading(matrices[::3], values[::3], vectors[::3], 10)
    assert_leading(matrices[1::8], *_eigh.bisection().solve(matrices[1::8], 10), 10)


@pytest.mark.skipif(not numba_works(), reason="numba is not installed")
def test_what_bisection_leaves_out_is_negligible_and_fewer_vectors_have_the_same_bits():
    from ipca_sklearn.linalg.eigh._bisection import leading_eigh

    rows = torch.randn(3, 200, 30, generator=torch.Generator().manual_seed(0))
    matrices = rows @ rows.mT  # of rank 30
    values, vectors = leading_eigh(matrices, 60, negligible=1e-5)
    assert_leading(matrices, values[:, :30], vectors[:, :30], 30)
    assert (values[:, 30:].abs() < 1e-5 * values[:, :1]).all() and not vectors[:, 30:].any()
    fewer_values, fewer = leading_eigh(matrices, 7, negligible=1e-5)
    assert torch.equal(fewer_values, values[:, :7]) and torch.equal(fewer, vectors[:, :7])


def chosen(monkeypatch, device, size, *, batches=False, triton=True, numba=True, n_patches=3136):
    monkeypatch.setattr(_eigh, "torch_batches_any_size", lambda *versions: batches)
    monkeypatch.setattr(_eigh, "triton_works", lambda *where: triton)
    monkeypatch.setattr(_eigh, "numba_works", lambda: numba)
    return choose_eigensolver(torch.device(device), torch.float32, size, n_patches).name


def test_choice_for_scatter_matrices(monkeypatch):
    def name(size, n_matrices=256, device="cpu", dtype=torch.float32):
        return scatter_eigensolver(torch.device(device), dtype, size, n_matrices).name

    monkeypatch.setattr(_eigh, "numba_works", lambda: True)
    assert [name(size) for size in (8, 128, 160, 512, 513)] == ["torch", "torch", "bisection", "bisection", "torch"]
    assert name(256, 8) == name(256, device="cuda") == name(256, dtype=torch.float64) == "torch"
    monkeypatch.setattr(_eigh, "numba_works", lambda: False)
    assert name(256) == "torch"


def test_choice_on_a_cpu(monkeypatch):
    assert chosen(monkeypatch, "cpu", 32) == "numba"
    assert chosen(monkeypatch, "cpu", 128) == "torch"
    assert chosen(monkeypatch, "cpu", 32, numba=False) == "torch"
    assert chosen(monkeypatch, "cpu", 32, n_patches=1) == "torch"


def test_choice_on_a_gpu(monkeypatch):
    assert chosen(monkeypatch, "cuda", 32) == "torch"
    assert chosen(monkeypatch, "cuda", 33) == "triton"
    assert chosen(monkeypatch, "cuda", 192) == "triton"
    assert chosen(monkeypatch, "cuda", 33, batches=True) == "torch"
    assert chosen(monkeypatch, "cuda", 33, triton=False) == "host"
    assert chosen(monkeypatch, "cuda", 257) == "host"


def test_a_triton_kernel_that_fails_or_errs_is_not_used_and_warns(monkeypatch):
    def crash(gram, k):
        raise RuntimeError("no ptxas here")

    monkeypatch.setattr(_eigh, "find_spec", lambda name: object())
    monkeypatch.setattr(_eigh, "_triton_as_it_is", crash)
    with pytest.warns(UserWarning, match="no ptxas here.*go to the CPU"):
        assert not _eigh.triton_works.__wrapped__(CPU, torch.float32)
    monkeypatch.setattr(_eigh, "_triton_as_it_is", lambda gram, k: (gram[:, :k, 0], gram[:, :k]))
    with pytest.warns(UserWarning, match="wrong by"):
        assert not _eigh.triton_works.__wrapped__(CPU, torch.float32)
    monkeypatch.setattr(_eigh, "_triton_as_it_is", EIGENSOLVERS["torch"].solve)
    assert _eigh.triton_works.__wrapped__(CPU, torch.float32)


def test_every_matrix_is_solved_where_the_host_takes_them_in_chunks(monkeypatch):
    gram = torch.stack([torch.diag(torch.arange(3.0) + index) for index in range(40)])
    monkeypatch.setattr(_execution, "CPU_CHUNK_BYTES", 1)
    values, vectors = EIGENSOLVERS["host"].solve(gram, 1)
    torch.testing.assert_close(values[:, 0], torch.arange(2.0, 42))
    assert vectors.shape == (40, 1, 3)
