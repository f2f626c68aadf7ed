"""The display shows the right thing in the right place."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from torch import nn

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
    np.testing.assert_allclose(heat.get_array(), pipe.transform(image[None])[0], rtol=1e-4)
    np.testing.assert_array_equal(display.axes_[0, 1].images[0].get_array(), mask)
    assert not display.axes_[1, 1].images[0].get_array().any()
    # One colour scale for all rows.
    assert display.axes_[0, 2].images[1].get_clim() == display.axes_[1, 2].images[1].get_clim()
    assert display.axes_[0, 0].get_ylabel() == "hole"


def test_the_hottest_patch_is_the_defect_in_pixels_of_the_original():
    image, mask = defect()
    # The maps of this network are the image itself, made smaller: nothing is blurred.
    extractor = PatchFeatureExtractor(nn.Sequential(nn.AvgPool2d(4)), layers=["0"], image_size=64, crop_size=48)
    normal = np.random.default_rng(0).integers(100, 130, (12, 80, 60, 3), dtype=np.uint8)
    pipe = make_pipeline(extractor, PatchGaussianDetector(1)).fit(normal)
    display = AnomalyMapDisplay.from_estimator(pipe, [image], masks=[mask])
    heat = display.axes_[0, 2].images[1]
    values = heat.get_array()
    row, column = np.unravel_index(values.argmax(), values.shape)
    left, right, bottom, top = heat.get_extent()
    y = top + (row + 0.5) / values.shape[0] * (bottom - top)
    x = left + (column + 0.5) / values.shape[1] * (right - left)
    assert mask[round(y), round(x)]
    # All three pictures show the whole original, the colour bar the scale of the map.
    for axis in display.axes_[0]:
        assert (axis.get_xlim(), axis.get_ylim()) == ((-0.5, 59.5), (79.5, -0.5))
    (bar,) = display.axes_[0, 2].child_axes
    assert bar.get_ylim() == heat.get_clim() == (values.min(), values.max())


@pytest.mark.parametrize("dtype", [bool, np.int64, np.uint8])
def test_masks_of_the_originals_size_may_have_any_integer_dtype(pipe, dtype):
    image, mask = defect()
    display = AnomalyMapDisplay.from_estimator(pipe, [image], masks=[mask.astype(dtype)])
    np.testing.assert_array_equal(display.axes_[0, 1].images[0].get_array(), mask)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_with_a_grey_rim_is_drawn_as_it_is_scored(pipe, dtype):
    image = np.full((64, 64, 3), 115, dtype=np.uint8)
    mask = np.zeros((64, 64), dtype=dtype)
    mask[19:31, 34:46] = 100  # a smoothed edge, less than half
    mask[20:30, 35:45] = 255
    mask *= 257 if dtype == np.uint16 else 1
    display = AnomalyMapDisplay.from_estimator(pipe, [image], masks=[mask])
    drawn = display.axes_[0, 1].images[0].get_array()
    assert drawn.sum() == 10 * 10
    np.testing.assert_array_equal(drawn[8:56, 8:56], pipe[0].transform_masks([mask])[0])  # the crop of 48 of 64


def test_a_mask_of_another_size_is_named(pipe):
    image, mask = defect()
    with pytest.raises(ValueError, match=r"masks\[1\] has shape \(60, 80\), its image \(80, 60\)"):
        AnomalyMapDisplay.from_estimator(pipe, [image, image], masks=[mask, mask.T])


def test_a_mask_of_another_scale_is_drawn_over_its_image(pipe):
    image, mask = defect()
    for scaled in (mask.repeat(2, axis=0).repeat(2, axis=1), 2 * mask[::2, ::2].astype(np.uint8)):
        display = AnomalyMapDisplay.from_estimator(pipe, [image], masks=[scaled])
        shown = display.axes_[0, 1].images[0].get_array()
        assert shown.shape == (80, 60)
        assert np.count_nonzero(shown != mask) <= 2 * (10 + 10)  # of the smaller one, a rim of one pixel


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


def surfaces():
    """Normal images with brighter and brighter spots, out of order, and defects that are brighter still."""
    images = np.full((6, 80, 60, 3), 115, dtype=np.uint8)
    for image, light in zip(images, (75, 140, 0, 140, 100, 120), strict=True):
        image[20:30, 35:45] += np.uint8(light)
    return images, np.array([1, -1, 1, -1, 1, 1])


def as_list(images):
    return list(images)


def as_tensor(images):
    return torch.from_numpy(images).movedim(-1, 1)


@pytest.mark.parametrize("kind", [np.asarray, as_list, as_tensor])
def test_false_positives_are_the_normal_images_that_look_most_anomalous_the_worst_first(pipe, kind):
    images, labels = surfaces()
    scores = pipe.score_samples(images)
    assert scores[[5, 4, 0, 2]].tolist() == sorted(scores[labels == 1])  # brighter is more anomalous
    masks = [np.full((80, 60), index == 4) for index in range(6)]
    titles = [f"number {index}" for index in range(6)]
    display = AnomalyMapDisplay.from_false_positives(
        pipe, kind(images), labels.tolist(), masks=masks, titles=titles, n_images=3, vmax=1e4
    )
    assert [label.get_ylabel().split("\n")[0] for label in display.axes_[:, 0]] == ["number 5", "number 4", "number 0"]
    for row, index in enumerate((5, 4, 0)):
        np.testing.assert_allclose(display.axes_[row, 0].images[0].get_array(), images[index] / 255)
        np.testing.assert_array_equal(display.axes_[row, 1].images[0].get_array(), masks[index])
        heat = display.axes_[row, 2].images[1]
        np.testing.assert_allclose(heat.get_array(), pipe.transform(images[[index]])[0], rtol=1e-4)
        assert heat.get_clim()[1] == 1e4


@pytest.mark.parametrize("called", ["anomalous", "normal"])
def test_rows_of_false_positives_say_the_score_the_threshold_and_what_the_image_is_called(pipe, called, monkeypatch):
    images, labels = surfaces()
    worst = pipe.score_samples(images[[5]])[0]
    monkeypatch.setattr(type(pipe[-1]), "offset_", float(worst) + (0.5 if called == "anomalous" else -0.5))
    assert pipe.predict(images[[5]])[0] == (-1 if called == "anomalous" else 1)
    display = AnomalyMapDisplay.from_false_positives(pipe, images, labels)
    assert display.axes_.shape == (4, 2)  # as many as there are normal images
    expected = f"score {-worst:.3g}, threshold {-pipe[-1].offset_:.3g}:\ncalled {called}"
    assert display.axes_[0, 0].get_ylabel() == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": [-1] * 6}, "none of the 6 images is normal"),
        ({"y": [1] * 5}, "5 labels y for 6 images"),
        ({"y": [0, 1] * 3}, r"y has the labels \[0\]; normal is \+1 and anomalous -1"),
        ({"n_images": 0}, "n_images=0; show at least one"),
        ({"titles": ["one"]}, "1 titles for 6 images"),
        ({"masks": [None]}, "1 masks for 6 images"),
    ],
)
def test_false_positives_name_what_is_wrong(pipe, change, message):
    images, labels = surfaces()
    with pytest.raises(ValueError, match=message):
        AnomalyMapDisplay.from_false_positives(pipe, images, **({"y": labels} | change))


def test_without_labels_all_images_are_normal(pipe):
    images, _ = surfaces()
    display = AnomalyMapDisplay.from_false_positives(pipe, images, n_images=1)
    np.testing.assert_allclose(
        display.axes_[0, 0].images[0].get_array(), images[np.argmin(pipe.score_samples(images))] / 255
    )


@pytest.mark.parametrize("titles", [None, ["score 0.123, threshold 0.345:\ncalled normal"] * 3])
@pytest.mark.parametrize("masks", [None, [None] * 3])
@pytest.mark.parametrize("shape", [(100, 100), (50, 200), (100, 250), (200, 50)])
def test_pictures_of_any_shape_fill_the_figure(shape, masks, titles):
    images = [np.zeros((*shape, 3))] * 3
    display = AnomalyMapDisplay(images, np.zeros((3, 4, 4)), [(0, 0, *shape)] * 3, masks=masks, titles=titles).plot()
    figure = display.figure_
    figure.canvas.draw()
    boxes = [axis.get_window_extent() for axis in display.axes_.flat]
    whole = figure.bbox.width * figure.bbox.height
    assert sum(box.width * box.height for box in boxes) > (0.55 if titles is None else 0.33) * whole
    assert min(box.height for box in boxes) > 0.8 * figure.dpi and min(box.width for box in boxes) > 0.8 * figure.dpi
    if titles is not None:
        labels = [axis.yaxis.label.get_window_extent() for axis in display.axes_[:, 0]]
        assert all(upper.y0 > lower.y1 for upper, lower in pairwise(labels))
    matplotlib.pyplot.close(figure)


def test_false_positives_need_a_pipeline(pipe):
    images, labels = surfaces()
    with pytest.raises(TypeError, match="first step is a PatchFeatureExtractor"):
        AnomalyMapDisplay.from_false_positives(pipe[-1], images, labels)
