"""BatchedIncrementalPCA as an estimator: what goes in comes out, nothing is lost, bad input is named."""

from __future__ import annotations

import copy
import pickle

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.decomposition import PCA, IncrementalPCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ipca_sklearn import BatchedIncrementalPCA
from ipca_sklearn.decomposition import FullCovariance
from ipca_sklearn.decomposition._batches import LazySource, StepReader

ATTRIBUTES = [
    "components_",
    "explained_variance_",
    "explained_variance_ratio_",
    "singular_values_",
    "mean_",
    "var_",
    "n_components_",
    "n_samples_seen_",
    "n_features_in_",
]


def normal(shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * np.linspace(3, 1, shape[-1]) + 1


def snapshot(estimator):
    return {name: copy.deepcopy(getattr(estimator, name)) for name in [*ATTRIBUTES, "noise_variance_", "patch_shape_"]}


def assert_same_model(estimator, before):
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(estimator, name), value, err_msg=name)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
@pytest.mark.parametrize("n_samples", [64, 70])
def test_all_components_equal_those_of_scikit_learn(attribute, n_samples):
    X = normal((n_samples, 6))
    theirs = IncrementalPCA(6, batch_size=16).fit(X)
    ours = BatchedIncrementalPCA(6, step_size=16).fit(X)
    expected, found = getattr(theirs, attribute), getattr(ours, attribute)
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("whiten", [False, True])
def test_transforms_and_covariance_equal_those_of_scikit_learn(whiten):
    X = normal((50, 6))
    theirs = IncrementalPCA(6, batch_size=10, whiten=whiten).fit(X)
    ours = BatchedIncrementalPCA(6, step_size=10, whiten=whiten).fit(X)
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X))
    np.testing.assert_allclose(ours.inverse_transform(ours.transform(X)), X)
    if not whiten:  # scikit-learn 1.9 scales the components a second time where it whitens
        np.testing.assert_allclose(ours.get_covariance(), theirs.get_covariance())
        np.testing.assert_allclose(ours.get_precision(), theirs.get_precision())
    np.testing.assert_array_equal(ours.get_feature_names_out(), [f"batchedincrementalpca{i}" for i in range(6)])


def test_truncated_components_follow_scikit_learn_on_the_same_steps():
    X = normal((160, 12))
    theirs, ours = IncrementalPCA(4, batch_size=20).fit(X), BatchedIncrementalPCA(4, step_size=20).fit(X)
    np.testing.assert_allclose(ours.components_, theirs.components_, atol=1e-9)
    np.testing.assert_allclose(ours.explained_variance_, theirs.explained_variance_)


@given(
    n_samples=st.integers(1, 30),
    n_features=st.integers(1, 8),
    n_components=st.integers(1, 8),
    step_size=st.one_of(st.none(), st.integers(1, 31)),
    n_patches=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_fit_is_a_loop_of_partial_fit(n_samples, n_features, n_components, step_size, n_patches, seed):
    X = np.random.default_rng(seed).normal(size=(n_samples, n_patches, n_features))
    whole = BatchedIncrementalPCA(min(n_components, n_features), step_size=step_size).fit(X)
    parts = clone(whole)
    for start in range(0, n_samples, step_size or n_samples):
        parts.partial_fit(X[start : start + (step_size or n_samples)])
    assert_same_model(parts, snapshot(whole))


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 2**16))
def test_any_split_into_calls_gives_exact_pca_where_all_directions_are_kept(sizes, seed):
    X = np.random.default_rng(seed).normal(size=(sum(sizes), 5))
    ours = BatchedIncrementalPCA(5, step_size=4)
    for part in np.split(X, np.cumsum(sizes)[:-1]):
        ours.partial_fit(part)
    assert ours.n_samples_seen_ == len(X)
    np.testing.assert_allclose(ours.mean_, X.mean(0), atol=1e-12)
    np.testing.assert_allclose(ours.var_, X.var(0), atol=1e-12)
    if len(X) > 1:
        theirs = PCA(min(X.shape)).fit(X)
        kept = len(theirs.explained_variance_)
        np.testing.assert_allclose(ours.explained_variance_[:kept], theirs.explained_variance_, atol=1e-12)
        np.testing.assert_allclose(ours.singular_values_[:kept], theirs.singular_values_, atol=1e-6)


