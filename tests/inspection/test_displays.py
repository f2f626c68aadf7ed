"""Pictures of what was learnt: the numbers that they draw, not how they look."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from sklearn.decomposition import IncrementalPCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import estimator_html_repr

from ipca_sklearn import BatchedIncrementalPCA, PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.inspection import ExplainedVarianceDisplay, PimoDisplay, ThresholdDisplay
from ipca_sklearn.metrics import pimo_curves

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def _close_figures() -> Any:
    yield
    plt.close("all")


def features(n: int = 60) -> np.ndarray:
    """Patches in 2 rows and 3 columns whose rank grows from 0 to 5."""
    X = np.random.default_rng(0).normal(size=(n, 6, 8))
    for patch in range(6):
        X[:, patch, patch:] = 0
    return X.reshape(n, 2, 3, 8)


def test_each_patch_needs_as_many_components_as_its_rank() -> None:
    display = ExplainedVarianceDisplay.from_estimator(BatchedIncrementalPCA(3, step_size=None).fit(features()), share=1)
    np.testing.assert_array_equal(display.n_components_needed, [[0, 1, 2], [3, 4, 4]])  # 4: more than the 3 there are
    np.testing.assert_array_equal(display.axes_[0].images[0].get_array(), display.n_components_needed)
    assert display.axes_[0].images[0].get_clim() == (0, 3)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_the_curve_is_the_median_of_the_patches(kind: Any) -> None:
    X = kind(np.random.default_rng(0).normal(size=(60, 5, 8)))
    detector = PatchGaussianDetector(4).fit(X)
    display = ExplainedVarianceDisplay.from_estimator(Pipeline([("detector", detector)]), share=0.5)
    assert len(display.axes_) == 1  # patches in a row have no map
    ratio = np.asarray(detector.pca_.explained_variance_ratio_)
    np.testing.assert_allclose(display.axes_[0].lines[0].get_ydata(), np.median(np.cumsum(ratio, 1), 0), rtol=1e-6)
    np.testing.assert_array_equal(
        display.n_components_needed, [int(np.argmax([*np.cumsum(row), 2] >= np.float64(0.5))) + 1 for row in ratio]
    )


@pytest.mark.parametrize("n_gaussians", [6, 1, None])
def test_patches_that_share_a_gaussian_show_its_components_and_others_none(n_gaussians: int | None) -> None:
    X = np.random.default_rng(0).normal(size=(60, 4, 6, 8)).astype(np.float32)
    detector = PatchGaussianDetector(3, n_gaussians=n_gaussians).fit(X)
    ratio = np.asarray(detector.pca_.explained_variance_ratio_)
    display = ExplainedVarianceDisplay.from_estimator(detector, share=0.3)
    expected = ratio.reshape(4, 6, 3) if n_gaussians is None else ratio[detector.cells_]
    np.testing.assert_array_equal(display.explained_variance_ratio, expected)
    with_hole = expected.copy()
    with_hole[1, 2] = np.nan  # as outside of a region of interest
    display = ExplainedVarianceDisplay(with_hole, share=0.3).plot()
    assert np.argwhere(np.ma.getmaskarray(display.axes_[0].images[0].get_array())).tolist() == [[1, 2]]
    assert display.n_components_needed[1, 2] == 0 and np.isfinite(display.axes_[-1].lines[0].get_ydata()).all()


def test_cells_of_a_region_are_drawn_at_its_patches() -> None:
    images = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)
    region = np.zeros((32, 32), bool)
    region[:16, 8:] = True
    extractor = PatchFeatureExtractor("mobilenet_v3_small", weights=None, image_size=32, region=region, random_state=0)
    detector = PatchGaussianDetector(3, n_gaussians=6).fit(extractor.fit_transform(images))
    display = ExplainedVarianceDisplay.from_estimator(detector)
    hidden = np.ma.getmaskarray(display.axes_[0].images[0].get_array())
    np.testing.assert_array_equal(hidden, ~extractor.region_)
    ratio = np.asarray(detector.pca_.explained_variance_ratio_)
    assert len(ratio) == 6 and 0 < extractor.region_.sum() < extractor.region_.size
    for cell in range(6):
        shown = display.explained_variance_ratio[detector.cells_ == cell]
        np.testing.assert_array_equal(shown, np.broadcast_to(ratio[cell], shown.shape))


def test_one_pca_has_a_curve_of_its_own_and_axes_may_be_given() -> None:
    pca = BatchedIncrementalPCA(2).fit(np.random.default_rng(0).normal(size=(30, 4)))
    _, axis = plt.subplots()
    display = ExplainedVarianceDisplay.from_estimator(pca, axes=axis)
    assert display.axes_[0] is axis
    np.testing.assert_allclose(axis.lines[0].get_ydata(), np.cumsum(pca.explained_variance_ratio_))


def test_what_has_learnt_no_components_per_patch_is_refused() -> None:
    X = np.random.default_rng(0).normal(size=(30, 4))
    with pytest.raises(TypeError, match="has learnt no components"):
        ExplainedVarianceDisplay.from_estimator(IncrementalPCA(2).fit(X))
    with pytest.raises(NotFittedError):
        ExplainedVarianceDisplay.from_estimator(PatchGaussianDetector())
    with pytest.raises(ValueError, match=r"share=2 is not in"):
        ExplainedVarianceDisplay.from_estimator(BatchedIncrementalPCA(2).fit(X), share=2)


@pytest.fixture
def detector() -> PatchGaussianDetector:
    return PatchGaussianDetector(2, false_positive_rate=0.1).fit(np.random.default_rng(0).normal(size=(80, 4, 6)))


def heights(display: ThresholdDisplay) -> list[np.ndarray]:
    return [np.array([bar.get_height() for bar in container]) for container in display.ax_.containers]


def test_the_histogram_holds_all_calibration_scores_and_a_line_at_the_offset(detector: PatchGaussianDetector) -> None:
    display = ThresholdDisplay.from_estimator(detector, bins=10)
    (shares,) = heights(display)
    counts, _ = np.histogram(detector.calibration_scores_, 10)
    np.testing.assert_allclose(shares, counts / len(detector.calibration_scores_))
    assert list(display.line_.get_xdata()) == [detector.offset_] * 2
    assert f"({len(detector.calibration_scores_)})" in display.ax_.get_legend().get_texts()[0].get_text()


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_new_images_are_drawn_by_label(detector: PatchGaussianDetector, kind: Any) -> None:
    rng = np.random.default_rng(1)
    X = np.concatenate([rng.normal(size=(12, 4, 6)), 5 * rng.normal(size=(5, 4, 6))])
    y = np.array([1] * 12 + [-1] * 5)
    display = ThresholdDisplay.from_estimator(detector, kind(X), y)
    np.testing.assert_allclose(display.scores, detector.score_samples(X))
    assert [round(float(shares.sum()), 6) for shares in heights(display)] == [1, 1, 1]
    texts = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert "new, normal (12)" in texts
    assert "new, anomalous (5)" in texts
    assert len(heights(ThresholdDisplay.from_estimator(detector, kind(X)))) == 2


def test_scores_of_unreadable_images_are_left_out() -> None:
    display = ThresholdDisplay(np.array([-1.0, -2.0]), -3.0, scores=np.array([np.nan, -4.0])).plot()
    assert "new (1)" in [text.get_text() for text in display.ax_.get_legend().get_texts()]


def test_wrong_calls_say_what_to_do(detector: PatchGaussianDetector) -> None:
    X = np.zeros((3, 4, 6))
    with pytest.raises(ValueError, match="without the images"):
        ThresholdDisplay.from_estimator(detector, y=[1])
    with pytest.raises(ValueError, match="inconsistent numbers"):
        ThresholdDisplay.from_estimator(detector, X, [1, 1])
    with pytest.raises(ValueError, match=r"normal is \+1"):
        ThresholdDisplay.from_estimator(detector, X, [0, 1, 1])
    with pytest.raises(TypeError, match="has no threshold"):
        ThresholdDisplay.from_estimator(BatchedIncrementalPCA())


def test_notebooks_show_scikit_learns_diagram(detector: PatchGaussianDetector) -> None:
    pipe = make_pipeline(PatchFeatureExtractor(), PatchGaussianDetector(2, distance="residual"))
    text = pipe._repr_html_()
    assert "sk-container" in text
    for name in ("PatchFeatureExtractor", "PatchGaussianDetector", "residual"):
        assert name in text
    assert "fitted" in estimator_html_repr(detector)


def test_overlap_curves_are_drawn_for_each_image_and_their_mean_for_each_group() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((7, 40, 40), dtype=bool)
    masks[3:, :8, :8] = True
    maps, groups = rng.normal(size=masks.shape) + 2 * masks, np.array([*["good"] * 3, "cut", "cut", "dent", "cut"])
    display = PimoDisplay.from_predictions(masks, maps, groups=groups, fpr_bounds=(1e-3, 1e-2))
    curves = pimo_curves(masks, maps, fpr_bounds=(1e-3, 1e-2))
    assert list(display.lines_) == ["cut", "dent"] and display.ax_.get_xscale() == "log"
    assert len(display.ax_.lines) == 4 + 2
    np.testing.assert_array_equal(display.lines_["cut"].get_ydata(), curves.tpr[[3, 4, 6]].mean(axis=0))
    np.testing.assert_array_equal(display.lines_["cut"].get_xdata(), curves.shared_fpr)
    assert display.lines_["dent"].get_label() == f"dent (1): AUPIMO {curves.aupimo[5]:.2f}"
    _, ax = plt.subplots()
    assert PimoDisplay(curves).plot(ax=ax).figure_ is ax.figure and list(ax.lines) != []
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        PimoDisplay.from_predictions(masks, maps, groups=groups[1:])
