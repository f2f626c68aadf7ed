"""Any input gives a finite result or a documented error, and a failed call loses nothing that was learnt."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sklearn.base import clone

from ipca_sklearn import BatchedIncrementalPCA, ImageReadError, PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.detection._map_ops import ScoreSettings
from ipca_sklearn.model_selection import OneClassKFold

# The errors that the docstrings name, for arrays, parameters and images that cannot be used.
DOCUMENTED = (TypeError, ValueError)

shapes = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
dtypes = st.one_of(
    hnp.floating_dtypes(endianness="?"),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(),
    hnp.boolean_dtypes(),
    hnp.complex_number_dtypes(),
    hnp.unicode_string_dtypes(max_len=3),
    hnp.datetime64_dtypes(),
    st.just(np.dtype(object)),
)


@st.composite
def anything_like_an_array(draw: st.DrawFn) -> Any:
    dtype = draw(dtypes)
    elements = st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=2)) if dtype.kind == "O" else None
    array = draw(hnp.arrays(dtype, draw(shapes), elements=elements))
    form = draw(st.sampled_from(["array", "strided", "list", "tensor"]))
    if form == "strided" and array.ndim:
        return array[::-1]
    if form == "list":
        return array.tolist()
    if form == "tensor" and array.dtype.kind in "fiubc" and array.dtype.isnative and array.dtype != np.longdouble:
        try:
            return torch.from_numpy(array.copy())
        except TypeError:  # torch lacks the dtype
            return array
    return array


@st.composite
def samples(draw: st.DrawFn) -> Any:
    """Return numbers of a shape and dtype that can be learnt, of any size, with an occasional NaN."""
    shape = (draw(st.integers(1, 6)), *draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=3)))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.uint64, np.bool_]))
    X = draw(hnp.arrays(dtype, shape))
    return torch.from_numpy(X) if draw(st.booleans()) and dtype is not np.uint64 else X


def fitted_or_documented(estimator: Any, X: Any) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            estimator.fit(X)
        except DOCUMENTED as error:
            assert str(error).strip()
            assert not hasattr(estimator, "n_samples_seen_") or not hasattr(estimator, "patch_shape_")
            return False
    return True


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(anything_like_an_array(), samples()), st.sampled_from(["incremental", "deferred"]), st.integers(1, 3))
def test_any_array_is_learnt_or_refused(X: Any, centering: str, k: int) -> None:
    pca = BatchedIncrementalPCA(k, centering=centering, step_size=2)
    if fitted_or_documented(pca, X):
        assert pca.n_samples_seen_ == len(X)
        for name in ("mean_", "components_", "explained_variance_"):
            assert np.isfinite(np.asarray(getattr(pca, name))).all(), name
        assert np.asarray(pca.transform(X)).shape == (*np.shape(X)[:-1], k)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(anything_like_an_array(), samples()))
def test_any_array_is_scored_or_refused(X: Any) -> None:
    detector = PatchGaussianDetector(1, step_size=2)
    if fitted_or_documented(detector, X):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = np.asarray(detector.score_samples(X))
            assert scores.shape == (len(X),)
            assert np.isfinite(scores).all()
            assert set(np.asarray(detector.predict(X)).tolist()) <= {1, -1}


@given(
    st.one_of(anything_like_an_array(), hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.just(2), st.just(3))))
)
def test_any_array_to_a_fitted_detector_is_scored_or_refused(X: Any) -> None:
    detector = FITTED
    before = detector.offset_
    for method in (detector.score_samples, detector.transform, detector.predict, detector.score):
        try:
            result = method(X)
        except DOCUMENTED as error:
            assert str(error).strip()
        else:
            assert tuple(np.shape(X)[1:]) == (2, 3)
            assert not np.isnan(np.asarray(result)).any()  # an infinite distance is allowed
    assert detector.offset_ == before


FITTED = PatchGaussianDetector(1).fit(np.random.default_rng(0).normal(size=(20, 2, 3)))

odd_values = st.sampled_from(
    [None, True, False, -1, 0, 1, 2, 3, 10**30, 0.5, 1.0, -0.5, 2.5, np.nan, np.inf, "", "auto", "max", "cpu", "cuda",
     "cuda:99", "float32", "float64", "float16", [], [1], (), {}, object(), np.int64(2), np.float32(0.25), b"x",
     torch.float32, np.float64, len]
)  # fmt: skip


@pytest.mark.parametrize("solver", ["gram_eigh", "gram_svd", "svd"])
@pytest.mark.parametrize("centering", ["incremental", "deferred"])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e25), ("float64", 1e200)])
@pytest.mark.parametrize("n_patches", [2, 600])  # with numba installed, 600 patches use the SIMD kernel
def test_values_whose_squares_overflow_are_refused_and_the_model_stays(
    solver: str, centering: str, dtype: str, size: float, n_patches: int, device: torch.device
) -> None:
    X = torch.randn(12, n_patches, 5, dtype=getattr(torch, dtype), generator=torch.Generator().manual_seed(0))
    pca = BatchedIncrementalPCA(2, step_size=4, solver=solver, centering=centering).fit(X.to(device))
    before = pca.mean_.clone()
    with pytest.raises(ValueError, match="too large for their squares"):
        pca.partial_fit(X.to(device) * size)
    assert torch.equal(pca.mean_, before)
    assert pca.n_samples_seen_ == 12


@pytest.mark.parametrize("distance", ["factor_analysis", "residual", "mahalanobis", "ppca"])
def test_deviations_at_the_end_of_the_dtype_have_finite_distances(distance: str) -> None:
    X = np.full((3, 3, 3), 2.4e-38, dtype=np.float32)
    X[0, 0, 0] = 5.5e-19  # its square is nearly the smallest number of float32
    maps = PatchGaussianDetector(3, step_size=3, distance=distance).fit(X).transform(X)
    assert np.isfinite(maps).all()


def test_odd_parameters_are_used_or_refused_with_their_name() -> None:
    X = np.random.default_rng(0).normal(size=(12, 2, 3))

    @settings(suppress_health_check=[HealthCheck.too_slow])
    @given(st.data())
    def check(data: st.DataObject) -> None:
        model = data.draw(st.sampled_from([BatchedIncrementalPCA(2), PatchGaussianDetector(2)]))
        names = data.draw(st.lists(st.sampled_from(sorted(model.get_params())), min_size=1, max_size=3, unique=True))
        model = clone(model).set_params(**{name: data.draw(odd_values) for name in names})
        if fitted_or_documented(model, X):
            result = model.transform(X)
            assert np.isfinite(np.asarray(result)).all()

    check()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(PatchFeatureExtractor().get_params())), value=odd_values)
def test_odd_parameters_of_the_extractor_are_used_or_refused(
    name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a text as `cache` names a folder
    if name in ("backbone", "compile"):
        return  # tested elsewhere, because they take long
    extractor = PatchFeatureExtractor(
        "resnet18", layers=["layer1"], weights=None, image_size=32, crop_size=32, grid_size=2, random_state=0
    )
    extractor.set_params(**{name: value})
    if name in ("image_size", "crop_size", "batch_size", "grid_size") and value == 10**30:
        return  # needs more memory than there is
    images = np.zeros((2, 40, 40, 3), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            features = np.asarray(extractor.fit_transform(images))
        except (*DOCUMENTED, OSError, ImportError) as error:
            assert str(error).strip()
        else:
            assert features.shape == (2, *extractor.grid_size_, extractor.n_features_out_)
            assert np.isfinite(features).all()


EXTRACTOR = PatchFeatureExtractor(
    "resnet18", layers=["layer1"], weights=None, image_size=32, crop_size=32, grid_size=2, random_state=0
).fit([np.zeros((8, 8, 3), np.uint8)])


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(anything_like_an_array(), st.lists(anything_like_an_array(), max_size=3)), st.booleans())
def test_any_images_are_described_or_refused(X: Any, skip: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            features = clone_fitted(skip).transform(X)
            array = np.asarray(features)
        except (*DOCUMENTED, ImageReadError, FileNotFoundError) as error:
            assert str(error).strip()
        else:
            readable = [index for index in range(len(array)) if index not in features.skipped]
            assert skip or not features.skipped
            assert np.isfinite(array[readable]).all()
            assert np.isnan(array[sorted(features.skipped)]).all()


def clone_fitted(skip: bool) -> PatchFeatureExtractor:
    EXTRACTOR.on_error = "skip" if skip else "raise"
    return EXTRACTOR


@given(anything_like_an_array(), st.one_of(st.none(), anything_like_an_array()))
def test_any_labels_and_groups_are_split_or_refused(y: Any, groups: Any) -> None:
    try:
        folds = list(OneClassKFold(2).split(y, y, groups))
    except DOCUMENTED as error:
        assert str(error).strip()
    else:
        labels = np.asarray(y).ravel()
        assert all((labels[train] == 1).all() for train, _ in folds)


class DetectorMachine(RuleBasedStateMachine):
    """A detector and the images that it has learnt, under its methods in any order."""

    SHAPE = (3, 4)

    @initialize(
        k=st.integers(1, 4), step_size=st.integers(1, 6), centering=st.sampled_from(["incremental", "deferred"])
    )
    def begin(self, k: int, step_size: int, centering: str) -> None:
        self.detector = PatchGaussianDetector(k, step_size=step_size, centering=centering)
        self.seen = np.empty((0, *self.SHAPE))

    def images(self, n: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=(n, *self.SHAPE)) + 3

    @rule(n=st.integers(1, 9), seed=st.integers(0, 99))
    def learn(self, n: int, seed: int) -> None:
        X = self.images(n, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.detector.partial_fit(X)
        self.seen = np.concatenate([self.seen, X])

    @rule(n=st.integers(1, 9), seed=st.integers(0, 99))
    def start_again(self, n: int, seed: int) -> None:
        self.seen = self.images(n, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.detector.fit(self.seen)

    @precondition(lambda self: len(self.seen))
    @rule(
        bad=st.sampled_from(["NaN at the end", "infinity", "other width", "other patches", "text", "empty", "k"]),
        n=st.integers(1, 9),
    )
    def fail(self, bad: str, n: int) -> None:
        X: Any = self.images(n, 0)
        k = self.detector.n_components
        if bad == "NaN at the end":
            X[-1, -1, -1] = np.nan
        elif bad == "infinity":
            X[0, 0, 0] = np.inf
        elif bad == "other width":
            X = X[..., :-1]
        elif bad == "other patches":
            X = X[:, :-1]
        elif bad == "text":
            X = X.astype(str)
            X[0, 0, 0] = "x"
        elif bad == "empty":
            X = X[:0]
        else:
            self.detector.n_components = k + 1
        before = pickle.dumps(self.detector.pca_), self.detector.calibration_scores_.tolist()
        with pytest.raises(ValueError):
            self.detector.partial_fit(X)
        assert (pickle.dumps(self.detector.pca_), self.detector.calibration_scores_.tolist()) == before
        self.detector.n_components = k

    @precondition(lambda self: len(self.seen))
    @rule(n=st.integers(1, 9), seed=st.integers(0, 99))
    def merge(self, n: int, seed: int) -> None:
        X = self.images(n, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = clone(self.detector).fit(X)
            if (
                ScoreSettings.of(self.detector) != self.detector._calibrator.settings
            ):  # thresholds of the two would come from scores of two kinds
                with pytest.raises(ValueError, match="the thresholds are for scores with"):
                    self.detector.merge(other)
                return
            self.detector.merge(other)
        self.seen = np.concatenate([self.seen, X])

    @precondition(lambda self: len(self.seen))
    @rule()
    def store(self) -> None:
        scores = self.detector.score_samples(self.seen)
        self.detector = pickle.loads(pickle.dumps(self.detector))
        np.testing.assert_array_equal(self.detector.score_samples(self.seen), scores)

    @precondition(lambda self: len(self.seen))
    @rule(distance=st.sampled_from(["factor_analysis", "residual", "mahalanobis", "ppca"]))
    def choose_distance(self, distance: str) -> None:
        self.detector.set_params(distance=distance)

    @invariant()
    def knows_what_it_has_seen(self) -> None:
        if not hasattr(self, "seen") or not len(self.seen):
            return
        pca = self.detector.pca_
        assert self.detector.n_samples_seen_ == len(self.seen)
        np.testing.assert_allclose(pca.mean_, self.seen.mean(0), atol=1e-9)
        np.testing.assert_allclose(pca.var_, self.seen.var(0), atol=1e-9)
        kept = pca.explained_variance_.sum(-1)
        assert (kept <= self.seen.var(0, ddof=min(1, len(self.seen) - 1)).sum(-1) + 1e-9).all()
        maps = self.detector.transform(self.seen)
        assert np.isfinite(maps).all()
        assert (maps >= 0).all()


TestDetectorMachine = DetectorMachine.TestCase
TestDetectorMachine.settings = settings(stateful_step_count=12)