def test_patches_are_independent_pcas():
    X = normal((40, 3, 6))
    together = BatchedIncrementalPCA(2, step_size=7).fit(X)
    for patch in range(3):
        alone = BatchedIncrementalPCA(2, step_size=7).fit(X[:, patch])
        np.testing.assert_allclose(together.components_[patch], alone.components_, atol=1e-12)
        np.testing.assert_allclose(together.transform(X)[:, patch], alone.transform(X[:, patch]), atol=1e-12)
        np.testing.assert_allclose(together.noise_variance_[patch], alone.noise_variance_)


def test_a_grid_of_patches_is_a_row_of_patches_with_another_shape():
    X = normal((20, 2, 3, 5))
    grid, row = BatchedIncrementalPCA(2).fit(X), BatchedIncrementalPCA(2).fit(X.reshape(20, 6, 5))
    assert grid.components_.shape == (6, 2, 5)
    assert grid.transform(X).shape == (20, 2, 3, 2)
    assert grid.inverse_transform(grid.transform(X)).shape == X.shape
    np.testing.assert_array_equal(grid.components_, row.components_)


def test_missing_directions_are_zero_until_they_come():
    X = normal((10, 2, 6))
    pca = BatchedIncrementalPCA(4).partial_fit(X[:1])
    assert pca.components_.shape == (2, 4, 6)
    assert not pca.components_.any() and not pca.explained_variance_.any()
    np.testing.assert_array_equal(pca.transform(X), 0)
    pca.partial_fit(X[1:3])
    assert [int(np.linalg.matrix_rank(c)) for c in pca.components_] == [2, 2]
    pca.partial_fit(X[3:])
    assert [int(np.linalg.matrix_rank(c)) for c in pca.components_] == [4, 4]


def test_no_number_of_components_means_as_many_as_the_first_step_has_samples():
    assert BatchedIncrementalPCA(None, step_size=3).fit(normal((20, 6))).n_components_ == 3
    assert BatchedIncrementalPCA(None).fit(normal((20, 6))).n_components_ == 6


def test_step_size_none_is_a_regular_pca():
    X = normal((50, 2, 9))
    pca = BatchedIncrementalPCA(3, step_size=None).fit(X)
    for patch in range(2):
        theirs = PCA(3).fit(X[:, patch])
        np.testing.assert_allclose(pca.explained_variance_[patch], theirs.explained_variance_)
        np.testing.assert_allclose(np.abs(pca.components_[patch]), np.abs(theirs.components_), atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_in_torch_out_on_the_same_device_and_dtype(device, dtype):
    X = torch.randn(20, 3, 5, generator=torch.Generator().manual_seed(0)).to(device, dtype).requires_grad_()
    pca = BatchedIncrementalPCA(2).fit(X)
    Z = pca.transform(X)
    for tensor in (Z, pca.inverse_transform(Z), pca.components_, pca.mean_, pca.noise_variance_, pca.var_):
        assert isinstance(tensor, torch.Tensor)
        assert (tensor.device, tensor.dtype, tensor.requires_grad) == (X.device, dtype, False)
    reference = BatchedIncrementalPCA(2).fit(X.detach().cpu().numpy())
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    np.testing.assert_allclose(pca.explained_variance_.cpu(), reference.explained_variance_, rtol=tolerance)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("float32", "float32"), ("float64", "float64"), ("int32", "float64"), ("uint8", "float64"), ("uint16", "float64")],
)
def test_numpy_results_follow_the_dtype_of_x(given, expected):
    X = (normal((20, 3, 4)) * 10).clip(0).astype(given)
    pca = BatchedIncrementalPCA(2).fit(X)
    assert isinstance(pca.components_, np.ndarray)
    assert pca.components_.dtype == pca.transform(X).dtype == expected


