"""set_output and set_config(transform_output=...): tables become data frames, and everything else stays what it is."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ipca_sklearn import BatchedIncrementalPCA, PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.decomposition import FullCovariance

ESTIMATORS = [BatchedIncrementalPCA(3), FullCovariance(), PatchGaussianDetector(3)]


@pytest.fixture(params=["pandas", "polars"])
def library(request):
    return request.param, pytest.importorskip(request.param)


@pytest.fixture(params=["set_output", "set_config"])
def asked(request, library):
    """Return an estimator whose output is asked to be a data frame, in one of scikit-learn's ways."""
    if request.param == "set_output":
        yield lambda estimator: clone(estimator).set_output(transform=library[0])
    else:
        with sklearn.config_context(transform_output=library[0]):
            yield clone


def normal(shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rows_become_a_data_frame(estimator, asked, library):
    X = normal((100, 8))
    expected = clone(estimator).fit(X).transform(X)
    fitted = asked(estimator).fit(X)
    for output in (fitted.transform(X), asked(estimator).fit_transform(X)):
        assert isinstance(output, library[1].DataFrame)
        assert list(output.columns) == list(fitted.get_feature_names_out())
        np.testing.assert_allclose(output.to_numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(100, 6, 8), (100, 2, 3, 8)])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_arrays_of_samples_with_patches_stay_arrays(estimator, shape, asked):
    X = normal(shape)
    with sklearn.config_context(transform_output="default"):
        expected = clone(estimator).fit(X).transform(X)
    fitted = asked(estimator).fit(X)
    for output in (fitted.transform(X), asked(estimator).fit_transform(X)):
        assert isinstance(output, np.ndarray) and output.shape == expected.shape
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(100, 8), (100, 6, 8), (100, 2, 3, 8)])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_tensors_stay_tensors(estimator, shape, asked):
    X = torch.from_numpy(normal(shape))
    assert isinstance(asked(estimator).fit(X).transform(X), torch.Tensor)
    assert isinstance(asked(estimator).fit_transform(X), torch.Tensor)


def test_a_pipeline_of_images_gives_maps(asked):
    images = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)
    extractor = PatchFeatureExtractor("resnet18", weights=None, image_size=32, crop_size=32, random_state=0)
    pipe = make_pipeline(extractor, PatchGaussianDetector(2))
    maps = asked(pipe).fit(images).transform(images)
    assert isinstance(maps, np.ndarray) and maps.shape == (40, 8, 8)


def test_a_pipeline_of_rows_gives_a_data_frame(asked, library):
    X = normal((100, 8))
    pipe = asked(make_pipeline(StandardScaler(), PatchGaussianDetector(2))).fit(X)
    output = pipe.transform(X)
    assert isinstance(output, library[1].DataFrame) and output.shape == (100, 1)
    np.testing.assert_allclose(pipe[-1].score_maps(output.to_numpy()), pipe.score_samples(X), rtol=1e-4)


def test_a_subclass_may_change_what_is_returned():
    class Larger(BatchedIncrementalPCA):
        def transform(self, X):
            return super().transform(X) + 1

    pandas = pytest.importorskip("pandas")
    larger = Larger(2).set_output(transform="pandas")
    assert larger.fit_transform(normal((100, 6, 8))).shape == (100, 6, 2)
    assert isinstance(larger.fit(normal((100, 8))).transform(normal((100, 8))), pandas.DataFrame)
