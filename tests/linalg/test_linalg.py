"""The linear algebra against the float64 SVD of all samples, for every solver, centring, dtype and device."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ipca_sklearn import linalg
from ipca_sklearn.linalg import _execution

EXACT_SOLVERS = [name for name in linalg.SOLVERS if name != "auto"]

# Relative error allowed per dtype where the algorithm is exact, for data of condition number <= 100.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-3}


def low_rank(rng, n_samples, n_patches, n_features, rank, mean=0.0, dtype=torch.float64):
    """Samples (n, P, m) of the given rank around a mean that lies in the same subspace plus `mean` everywhere."""
    scales = np.linspace(3, 1, rank) if rank else np.empty(0)
    factors = rng.normal(size=(n_samples, n_patches, rank)) * scales
    basis = np.linalg.qr(rng.normal(size=(n_patches, n_features, max(rank, 1))))[0][..., :rank]
    return torch.from_numpy(np.einsum("npr,pmr->npm", factors, basis) + mean).to(dtype)


def learn(samples, sizes, n_rows, **options):
    state = linalg.empty_state(*samples.shape[1:], dtype=samples.dtype, device=samples.device)
    for step in samples.split(sizes):
        state = linalg.update(state, step, n_rows=n_rows, **options)
    return state


def exact(samples, n_components):
    """Mean, covariance along the leading directions as a matrix, variances, noise: by a float64 SVD of all samples."""
    samples = samples.double().cpu()
    mean = samples.mean(0)
    centred = (samples - mean).transpose(0, 1)
    _, values, right = torch.linalg.svd(centred, full_matrices=False)
    variance = values.square() / max(len(samples) - 1, 1)
    variance = torch.nn.functional.pad(variance, (0, max(0, n_components - variance.shape[1])))
    right = right[:, :n_components]
    kept = variance[:, :n_components]
    covariance = right.mT * kept[:, None, : right.shape[1]] @ right
    n_left = samples.shape[2] - n_components
    noise = variance[:, n_components:].sum(1) / max(n_left, 1)
    return mean, covariance, kept, noise


def assert_matches_exact(state, samples, n_components, centering, tolerance):
    basis = linalg.finalize(state, n_components=n_components, centering=centering).to(
        torch.device("cpu"), torch.float64
    )
    mean, covariance, variance, noise = exact(samples, n_components)
    scale = max(variance.max().item(), 1e-12)
    found = basis.components.mT * basis.variance[:, None] @ basis.components
    torch.testing.assert_close(basis.mean, mean, rtol=tolerance, atol=tolerance * (1 + mean.abs().max().item()))
    torch.testing.assert_close(found, covariance, rtol=0, atol=tolerance * scale)
    torch.testing.assert_close(basis.variance, variance, rtol=0, atol=tolerance * scale)
    torch.testing.assert_close(basis.noise_variance, noise, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("centering", linalg.CENTERINGS)
@pytest.mark.parametrize("solver", EXACT_SOLVERS)
@pytest.mark.parametrize("sizes", [1, 7, 16, [3, 30, 1, 6], 40])
def test_any_steps_are_exact_on_data_of_rank_k(solver, centering, dtype, sizes, device, global_random_seed):
    rng = np.random.default_rng(global_random_seed)
    samples = low_rank(rng, 40, 5, 12, 3, mean=2.0, dtype=dtype).to(device)
    # Uncentred rows need one direction more, for the mean.
    n_rows = 3 if centering == "incremental" else 4
    state = learn(samples, sizes, n_rows, centering=centering, solver=solver)
    assert_matches_exact(state, samples, 3, centering, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("centering", linalg.CENTERINGS)
@pytest.mark.parametrize("solver", EXACT_SOLVERS)
def test_any_merge_tree_is_exact_on_data_of_rank_k(solver, centering, dtype, device, global_random_seed):
    rng = np.random.default_rng(global_random_seed)
    samples = low_rank(rng, 40, 4, 9, 3, mean=-1.0, dtype=dtype).to(device)
    options = {"n_rows": 3 if centering == "incremental" else 4, "centering": centering, "solver": solver}
    parts = [learn(part, 5, **options) for part in samples.split([1, 12, 20, 7])]
    chain = reduce(lambda a, b: linalg.merge(a, b, **options), parts)
    tree = linalg.merge(
        linalg.merge(parts[3], parts[0], **options), linalg.merge(parts[2], parts[1], **options), **options
    )
    for state in (chain, tree):
        assert state.count == 40
        assert_matches_exact(state, samples, 3, centering, TOLERANCE[dtype])


@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=6),
    centering=st.sampled_from(linalg.CENTERINGS),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_a_random_merge_tree_is_exact_on_data_of_rank_k(sizes, centering, seed, data):
    samples = low_rank(np.random.default_rng(seed), sum(sizes), 2, 7, 2, mean=1.0)
    options = {"n_rows": 3, "centering": centering}
    parts = [learn(part, 3, **options) for part in samples.split(sizes)]
    while len(parts) > 1:
        first = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        second = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        parts.append(linalg.merge(first, second, **options))
    assert parts[0].count == sum(sizes)
    assert_matches_exact(parts[0], samples, 2, centering, 1e-9)


@given(
    n_samples=st.integers(1, 40),
    n_patches=st.integers(1, 4),
    n_features=st.integers(1, 10),
    step_size=st.integers(1, 41),
    solver=st.sampled_from(EXACT_SOLVERS),
    centering=st.sampled_from(linalg.CENTERINGS),
    seed=st.integers(0, 2**16),
)
def test_keeping_all_directions_equals_the_svd_of_all_samples(
    n_samples, n_patches, n_features, step_size, solver, centering, seed
):
    samples = torch.from_numpy(np.random.default_rng(seed).normal(size=(n_samples, n_patches, n_features)))
    state = learn(samples, step_size, n_features, centering=centering, solver=solver)
    assert_matches_exact(state, samples, n_features, centering, 1e-9)
    torch.testing.assert_close(state.sum_of_squares, (samples - samples.mean(0)).square().sum(0), rtol=1e-9, atol=1e-9)


@given(
    rank=st.integers(0, 4),
    order=st.permutations(range(12)),
    cuts=st.lists(st.integers(1, 11), max_size=4, unique=True),
    seed=st.integers(0, 2**16),
)
def test_order_and_split_do_not_matter_where_the_rank_is_kept(rank, order, cuts, seed):
    samples = low_rank(np.random.default_rng(seed), 12, 2, 6, rank, mean=1.0)
    edges = [0, *sorted(cuts), 12]
    sizes = [b - a for a, b in itertools.pairwise(edges)]
    state = learn(samples[list(order)], sizes, 4)
    assert_matches_exact(state, samples, 4, "incremental", 1e-9)


@pytest.mark.parametrize("centering", linalg.CENTERINGS)
def test_a_step_taller_than_wide_equals_small_steps(centering, device):
    samples = low_rank(np.random.default_rng(0), 60, 3, 5, 5, mean=3.0).to(device)
    tall, small = (learn(samples, size, 5, centering=centering) for size in (50, 4))
    assert_matches_exact(tall, samples, 5, centering, 1e-9)
    assert_matches_exact(small, samples, 5, centering, 1e-9)


def test_float32_with_a_mean_of_1000_and_a_deviation_of_1_matches_float64(device):
    rng = np.random.default_rng(0)
    samples = torch.from_numpy(1000 + rng.normal(size=(300, 4, 32)) * np.linspace(2, 0.5, 32)).float().to(device)
    single, double = (
        linalg.finalize(learn(x, 16, 8), n_components=8).to(torch.device("cpu"), torch.float64)
        for x in (samples, samples.double())
    )
    torch.testing.assert_close(single.variance, double.variance, rtol=1e-3, atol=0)
    torch.testing.assert_close(single.noise_variance, double.noise_variance, rtol=1e-3, atol=0)
    torch.testing.assert_close(
        single.components.mT @ single.components, double.components.mT @ double.components, rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("kind", ["constant", "zero", "duplicated samples", "duplicated features"])
@pytest.mark.parametrize("solver", EXACT_SOLVERS)
@pytest.mark.parametrize("centering", linalg.CENTERINGS)
def test_degenerate_data_gives_finite_orthonormal_or_zero_components(kind, solver, centering, device):
    rng = np.random.default_rng(0)
    samples = torch.from_numpy(rng.normal(size=(20, 2, 6)))
    if kind == "constant":
        samples[:] = 7.25
    elif kind == "zero":
        samples[:] = 0
    elif kind == "duplicated samples":
        samples = samples[:2].repeat(10, 1, 1)
    else:
        samples[..., 3:] = samples[..., :3]
    samples = samples.to(device)
    basis = linalg.finalize(
        learn(samples, 6, 5, centering=centering, solver=solver), n_components=5, centering=centering
    )
    for tensor in (basis.components, basis.variance, basis.noise_variance):
        assert torch.isfinite(tensor).all()
    gram = basis.components @ basis.components.mT
    live = torch.diag_embed((basis.variance > 0).double())
    torch.testing.assert_close(gram, live, rtol=0, atol=1e-9)
    rank = {"constant": 0, "zero": 0, "duplicated samples": 1, "duplicated features": 3}[kind]
    assert (basis.variance > 1e-9 * (basis.variance.max() + 1e-300)).sum(1).max() <= rank


def test_oversampling_brings_a_long_stream_nearer_to_the_exact_pca(global_random_seed):
    rng = np.random.default_rng(global_random_seed)
    samples = torch.from_numpy(rng.normal(size=(800, 3, 40)) / np.arange(1, 41) ** 0.5)
    _, _, variance, _ = exact(samples, 4)
    kept = [
        linalg.finalize(learn(samples, 16, 4 + extra), n_components=4).variance.sum() / variance.sum()
        for extra in (0, 8)
    ]
    assert kept[0] < kept[1] <= 1 + 1e-9


def test_deferred_centring_in_float32_keeps_small_components_beside_a_large_mean(device, global_random_seed):
    generator = torch.Generator().manual_seed(global_random_seed)
    samples = torch.randn(400, 3, 160, generator=generator) * torch.arange(1, 161).rsqrt()
    samples = (samples + 2 * torch.rand(3, 160, generator=generator)).to(device)
    centred = (samples - samples.mean(0)).transpose(0, 1)
    kept = {}
    for centering in linalg.CENTERINGS:
        state = learn(samples, 50, 100, centering=centering)
        basis = linalg.finalize(state, n_components=100, centering=centering)
        kept[centering] = torch.linalg.matrix_norm(centred @ basis.components.mT).square()
    assert (kept["deferred"] > 0.97 * kept["incremental"]).all()


def test_update_and_merge_change_neither_the_state_nor_the_samples(device):
    rng = np.random.default_rng(0)
    samples = torch.from_numpy(rng.normal(size=(8, 3, 5))).to(device)
    state = learn(samples, 4, 3)
    before = [tensor.clone() for tensor in (samples, state.rows, state.mean, state.sum_of_squares)]
    linalg.update(state, samples, n_rows=3)
    linalg.merge(state, state, n_rows=3)
    linalg.finalize(state, n_components=3, centering="deferred")
    for tensor, copy in zip((samples, state.rows, state.mean, state.sum_of_squares), before, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0)


def test_chunks_of_patches_and_strides_do_not_change_the_result(monkeypatch):
    wide = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 10, 37, 6))).permute(1, 2, 0, 3)
    samples = wide[:, ::2, 1]
    whole = learn(samples.contiguous(), 4, 3)
    monkeypatch.setattr(_execution, "CPU_CHUNK_BYTES", 1)
    pieces = learn(samples, 4, 3)
    torch.testing.assert_close(pieces.rows.mT @ pieces.rows, whole.rows.mT @ whole.rows, rtol=1e-12, atol=1e-12)


def test_the_callers_thread_and_precision_settings_survive():
    torch.set_float32_matmul_precision("medium")
    try:
        n_threads = torch.get_num_threads()
        learn(torch.randn(8, 500, 40), 4, 3)
        assert torch.get_num_threads() == n_threads
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == n_threads
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_reduced_precision_does_not_leak_into_the_gram(device):
    samples = torch.randn(16, 4, 64, generator=torch.Generator().manual_seed(0)).to(device)
    reference = learn(samples, 16, 8)
    torch.set_float32_matmul_precision("medium")
    try:
        found = learn(samples, 16, 8)
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(found.rows, reference.rows, rtol=0, atol=0)


def test_a_driver_without_a_gpu_or_an_svd_is_refused():
    samples = torch.randn(4, 2, 3)
    with pytest.raises(ValueError, match="svd_driver='gesvdj' chooses a cuSOLVER routine and the data is on cpu"):
        learn(samples, 4, 2, solver="svd", svd_driver="gesvdj")
    with pytest.raises(ValueError, match="has no effect with solver='gram_eigh'"):
        learn(samples, 4, 2, solver="gram_eigh", svd_driver="gesvdj")


def test_unknown_names_are_refused_with_the_names_that_exist():
    samples = torch.randn(4, 2, 3)
    state = learn(samples, 4, 2)
    with pytest.raises(ValueError, match="solver='qr' is unknown; use one of 'auto', 'gram_eigh', 'gram_svd', 'svd'"):
        learn(samples, 4, 2, solver="qr")
    for call in (
        lambda: learn(samples, 4, 2, centering="none"),
        lambda: linalg.merge(state, state, n_rows=2, centering="none"),
        lambda: linalg.finalize(state, n_components=2, centering="none"),
    ):
        with pytest.raises(ValueError, match="centering='none' is unknown; use one of 'incremental', 'deferred'"):
            call()


def test_an_output_buffer_that_fits_is_used_and_another_is_ignored(device):
    samples = torch.randn(12, 3, 5, generator=torch.Generator().manual_seed(0)).to(device)
    state = learn(samples[:8], 4, 2)
    expected = linalg.update(state, samples[8:], n_rows=2)
    for buffer in (torch.full_like(state.rows, torch.nan), state.rows.double(), state.rows[:2].clone()):
        found = linalg.update(state, samples[8:], n_rows=2, out=buffer)
        assert torch.equal(found.rows, expected.rows)
        assert (found.rows is buffer) == (buffer.shape == (3, 2, 5) and buffer.dtype == torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the drivers are cuSOLVER's: no CUDA device here")
@pytest.mark.parametrize("driver", linalg.SVD_DRIVERS)
@pytest.mark.parametrize("solver", ["svd", "gram_svd"])
def test_every_driver_finds_the_same_subspace(solver, driver):
    samples = low_rank(np.random.default_rng(0), 40, 5, 12, 3, mean=2.0).cuda()
    state = learn(samples, 16, 3, solver=solver, svd_driver=driver)
    assert_matches_exact(state, samples, 3, "incremental", 1e-6)


def fitted_basis(rng, rank=3, dtype=torch.float64):
    samples = torch.from_numpy(rng.normal(size=(30, 4, 7)) * np.linspace(3, 0.3, 7)).to(dtype)
    return linalg.finalize(learn(samples, 8, rank), n_components=rank), samples


def distances(basis, samples, distance):
    return linalg.patch_distances(linalg.distance_operator(basis, distance=distance), samples)


@pytest.mark.parametrize("n_first", [1, 9, 30])
def test_scatter_matrices_of_unequal_parts_merge_to_that_of_all_samples(n_first, device):
    samples = torch.randn(40, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device) + 5
    parts = (
        linalg.update_scatter(linalg.empty_scatter(3, 6, dtype=samples.dtype, device=device), part)
        for part in (samples[:n_first], samples[n_first:] - 2)
    )
    merged = linalg.merge_scatter(*parts)
    together = torch.cat([samples[:n_first], samples[n_first:] - 2])
    torch.testing.assert_close(merged.mean, together.mean(0))
    torch.testing.assert_close(merged.covariance()[1], torch.cov(together[:, 1].T))


@given(
    seed=st.integers(0, 2**16),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    n_features=st.sampled_from([1, 5, 64, 130]),
    drift=st.sampled_from([0.0, 3.0]),
)
def test_scatter_matrices_of_any_steps_are_those_of_all_samples(seed, sizes, n_features, drift):
    rng = np.random.default_rng(seed)
    steps = [100 + drift * number + rng.normal(size=(size, 2, n_features)) for number, size in enumerate(sizes)]
    state = linalg.empty_scatter(2, n_features, dtype=torch.float64)
    for number, step in enumerate(steps):
        state = linalg.update_scatter(state, torch.from_numpy(step), in_place=number > 1)
    together = np.concatenate(steps)
    centred = together - together.mean(0)
    expected = np.einsum("npi,npj->pij", centred, centred)
    np.testing.assert_allclose(state.mean, together.mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        state.matrix.tril(), np.tril(expected), rtol=0, atol=1e-9 * max(1.0, np.abs(expected).max())
    )
    assert state.count == state.weight == len(together)


def test_the_noise_of_features_is_on_average_that_of_a_direction(device):
    samples = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    state = linalg.update(linalg.empty_state(3, 8, dtype=samples.dtype, device=device), samples, n_rows=3)
    basis = linalg.finalize(state, n_components=3)
    torch.testing.assert_close(basis.feature_noise.mean(1), basis.noise_variance)


@given(seed=st.integers(0, 2**16), rank=st.integers(1, 7))
def test_residual_and_projection_add_up_to_the_deviation(seed, rank):
    basis, samples = fitted_basis(np.random.default_rng(seed), rank)
    projected = linalg.project(basis, samples)
    residual = distances(basis, samples, "residual")
    total = (samples - basis.mean).square().sum(-1)
    torch.testing.assert_close(projected.square().sum(-1) + residual.square(), total, rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 2**16))
def test_distances_do_not_change_with_the_sign_or_rotation_of_the_basis(seed):
    rng = np.random.default_rng(seed)
    basis, samples = fitted_basis(rng)
    identity = torch.eye(3, dtype=torch.float64).expand(4, 3, 3)
    rest = (basis.mean, basis.noise_variance, basis.feature_variance)
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=(4, 3, 1)))
    flipped = linalg.Basis(basis.components * signs, identity, basis.variance, *rest)
    for distance in linalg.DISTANCES:
        expected = distances(basis, samples, distance)
        torch.testing.assert_close(distances(flipped, samples, distance), expected)
    # The residual knows the subspace only, so any rotation within it leaves it alone.
    rotation = torch.from_numpy(np.linalg.qr(rng.normal(size=(4, 3, 3)))[0])
    rotated = linalg.Basis(rotation @ basis.components, identity, basis.variance, *rest)
    expected = distances(basis, samples, "residual")
    torch.testing.assert_close(distances(rotated, samples, "residual"), expected)


def test_mahalanobis_with_all_directions_is_that_of_the_sample_covariance():
    basis, samples = fitted_basis(np.random.default_rng(0), rank=7)
    centred = (samples - samples.mean(0)).transpose(0, 1)
    covariance = centred.mT @ centred / 29
    expected = (centred * torch.linalg.solve(covariance, centred.mT).mT).sum(-1).sqrt().mT
    torch.testing.assert_close(distances(basis, samples, "mahalanobis"), expected)


def test_ppca_distance_and_likelihood_are_those_of_the_model_covariance():
    basis, samples = fitted_basis(np.random.default_rng(0))
    noise = basis.noise_variance[:, None, None]
    covariance = basis.components.mT * (basis.variance[:, None] - noise) @ basis.components + noise * torch.eye(7)
    for patch in range(4):
        normal = torch.distributions.MultivariateNormal(basis.mean[patch], covariance[patch])
        expected = normal.log_prob(samples[:, patch])
        torch.testing.assert_close(linalg.log_likelihood(basis, samples)[:, patch], expected)
    deviation = (samples - basis.mean).transpose(0, 1)
    squared = (deviation * torch.linalg.solve(covariance, deviation.mT).mT).sum(-1).mT
    torch.testing.assert_close(distances(basis, samples, "ppca"), squared.sqrt())


def test_reconstruct_inverts_project_with_all_directions():
    basis, samples = fitted_basis(np.random.default_rng(0), rank=7)
    for whiten in (False, True):
        coordinates = linalg.project(basis, samples, whiten=whiten)
        torch.testing.assert_close(linalg.reconstruct(basis, coordinates, whiten=whiten), samples)


def test_a_patch_that_never_varied_gives_finite_distances():
    samples = torch.ones(10, 2, 4, dtype=torch.float64)
    samples[:, 1] = torch.randn(10, 4, dtype=torch.float64)
    basis = linalg.finalize(learn(samples, 5, 2), n_components=2)
    for distance in linalg.DISTANCES:
        assert torch.isfinite(distances(basis, samples + 1, distance)).all()
    for distance in ("ppca", "factor_analysis"):
        assert (distances(basis, samples, distance)[:, 0] == 0).all()


def test_sums_of_squares_of_merged_parts_are_those_of_all_samples_where_rows_are_truncated(global_random_seed):
    samples = torch.from_numpy(np.random.default_rng(global_random_seed).normal(size=(30, 3, 8)))
    samples[12:] += 5
    state = linalg.merge(learn(samples[:12], 6, 2), learn(samples[12:], 6, 2), n_rows=2)
    expected = (samples - samples.mean(0)).square().sum(0)
    torch.testing.assert_close(state.sum_of_squares, expected)


def test_a_share_that_is_reached_exactly_takes_one_more_component_as_in_scikit_learn():
    variance = torch.tensor([[4.0, 2, 1, 1], [8, 0, 0, 0]])
    rows = torch.eye(4).expand(2, 4, 4)
    basis = linalg.Basis(rows, None, variance, torch.zeros(2, 4), torch.zeros(2), variance)
    smaller, _ = linalg.keep_share(basis, 0.5)
    assert smaller.n_kept.tolist() == [2, 1]


def test_no_more_directions_have_variance_than_samples_span_whatever_rounding_leaves():
    state = linalg.ScatterState(torch.diag(torch.tensor([4.0, 2, 1]))[None], torch.zeros(1, 3), count=2, weight=2)
    assert linalg.finalize_scatter(state).variance.tolist() == [[4, 0, 0]]


def test_noise_below_the_range_of_the_dtype_gives_a_finite_precision():
    zeros = torch.zeros(2, 3)
    basis = linalg.Basis(zeros[:, None], None, torch.ones(2, 1), zeros, torch.tensor([1e-39, 0]), zeros)
    assert torch.isfinite(linalg.distance_operator(basis, distance="ppca").precision).all()
