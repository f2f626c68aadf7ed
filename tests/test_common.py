"""scikit-learn's own checks: none is expected to fail."""

from __future__ import annotations

import warnings

import pytest
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from ipca_sklearn import BatchedIncrementalPCA, PatchFeatureExtractor, PatchGaussianDetector, ProductRouter
from ipca_sklearn.decomposition._full_covariance import FullCovariance


# The checks' data has as few as one feature, so k is 1. A check of outlier detectors wants some of 300 points of three
# blobs called anomalous; none of them is three robust standard deviations away ("auto"), so a rate is asked for.
@parametrize_with_checks(
    [
        BatchedIncrementalPCA(1),
        BatchedIncrementalPCA(1, centering="deferred", solver="svd"),
        PatchGaussianDetector(1, false_positive_rate=0.1),
        PatchGaussianDetector(covariance="full", distance="mahalanobis", false_positive_rate=0.1),
        FullCovariance(),
        ProductRouter(PatchGaussianDetector(1)),
    ],
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


# The extractor takes images, and says so in its tags, so scikit-learn runs only what needs no 2-D data. The checks of
# parameters, cloning and printing need none either: run them by name.
DATALESS = [
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_get_params_invariance",
    "check_set_params",
    "check_param_validation",
    "check_parameters_default_constructible",
    "check_mixin_order",
    "check_valid_tag_types",
    "check_estimator_tags_renamed",
]


@pytest.mark.parametrize("name", DATALESS)
def test_scikit_learn_checks_of_the_extractor(name):
    getattr(estimator_checks, name)("PatchFeatureExtractor", PatchFeatureExtractor("resnet18", weights=None))


def test_scikit_learn_finds_nothing_wrong_with_the_extractor():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot be checked with 2-D data
        results = estimator_checks.check_estimator(PatchFeatureExtractor("resnet18", weights=None), on_fail=None)
    assert {result["status"] for result in results} == {"passed"}


@pytest.mark.parametrize("fit", ["fit", "transform"])
def test_the_extractor_refuses_rows_of_numbers(fit):
    import numpy as np

    extractor = PatchFeatureExtractor("resnet18", weights=None).fit(np.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match="Reshape your data"):
        getattr(extractor, fit)(np.zeros((10, 3)))
