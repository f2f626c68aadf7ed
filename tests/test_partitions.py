"""Partitions: what one fit decides or refuses is decided or refused for all of them, before one is learnt."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from ipca_sklearn import BatchedIncrementalPCA, PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.decomposition import FullCovariance
from ipca_sklearn.distributed import fit
from ipca_sklearn.exceptions import AspectRatioWarning, ImageReadError, SkippedImagesWarning
from ipca_sklearn.features._geometry import auto_size
from tests.surroundings.world import SmallNetwork

pytestmark = pytest.mark.filterwarnings("ignore::ipca_sklearn.exceptions.FewImagesWarning")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 5)) * [9, 1, 0.1, 3, 2]
FRAME = pd.DataFrame(X, columns=list("abcde"))
PATCHES = RNG.normal(size=(120, 4, 5))
WHERE: dict[str, dict[str, Any]] = {"in turn": {"n_jobs": 1}, "devices": {"devices": ["cpu", "cpu"]}}


class Counting(BatchedIncrementalPCA):
    """Counts its fits."""

    n_fits = 0

    def fit(self, X: Any, y: Any = None) -> Any:
        Counting.n_fits += 1
        return super().fit(X, y)


UNLIKE = {
    "another order": (
        FRAME[:60],
        FRAME[60:][list("abced")],
        "columns in another order than partition 0: column 3 is 'e'",
    ),
    "another name": (
        FRAME[:60],
        FRAME[60:].rename(columns={"b": "B"}),
        "other columns than partition 0: without 'b' and",
    ),
    "fewer columns": (X[:60], X[60:, :4], r"samples of shape \(4,\), and partition 0 of \(5,\)"),
    "another grid": (PATCHES[:60], PATCHES[60:, :3], r"samples of shape \(3, 5\), and partition 0 of \(4, 5\)"),
    "another dimension": (PATCHES[:60], PATCHES[60:].reshape(60, 2, 2, 5), r"samples of shape \(2, 2, 5\)"),
    "lists": (list(PATCHES[:60]), list(PATCHES[60:, :3]), r"samples of shape \(3, 5\)"),
}


@pytest.mark.parametrize("where", WHERE.values(), ids=WHERE)
@pytest.mark.parametrize(("first", "second", "message"), UNLIKE.values(), ids=UNLIKE)
def test_other_samples_are_refused_before_anything_is_learnt(
    first: Any, second: Any, message: str, where: dict[str, Any]
) -> None:
    Counting.n_fits = 0
    model = Counting(2)
    with pytest.raises(ValueError, match=f"partition 1 has .*{message}"):
        fit(model, [first, second], **where)
    assert Counting.n_fits == 0
    assert not hasattr(model, "fitted_")
    with joblib.parallel_config(backend="threading"), pytest.raises(ValueError, match=f"partition 1 has .*{message}"):
        fit(model, [lambda: first, lambda: second], n_jobs=1)
    assert Counting.n_fits == 1  # what a callable returns is known when it is called


@pytest.mark.parametrize("make", [lambda: BatchedIncrementalPCA(5), FullCovariance, lambda: PatchGaussianDetector(5)])
def test_the_same_columns_are_learnt_without_a_word(make: Callable[[], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = fit(make(), [FRAME[:50], FRAME[50:]], n_jobs=1)
    np.testing.assert_allclose(getattr(model, "pca_", model).var_, X.var(0))
    with pytest.warns(UserWarning, match="partition 0 has named columns and partition 1 has not"):
        fit(make(), [FRAME[:50], X[50:]], n_jobs=1)


@pytest.mark.parametrize("sizes", [(40, 3, 77), (3, 40, 77), (1, 119)])
def test_the_number_of_components_is_chosen_once(sizes: tuple[int, ...]) -> None:
    parts = np.split(PATCHES, np.cumsum(sizes)[:-1])
    for model in (BatchedIncrementalPCA(None, step_size=16), PatchGaussianDetector(None, step_size=16)):
        fitted = fit(model, parts, n_jobs=1)
        assert getattr(fitted, "pca_", fitted).n_components_ == min(16, sizes[0], 5)
        assert model.n_components is None is getattr(fitted, "pca_", fitted).n_components
        assert fitted.partial_fit(PATCHES[:1]).n_samples_seen_ == 121


@pytest.mark.parametrize("random_state", [None, np.random.RandomState(0), 0])
def test_random_features_are_chosen_once(random_state: Any) -> None:
    model = PatchGaussianDetector(2, n_random_features=3, random_state=random_state)
    fitted = fit(model, np.split(PATCHES, 3), n_jobs=1)
    assert fitted.n_samples_seen_ == 120
    assert fitted.random_state is random_state
    np.testing.assert_allclose(fitted.pca_.mean_, PATCHES.mean(0)[:, fitted.feature_indices_])


def test_the_dtype_is_that_of_the_first_partition() -> None:
    wide, narrow = PATCHES[:60], PATCHES[60:].astype(np.float32)
    for parts in ([wide, narrow], [narrow, wide]):
        assert fit(BatchedIncrementalPCA(2), parts, n_jobs=1).components_.dtype == parts[0].dtype
    offset = 1e6  # float32 does not tell the samples of the second one apart, where it would be learnt alone
    fitted = fit(BatchedIncrementalPCA(5), [wide + offset, narrow], n_jobs=1)
    expected = BatchedIncrementalPCA(5).fit(wide + offset).partial_fit(narrow)
    np.testing.assert_allclose(fitted.var_, expected.var_)


def test_a_step_that_learns_from_its_partition_is_refused() -> None:
    pipe = make_pipeline(StandardScaler(), BatchedIncrementalPCA(2))
    with pytest.raises(ValueError, match=r"StandardScaler has learnt another mean_ from partition 1 .*FrozenEstimator"):
        fit(pipe, np.split(X, 2), n_jobs=1)
    frozen = FrozenEstimator(StandardScaler().fit(X))
    whole = make_pipeline(frozen, BatchedIncrementalPCA(5)).fit(X)
    for step in (frozen, "passthrough", Normalizer()):
        pipe = fit(make_pipeline(step, BatchedIncrementalPCA(5)), np.split(X, 2), n_jobs=1)
        assert pipe[-1].n_samples_seen_ == 120
    pipe = fit(make_pipeline(frozen, BatchedIncrementalPCA(5)), np.split(X, 2), n_jobs=1)
    np.testing.assert_allclose(pipe[-1].explained_variance_, whole[-1].explained_variance_)


class AsIs(TransformerMixin, BaseEstimator):
    """A step of the user that learns nothing."""

    def fit(self, X: Any, y: Any = None) -> Any:
        return self

    def transform(self, X: Any) -> Any:
        return X


def pipeline(**parameters: Any) -> Pipeline:
    torch.manual_seed(0)
    extractor = PatchFeatureExtractor(SmallNetwork(), layers=["second"], margin=0, batch_size=4)
    return Pipeline(
        [("as they are", AsIs()), ("features", extractor), ("detector", PatchGaussianDetector(2))]
    ).set_params(**{f"features__{name}": value for name, value in parameters.items()})


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number:02d}.png" for number in range(12)]
    for number, path in enumerate(paths):
        size = (40, 60, 3) if number < 6 else (60, 40, 3)  # lying, then standing
        Image.fromarray(RNG.integers(0, 255, size, dtype=np.uint8)).save(path)
    return paths


@pytest.mark.parametrize("parameters", [{}, {"grid_size": 4}], ids=str)
def test_all_partitions_take_the_size_of_the_first_image(images: list[Path], parameters: dict[str, Any]) -> None:
    parts = [images[:4], images[4:8], images[8:]]
    with pytest.warns(AspectRatioWarning):
        whole = pipeline(**parameters).fit(images)
        pipe = fit(pipeline(**parameters), parts, n_jobs=1)
    assert pipe[1].image_size_ == whole[1].image_size_
    assert pipe[1].image_size == "auto"
    np.testing.assert_allclose(pipe[-1].pca_.mean_, whole[-1].pca_.mean_, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(pipe[-1].pca_.var_, whole[-1].pca_.var_, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("broken", [0, 1, 2])
@pytest.mark.parametrize("image_size", ["auto", 64])
def test_a_partition_without_a_readable_image_obeys_on_error(images: list[Path], broken: int, image_size: Any) -> None:
    images = images[:6]
    parts = [images[:2], images[2:4], images[4:]]
    for path in parts[broken]:
        path.write_bytes(b"no image")
    pipe = pipeline(image_size=image_size)
    with pytest.raises(ImageReadError, match=parts[broken][0].name):
        fit(pipe, parts, n_jobs=1)
    assert not hasattr(pipe[-1], "pca_")
    with pytest.warns(SkippedImagesWarning, match=f"1 of 3 partitions are skipped.*partition {broken}: "):
        fit(pipe.set_params(features__on_error="skip"), parts, n_jobs=1)
    assert pipe[-1].n_samples_seen_ == 4
    assert pipe[1].image_size_ == (auto_size((40, 60)) if image_size == "auto" else (64, 64))
    for path in images:
        path.write_bytes(b"no image")
    before = pipe[-1].offset_
    with pytest.raises(ImageReadError):
        fit(pipe, parts, n_jobs=1)
    assert (pipe[-1].n_samples_seen_, pipe[-1].offset_) == (4, before)