def test_half_precision_is_computed_in_float32():
    X = normal((20, 3, 4)).astype(np.float16)
    assert BatchedIncrementalPCA(2).fit(X).components_.dtype == np.float32
    assert BatchedIncrementalPCA(2).fit(torch.from_numpy(X).bfloat16()).components_.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float64", np.float64, np.dtype("float64"), torch.float64])
def test_dtype_parameter_sets_what_is_computed_in(dtype):
    X = normal((20, 4)).astype(np.float32)
    pca = BatchedIncrementalPCA(2, dtype=dtype).fit(X)
    assert pca.components_.dtype == np.float64
    assert pca.transform(X).dtype == np.float32


def test_device_parameter_moves_numpy_data_and_brings_results_back(device):
    X = normal((20, 3, 4))
    pca = BatchedIncrementalPCA(2, device=str(device)).fit(X)
    assert isinstance(pca.transform(X), np.ndarray)
    np.testing.assert_allclose(pca.transform(X), BatchedIncrementalPCA(2).fit(X).transform(X), atol=1e-9)
    assert BatchedIncrementalPCA(2, device="auto").fit(X).transform(X).shape == (20, 3, 2)


@pytest.mark.parametrize("make", [lambda X: X[::-1], lambda X: np.asfortranarray(X), lambda X: X.astype(">f8")])
def test_strides_and_byte_order_do_not_matter(make):
    X = normal((20, 3, 4))
    odd = make(X)
    expected = BatchedIncrementalPCA(2).fit(np.ascontiguousarray(odd, dtype=np.float64)).components_
    np.testing.assert_allclose(BatchedIncrementalPCA(2).fit(odd).components_, expected, atol=1e-12)


def test_input_is_not_changed_and_may_be_read_only(recwarn):
    X = normal((20, 3, 4))
    before = X.copy()
    X.setflags(write=False)
    pca = BatchedIncrementalPCA(2).fit(X)
    pca.inverse_transform(pca.transform(X))
    np.testing.assert_array_equal(X, before)
    tensor = torch.from_numpy(before.copy())
    BatchedIncrementalPCA(2).fit(tensor).transform(tensor)
    np.testing.assert_array_equal(tensor, before)
    assert not recwarn.list


def test_a_memory_map_is_read_in_steps(tmp_path):
    X = normal((40, 3, 5))
    np.save(tmp_path / "x.npy", X)
    lazy = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(
        BatchedIncrementalPCA(2).fit(lazy).components_, BatchedIncrementalPCA(2).fit(X).components_
    )


class CountingSource:
    """An array-like that says how much of it was held at once."""

    def __init__(self, X):
        self.X, self.largest = X, 0
        self.shape, self.dtype, self.ndim = X.shape, X.dtype, X.ndim

    def __len__(self):
        return len(self.X)

    def __getitem__(self, key):
        part = self.X[key]
        self.largest = max(self.largest, len(part))
        return part


def test_a_lazy_source_is_never_read_whole():
    source = CountingSource(normal((100, 3, 5)))
    BatchedIncrementalPCA(2, step_size=8).fit(source)
    assert source.largest == 8


def test_merge_equals_seeing_all_samples():
    X = normal((60, 2, 5))
    whole = BatchedIncrementalPCA(5).fit(X)
    parts = [BatchedIncrementalPCA(5).fit(part) for part in np.split(X, [10, 11, 40])]
    merged = parts[2].merge(parts[0]).merge(parts[3]).merge(parts[1])
    assert merged.n_samples_seen_ == 60
    for name in ("explained_variance_", "mean_", "var_"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name))
    np.testing.assert_allclose(merged.get_covariance(), whole.get_covariance())


