"""scikit-learn's own checks, strictly: what is expected to fail is listed with its reason."""

from __future__ import annotations

import warnings

import pytest
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from ipca_sklearn import BatchedIncrementalPCA, PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.decomposition._full_covariance import FullCovariance

HELD_OUT = (
    "the check wants the share `contamination` of the training samples called outliers; this threshold is that share "
    "of images that were not learnt from (scores taken before learning), which is what an inspector means by it"
)
EXPECTED_FAILURES = {
    "PatchGaussianDetector": {"check_outliers_train": HELD_OUT, "check_outliers_fit_predict": HELD_OUT},
}


# The checks' data has as few as one feature, so k is 1; otherwise the defaults.
@parametrize_with_checks(
    [
        BatchedIncrementalPCA(1),
        BatchedIncrementalPCA(1, centering="deferred", solver="svd"),
        PatchGaussianDetector(1),
        PatchGaussianDetector(covariance="full", score="mahalanobis"),
        FullCovariance(),
    ],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES.get(type(estimator).__name__, {}),
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
