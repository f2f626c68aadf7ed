"""The display shows the right thing in the right place."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.inspection import AnomalyMapDisplay

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


@pytest.fixture(scope="module")
def pipe():
    images = np.random.default_rng(0).integers(100, 130, (12, 80, 60, 3), dtype=np.uint8)
    extractor = PatchFeatureExtractor("resnet18", weights=None, image_size=64, crop_size=48, random_state=0)
    return make_pipeline(extractor, PatchGaussianDetector(3)).fit(images)


def defect():
    image = np.full((80, 60, 3), 115, dtype=np.uint8)
    image[20:30, 35:45] = 255
    mask = np.zeros((80, 60), dtype=bool)
    mask[20:30, 35:45] = True
    return image, mask


def test_the_heat_map_lies_over_the_part_that_is_inspected(pipe):
    image, mask = defect()
    display = AnomalyMapDisplay.from_estimator(pipe, [image, image], masks=[mask, None], titles=["hole", "good"])
    assert display.axes_.shape == (2, 3)
    heat = display.axes_[0, 2].images[1]
    left, right, bottom, top = heat.get_extent()
    assert (left, right, bottom, top) == pytest.approx((60 / 8 - 0.5, 60 * 7 / 8 - 0.5, 80 * 7 / 8 - 0.5, 80 / 8 - 0.5))
    np.testing.assert_allclose(heat.get_array(), pipe.transform(image[None])[0], rtol=1e-5)
    np.testing.assert_array_equal(display.axes_[0, 1].images[0].get_array(), mask)
    assert not display.axes_[1, 1].images[0].get_array().any()
    # One colour scale for all rows.
    assert display.axes_[0, 2].images[1].get_clim() == display.axes_[1, 2].images[1].get_clim()
    assert display.axes_[0, 0].get_ylabel() == "hole"


def test_without_masks_there_are_two_columns(pipe):
    display = AnomalyMapDisplay.from_estimator(pipe, [defect()[0]], vmin=0, vmax=9, cmap="viridis")
    assert display.axes_.shape == (1, 2)
    assert display.axes_[0, 1].images[1].get_clim() == (0, 9)


def test_wrong_lengths_and_estimators_are_named(pipe):
    image, mask = defect()
    with pytest.raises(ValueError, match="1 masks for 2 images"):
        AnomalyMapDisplay.from_estimator(pipe, [image, image], masks=[mask])
    with pytest.raises(TypeError, match="first step is a PatchFeatureExtractor"):
        AnomalyMapDisplay.from_estimator(pipe[-1], [image])