def test_merge_refuses_what_it_cannot_combine():
    pca = BatchedIncrementalPCA(2).fit(normal((20, 3, 5)))
    before = snapshot(pca)
    with pytest.raises(NotFittedError):
        pca.merge(BatchedIncrementalPCA(2))
    with pytest.raises(TypeError, match="got IncrementalPCA"):
        pca.merge(IncrementalPCA(2))
    with pytest.raises(ValueError, match=r"different n_components_ 2 and 3"):
        pca.merge(BatchedIncrementalPCA(3).fit(normal((20, 3, 5))))
    with pytest.raises(ValueError, match=r"different patch_shape_ \(3,\) and \(4,\); n_features_in_ 5 and 6"):
        pca.merge(BatchedIncrementalPCA(2).fit(normal((20, 4, 6))))
    with pytest.raises(ValueError, match="different centering"):
        pca.merge(BatchedIncrementalPCA(2, centering="deferred").fit(normal((20, 3, 5))))
    assert_same_model(pca, before)


def poisoned(value):
    X = normal((40, 3, 5))
    X[33, 1, 2] = value
    return X


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (poisoned(np.nan), r"contains NaN or infinity \(samples 32 to 39\)"),
        (poisoned(np.inf), r"contains NaN or infinity"),
        (torch.from_numpy(poisoned(np.nan)), r"contains NaN or infinity"),
        (normal((4, 3, 6)), r"X has 6 features, but BatchedIncrementalPCA is expecting 5 features"),
        (normal((4, 2, 5)), r"patches of shape \(2,\).*was fitted on patches of shape \(3,\)"),
        (normal((4, 5)), r"patches of shape \(\).*was fitted on patches of shape \(3,\)"),
        (normal((4, 3, 5, 2, 1)), r"has shape \(4, 3, 5, 2, 1\); expected"),
        (np.empty((0, 3, 5)), r"has shape \(0, 3, 5\)"),
        (normal((4, 3, 5)).astype(complex), "Complex data not supported"),
        (torch.zeros(4, 3, 5, dtype=torch.complex64), "Complex data not supported"),
        ([np.zeros((3, 5)), np.zeros((2, 5))], r"different shapes: \[\(2, 5\), \(3, 5\)\]"),
        (np.full((4, 3, 5), "text"), "could not convert|dtype|numeric"),
    ],
)
def test_bad_samples_are_named_and_leave_the_model_as_it_was(bad, message):
    pca = BatchedIncrementalPCA(2).fit(normal((20, 3, 5)))
    before = snapshot(pca)
    with pytest.raises(ValueError, match=message):
        pca.partial_fit(bad)
    assert_same_model(pca, before)
    with pytest.raises(ValueError):
        pca.transform(bad)


def test_a_failed_refit_leaves_the_model_as_it_was():
    pca = BatchedIncrementalPCA(4).fit(normal((20, 5)))
    before = snapshot(pca)
    with pytest.raises(ValueError, match=r"n_components=4 is larger than n_features=3"):
        pca.fit(normal((20, 3)))
    with pytest.raises(ValueError, match="NaN"):
        pca.fit(np.full((20, 4), np.nan))
    assert_same_model(pca, before)
    assert pca.transform(normal((3, 5))).shape == (3, 4)


