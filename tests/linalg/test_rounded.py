import numpy as np
import pytest
import torch

from ipca_sklearn import linalg
from ipca_sklearn.linalg._rounded import rounded


def scatter(n_features: int, dtype: torch.dtype, seed: int, n_samples: int = 300) -> linalg.ScatterState:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(n_features, n_features, generator=generator, dtype=dtype)
    samples = torch.randn(n_samples, 3, n_features, generator=generator, dtype=dtype) @ mixing + 100
    return linalg.update_scatter(linalg.empty_scatter(3, n_features, dtype=dtype), samples)


@pytest.mark.parametrize("n_features", [1, 2, 7, 40])
def test_what_is_unpacked_is_what_is_decomposed_and_rounding_twice_changes_nothing(
    n_features: int, global_random_seed: int
) -> None:
    matrix = scatter(n_features, torch.float32, global_random_seed).matrix
    unpacked = linalg.unpack(n_features, linalg.pack(matrix))
    assert torch.equal(unpacked.tril(), rounded(matrix).tril())
    assert torch.equal(rounded(unpacked).tril(), unpacked.tril())


def test_correlations_err_by_a_millionth_and_variances_not_at_all(global_random_seed: int) -> None:
    matrix = scatter(30, torch.float32, global_random_seed).matrix
    unpacked = linalg.unpack(30, linalg.pack(matrix))
    deviations = matrix.diagonal(dim1=1, dim2=2).sqrt()
    assert torch.equal(unpacked.diagonal(dim1=1, dim2=2), matrix.diagonal(dim1=1, dim2=2))
    error = (unpacked - matrix).tril() / (deviations[:, :, None] * deviations[:, None])
    assert error.abs().max() < 1.1e-6


def test_float64_is_packed_bit_by_bit(global_random_seed: int) -> None:
    matrix = scatter(9, torch.float64, global_random_seed).matrix
    assert torch.equal(linalg.unpack(9, linalg.pack(matrix)).tril(), matrix.tril())


def test_a_packed_matrix_takes_two_and_a_half_bytes_for_each_pair_of_features() -> None:
    arrays = linalg.pack(scatter(100, torch.float32, 0).matrix)
    assert sum(array.nbytes for array in arrays.values()) <= 3 * (100 * 99 / 2 * 2.5 + 100 * 4) + 1


def test_features_that_never_varied_or_are_copies_of_each_other_stay_so() -> None:
    samples = torch.randn(50, 1, 4, generator=torch.Generator().manual_seed(0))
    samples[..., 1] = 5
    samples[..., 3] = -2 * samples[..., 0]
    matrix = linalg.update_scatter(linalg.empty_scatter(1, 4), samples).matrix
    unpacked = linalg.unpack(4, linalg.pack(matrix))
    assert not unpacked[0, 1].any() and not unpacked[0, :, 1].any()
    np.testing.assert_allclose(unpacked[0, 3, 0], -2 * unpacked[0, 0, 0], rtol=1e-5)
    basis = linalg.finalize_scatter(linalg.ScatterState(unpacked, torch.zeros(1, 4), 50, 50))
    assert (basis.variance[0] > 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("n_samples", [3, 300])
def test_a_share_of_the_variance_keeps_as_many_components_as_scikit_learn(
    share: float, n_samples: int, global_random_seed: int
) -> None:
    from sklearn.decomposition import PCA

    generator = torch.Generator().manual_seed(global_random_seed)
    samples = torch.randn(n_samples, 4, 12, generator=generator, dtype=torch.float64)
    samples *= torch.linspace(5, 0.1, 12)
    state = linalg.update_scatter(linalg.empty_scatter(4, 12, dtype=torch.float64), samples)
    basis, explained = linalg.keep_share(linalg.finalize_scatter(state), share)
    oracles = [PCA(share, svd_solver="full").fit(samples[:, patch].numpy()) for patch in range(4)]
    assert basis.n_kept is not None
    assert basis.n_kept.tolist() == [pca.n_components_ for pca in oracles]
    assert basis.variance.shape[1] == max(pca.n_components_ for pca in oracles)
    torch.testing.assert_close(explained, torch.ones(4, dtype=torch.float64))
    for patch, pca in enumerate(oracles):
        kept = pca.n_components_
        np.testing.assert_allclose(basis.variance[patch, :kept], pca.explained_variance_)
        assert not basis.rows[patch, kept:].any()
        total = state.covariance()[patch].trace()
        expected = (total - pca.explained_variance_.sum()) / (12 - kept)
        np.testing.assert_allclose(basis.noise_variance[patch], expected, atol=1e-12)


def test_a_scatter_in_place_is_the_one_that_is_not(global_random_seed: int) -> None:
    generator = torch.Generator().manual_seed(global_random_seed)
    samples = torch.randn(60, 5, 150, generator=generator)  # more than one block of the triangle
    first = linalg.update_scatter(linalg.empty_scatter(5, 150), samples[:20])
    before = first.matrix.tril()  # what is above the diagonal was never written: NaN, perhaps
    apart = linalg.update_scatter(first, samples[20:], forgetting_factor=0.99)
    assert torch.equal(first.matrix.tril(), before)
    together = linalg.update_scatter(first, samples[20:], forgetting_factor=0.99, in_place=True)
    assert together.matrix.data_ptr() == first.matrix.data_ptr()
    assert torch.equal(together.matrix.tril(), apart.matrix.tril())