@pytest.mark.parametrize(
    "params",
    [
        {"n_components": 0},
        {"n_components": 2.5},
        {"step_size": 0},
        {"centering": "incremental "},
        {"n_oversamples": -1},
        {"solver": "gram_eig"},
        {"svd_driver": "gesdd"},
        {"whiten": "yes"},
        {"dtype": "float16"},
        {"dtype": int},
        {"device": "gpu"},
    ],
)
def test_bad_parameters_are_named_with_what_they_may_be(params):
    (name,) = params
    with pytest.raises(ValueError, match=name):
        BatchedIncrementalPCA(**{"n_components": 2} | params).fit(normal((20, 5)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="device='cuda' asks for a GPU and torch sees none"):
        BatchedIncrementalPCA(2, device="cuda").fit(normal((20, 5)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_model_brought_to_a_machine_without_its_gpu_works_on_the_cpu_and_says_so():
    X = normal((20, 5))
    pca = BatchedIncrementalPCA(2).fit(X)
    expected = pca.transform(X)
    with pytest.warns(UserWarning, match="device='cuda' is not available here: using the CPU"):
        np.testing.assert_array_equal(pca.set_params(device="cuda").transform(X), expected)


@pytest.mark.parametrize(("name", "value"), [("n_components", 3), ("centering", "deferred")])
def test_parameters_that_shape_the_model_cannot_change_after_learning_began(name, value):
    pca = BatchedIncrementalPCA(2).fit(normal((20, 5)))
    before = snapshot(pca)
    with pytest.raises(ValueError, match=f"{name} was changed"):
        pca.set_params(**{name: value}).partial_fit(normal((4, 5)))
    assert_same_model(pca, before)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_not_fitted_raises(name):
    pca = BatchedIncrementalPCA()
    assert not hasattr(pca, name)
    with pytest.raises(NotFittedError):
        pca.transform(normal((4, 5)))


@pytest.mark.parametrize("dump", [pickle.dumps, lambda x: pickle.dumps(x, protocol=2)])
def test_a_pickle_holds_numpy_arrays_only_and_scores_bit_identically(dump):
    X = torch.from_numpy(normal((20, 3, 5)))
    pca = BatchedIncrementalPCA(2).fit(X)
    stored = dump(pca)
    assert b"torch" not in stored
    loaded = pickle.loads(stored)
    assert isinstance(loaded.components_, np.ndarray)
    assert torch.equal(loaded.transform(X), pca.transform(X))
    np.testing.assert_array_equal(loaded.transform(X.numpy()), pca.transform(X.numpy()))
    loaded.partial_fit(X)
    assert loaded.n_samples_seen_ == 40


def test_joblib_files_can_be_memory_mapped(tmp_path, recwarn):
    X = normal((20, 3, 5))
    pca = BatchedIncrementalPCA(2).fit(X)
    joblib.dump(pca, tmp_path / "model.joblib")
    loaded = joblib.load(tmp_path / "model.joblib", mmap_mode="r")
    np.testing.assert_array_equal(loaded.transform(X), pca.transform(X))
    np.testing.assert_array_equal(loaded.partial_fit(X).mean_, pca.partial_fit(X).mean_)
    assert not recwarn.list


def test_data_frames_keep_their_names_and_set_output_works():
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame(normal((20, 3)), columns=["a", "b", "c"])
    pca = BatchedIncrementalPCA(2).set_output(transform="pandas").fit(X)
    assert list(pca.feature_names_in_) == ["a", "b", "c"]
    assert list(pca.transform(X).columns) == ["batchedincrementalpca0", "batchedincrementalpca1"]
    pca.fit(X.to_numpy())
    assert not hasattr(pca, "feature_names_in_")


def test_it_is_a_step_of_a_pipeline():
    X = normal((30, 6))
    pipe = make_pipeline(StandardScaler(), BatchedIncrementalPCA(2))
    expected = BatchedIncrementalPCA(2).fit_transform(StandardScaler().fit_transform(X))
    np.testing.assert_allclose(pipe.fit_transform(X), expected)
    assert clone(pipe).set_params(batchedincrementalpca__n_components=3).fit_transform(X).shape == (30, 3)


def test_memory_that_is_used_again_leaves_every_model_outside_the_call_alone():
    X = normal((60, 3, 8))
    pca = BatchedIncrementalPCA(3, step_size=4).fit(X[:20])
    before = copy.copy(pca)
    rows = before.fitted_.state.rows.clone()
    pca.partial_fit(X[20:])
    assert torch.equal(before.fitted_.state.rows, rows)
    pca.partial_fit(X[:4])
    np.testing.assert_array_equal(
        pca.components_, BatchedIncrementalPCA(3, step_size=4).fit(np.concatenate([X, X[:4]])).components_
    )


def test_values_whose_sum_overflows_are_finite_samples():
    X = np.full((6, 2, 3), 3e38, dtype=np.float32)
    assert np.isfinite(BatchedIncrementalPCA(1, centering="incremental").fit(X).mean_).all()


@pytest.mark.parametrize("solver", ["auto", "svd"])
def test_nan_that_is_looked_for_at_the_end_leaves_the_model_as_it_was(monkeypatch, solver):
    monkeypatch.setattr(StepReader, "_checks_at_once", staticmethod(lambda step: False))  # as on a GPU
    pca = BatchedIncrementalPCA(2, step_size=4, solver=solver).fit(normal((20, 3, 8)))
    before = snapshot(pca)
    bad = normal((20, 3, 8))
    bad[9, 1, 2] = np.nan
    with pytest.raises(ValueError, match=r"NaN or infinity \(samples 8 to 11\)"):
        pca.partial_fit(bad)
    assert_same_model(pca, before)
    with pytest.raises(ValueError, match=r"samples 8 to 11"):
        pca.transform(bad)


def test_siblings_do_not_merge():
    X = normal((20, 4))
    pca, full = BatchedIncrementalPCA(4).fit(X), FullCovariance().fit(X)
    with pytest.raises(TypeError, match="merge takes another BatchedIncrementalPCA, got FullCovariance"):
        pca.merge(full)
    with pytest.raises(TypeError, match="merge takes another FullCovariance, got BatchedIncrementalPCA"):
        full.merge(pca)


def test_a_merge_leaves_a_copy_of_the_estimator_as_it_was():
    X = normal((60, 5))
    pca = BatchedIncrementalPCA(3).fit(X[:30])
    before = snapshot(pca)
    merged = copy.copy(pca).merge(BatchedIncrementalPCA(3).fit(X[30:]))
    assert merged.n_samples_seen_ == 60
    assert_same_model(pca, before)


def test_precision_by_the_inversion_lemma_is_the_inverse():
    X = normal((100, 3, 8))
    pca = BatchedIncrementalPCA(3).fit(X)
    identity = np.broadcast_to(np.eye(8), (3, 8, 8))
    np.testing.assert_allclose(pca.get_precision() @ pca.get_covariance(), identity, atol=1e-10)
    theirs = IncrementalPCA(8).fit(X[:, 0])
    np.testing.assert_allclose(BatchedIncrementalPCA(8).fit(X[:, 0]).get_precision(), theirs.get_precision(), atol=1e-8)


class Source:
    """A lazily read source of 20 samples, of which the third batch has an unreadable one."""

    shape, dtype, device, may_skip = (20, 2, 3), np.dtype("float64"), torch.device("cpu"), True

    def __init__(self):
        self.data = torch.from_numpy(normal((20, 2, 3)))

    def __len__(self):
        return 20

    def __getitem__(self, key):
        return self.data[key]

    def read(self, size, *, reuse=False):
        for start in range(0, 20, size):
            batch = self.data[start : start + size].clone()
            skipped = {17 - start: "17 is broken"} if start <= 17 < start + size else {}
            batch[list(skipped)] = torch.nan
            yield batch, skipped


def test_any_source_that_follows_the_protocol_is_read_lazily():
    assert isinstance(Source(), LazySource)
    pca = BatchedIncrementalPCA(2, step_size=8).fit(Source())
    assert pca.n_samples_seen_ == 19
    kept = np.delete(Source().data.numpy(), 17, axis=0)
    np.testing.assert_allclose(pca.mean_, kept.mean(0), atol=1e-12)
    assert np.flatnonzero(np.isnan(pca.transform(Source())).any((1, 2))).tolist() == [17]


def test_a_subclass_with_a_required_argument_can_be_fitted():
    class Named(BatchedIncrementalPCA):
        def __init__(self, name, n_components=2):
            super().__init__(n_components)
            self.name = name

    assert Named("line 3").fit(normal((20, 4))).n_samples_seen_ == 20


@pytest.mark.parametrize("solver", ["auto", "covariance"])
@pytest.mark.parametrize("bad", [{"forgetting_factor": 2.0}, {"n_components": -1}, {"step_size": 0}])
def test_partial_fit_refuses_parameters_that_were_set_after_fit(solver, bad):
    X = normal((20, 5))
    pca = BatchedIncrementalPCA(3, solver=solver).fit(X)
    before = pca.components_.copy()
    with pytest.raises(ValueError, match=next(iter(bad))):
        pca.set_params(**bad).partial_fit(X)
    assert pca.n_samples_seen_ == 20
    np.testing.assert_array_equal(pca.components_, before)
