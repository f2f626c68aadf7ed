"""Intervals: weighted curves against the measures of duplicated images, and how often the truth lies within."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from ipca_sklearn.exceptions import FewImagesWarning, MaskWarning
from ipca_sklearn.metrics import (
    aupimo_score,
    aupro_score,
    confidence_interval,
    evaluation_report,
    image_average_precision_score,
    image_f1_max_score,
    image_roc_auc_score,
    pixel_average_precision_score,
    pixel_f1_max_score,
    pixel_f1_score,
    pixel_roc_auc_score,
    pro_score,
    region_f1_score,
)

IMAGE_METRICS = [image_roc_auc_score, image_average_precision_score, image_f1_max_score]
PIXEL_METRICS = [
    (pixel_roc_auc_score, {}),
    (pixel_average_precision_score, {}),
    (pixel_f1_max_score, {}),
    (aupro_score, {"max_fpr": 0.3}),
    (aupro_score, {"max_fpr": 0.05, "connectivity": 1}),
    (aupimo_score, {"fpr_bounds": (1e-2, 1e-1)}),
]


def images(n=(30, 20), seed=0, n_levels=None):
    rng = np.random.default_rng(seed)
    labels = np.repeat([1, -1], n)
    scores = rng.normal(size=len(labels)) + labels
    return labels, scores if n_levels is None else np.round(scores * n_levels)


def pixels(n=8, side=10, seed=0):
    """Half of the images are normal; strength and size of the defects differ."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, side, side), bool)
    for index in range(n // 2, n):
        masks[index, : 2 + index % 5, index % 3 : 4] = True
        masks[index, -1, -(index % 4) - 1 :] = True
    strength = np.linspace(0, 4, n)[:, None, None]
    return masks, (rng.standard_normal(masks.shape) + strength * masks).astype(np.float32)


def one_by_one(metric):
    """The same measure, as a callable that `confidence_interval` does not know."""
    return lambda y_true, y_score, **options: metric(y_true, y_score, **options)


@pytest.mark.parametrize("metric", IMAGE_METRICS)
@pytest.mark.parametrize("n_levels", [None, 1])
def test_measures_of_all_resamples_at_once_equal_those_of_each(metric, n_levels):
    data = images(n_levels=n_levels)
    options = {"n_resamples": 60, "random_state": 3}
    expected = confidence_interval(one_by_one(metric), *data, **options)
    assert confidence_interval(metric, *data, **options) == pytest.approx(expected, abs=1e-12)


@pytest.mark.filterwarnings("ignore::ipca_sklearn.exceptions.FewImagesWarning")
@pytest.mark.parametrize(("metric", "parameters"), PIXEL_METRICS)
def test_weighted_counts_equal_the_measures_of_repeated_images(metric, parameters):
    masks, maps = pixels()
    options = {"n_resamples": 60, "random_state": 3, **parameters}
    expected = confidence_interval(one_by_one(metric), masks, maps, **options)
    assert confidence_interval(metric, masks, maps, **options) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("metric", "parameters"), PIXEL_METRICS)
def test_bins_of_many_pixels_change_the_ends_by_little(metric, parameters):
    masks, maps = pixels(n=20, side=64)
    options = {"n_resamples": 20, "random_state": 3, **parameters}
    expected = confidence_interval(one_by_one(metric), masks, maps, **options)
    found = confidence_interval(metric, masks, maps, **options)
    assert found == pytest.approx(expected, abs=2e-3)
    assert expected[1] - expected[0] > 0.02


def test_each_resample_has_as_many_images_whose_defect_is_inspected():
    masks = np.zeros((8, 4, 4), bool)
    masks[3:, 3] = True  # beside the region
    masks[7, 0] = True
    region = np.zeros((4, 4), bool)
    region[:2] = True
    marked = np.zeros_like(masks)
    marked[:, 0, :2] = True
    assert confidence_interval(pro_score, masks, marked, region=region, n_resamples=50) == (0.5, 0.5)


def test_marks_and_a_region_are_resampled_alike():
    masks, maps = pixels()
    region = np.zeros((10, 10), bool)
    region[:, :8] = True
    given = [(metric, maps > 1) for metric in (pixel_f1_score, pro_score, region_f1_score)]
    for metric, scores in (*given, (pixel_roc_auc_score, maps), (aupro_score, maps)):
        expected = confidence_interval(one_by_one(metric), masks, scores, n_resamples=60, region=region)
        assert confidence_interval(metric, masks, scores, n_resamples=60, region=region) == pytest.approx(expected)
        assert expected != pytest.approx(confidence_interval(metric, masks, scores, n_resamples=60))


def test_intervals_hold_the_measure_and_grow_with_the_level_and_with_fewer_images():
    labels, scores = images((200, 200))
    low, high = confidence_interval(image_roc_auc_score, labels, scores)
    wide = confidence_interval(image_roc_auc_score, labels, scores, confidence_level=0.999)
    assert wide[0] < low < image_roc_auc_score(labels, scores) < high < wide[1]
    fewer = confidence_interval(image_roc_auc_score, *images((20, 20)))
    assert fewer[1] - fewer[0] > 2 * (high - low)


def test_the_truth_lies_in_about_95_of_100_intervals():
    truth = norm.cdf(math.sqrt(2))  # of two normal distributions whose means are two standard deviations apart
    intervals = [
        confidence_interval(image_roc_auc_score, *images((80, 80), seed), n_resamples=300) for seed in range(200)
    ]
    assert 0.90 <= np.mean([low <= truth <= high for low, high in intervals]) <= 0.99


def test_seeds_repeat_an_interval_and_none_does_not():
    data = images()
    first, again = (confidence_interval(image_roc_auc_score, *data, random_state=1) for _ in range(2))
    assert first == again != confidence_interval(image_roc_auc_score, *data, random_state=2)
    anew = {confidence_interval(image_roc_auc_score, *data, n_resamples=11, random_state=None) for _ in range(5)}
    assert len(anew) > 1


def test_each_kind_of_image_keeps_its_number():
    """Why this is not scipy.stats.bootstrap, which has no strata: a resample of one kind only has no measure."""
    labels, scores = images((5, 2))
    counts = []
    confidence_interval(lambda y, _: counts.append(np.sum(y == -1)) or 0.0, labels, scores, n_resamples=50)
    assert set(counts) == {2}


def test_wrong_calls_say_what_to_do():
    data = images()
    with pytest.raises(ValueError, match="n_resamples=0"):
        confidence_interval(image_roc_auc_score, *data, n_resamples=0)
    with pytest.raises(ValueError, match="confidence_level=95"):
        confidence_interval(image_roc_auc_score, *data, confidence_level=95)
    with pytest.raises(ValueError, match="y_true has 50 images and y_score 49"):
        confidence_interval(one_by_one(image_roc_auc_score), data[0], data[1][1:])
    with pytest.raises(ValueError, match="max_fpr=2"):
        confidence_interval(aupro_score, *pixels(), max_fpr=2)
    with pytest.raises(TypeError, match="max_fpr"):
        confidence_interval(image_roc_auc_score, *data, max_fpr=0.3)


# --- the report -------------------------------------------------------------------------------------------------------


def report_of(n=20, side=40, **options):
    """The report of two types of defects, and what it was made of."""
    masks, maps = pixels(n, side)
    labels = np.where(masks.any((1, 2)), -1, 1)
    types = np.where(labels == 1, "good", np.where(np.arange(n) % 2, "dent", "crack"))
    scores = -maps.max((1, 2)).astype(float)
    given = {"marked": maps > 2, "offset": -3.6, "defect_types": types, "n_resamples": 50} | options
    with pytest.warns(FewImagesWarning) as caught:
        report = evaluation_report(labels, scores, masks, maps, **given)
    return report, (labels, scores, masks, maps, types), [str(warning.message) for warning in caught]


@pytest.mark.parametrize("region", [None, np.arange(40) < np.full((40, 1), 30)])
def test_report_has_the_measures_of_each_type_beside_all_normal_images(region):
    report, (labels, scores, masks, maps, types), _ = report_of(region=region)
    assert [row["defects"] for row in report["defects"]] == ["all", "crack", "dent"]
    for row in report["defects"]:
        kept = (labels == 1) | (types == row["defects"]) | (row["defects"] == "all")
        assert row["n_images"] == row["n_masks"] == np.sum(kept & (labels == -1))
        expected = {
            "image_roc_auc": image_roc_auc_score(labels[kept], scores[kept]),
            "image_average_precision": image_average_precision_score(labels[kept], scores[kept]),
            "image_f1_max": image_f1_max_score(labels[kept], scores[kept]),
            "found": np.mean(scores[kept & (labels == -1)] < -3.6),
            "pixel_roc_auc": pixel_roc_auc_score(masks[kept], maps[kept], region=region),
            "pixel_average_precision": pixel_average_precision_score(masks[kept], maps[kept], region=region),
            "pixel_f1_max": pixel_f1_max_score(masks[kept], maps[kept], region=region),
            "pixel_f1": pixel_f1_score(masks[kept], maps[kept] > 2, region=region),
            "aupro": aupro_score(masks[kept], maps[kept], region=region),
            "aupro_0.05": aupro_score(masks[kept], maps[kept], max_fpr=0.05, region=region),
            "pro": pro_score(masks[kept], maps[kept] > 2, region=region),
            "region_f1": region_f1_score(masks[kept], maps[kept] > 2, region=region),
        }
        assert {key: row[key] for key in expected} == pytest.approx(expected, abs=1e-12)
        assert set(row["intervals"]) == set(expected)
        assert all(low - 0.01 <= row[key] <= high + 0.01 for key, (low, high) in row["intervals"].items())
    assert report["n_normal"] == 10 and report["false_positive_rate"] == np.mean(scores[labels == 1] < -3.6)
    low, high = report["false_positive_rate_interval"]
    assert low <= report["false_positive_rate"] < high < 1


def test_report_intervals_are_those_of_the_function():
    report, (labels, scores, masks, maps, _), _ = report_of(side=10)
    row = report["defects"][0]["intervals"]
    for key, metric in (("pixel_roc_auc", pixel_roc_auc_score), ("aupro", aupro_score)):
        assert row[key] == pytest.approx(confidence_interval(metric, masks, maps, n_resamples=50), abs=1e-6)
    assert row["image_roc_auc"] == confidence_interval(image_roc_auc_score, labels, scores, n_resamples=50)


def test_report_tells_of_few_images_and_why_there_is_no_aupimo():
    report, _, told = report_of()
    assert any("normal (10), crack (5), dent (5)" in line and "intervals are wide" in line for line in told)
    assert any("there is no AUPIMO: 10 normal images" in line and "63 normal images" in line for line in told)
    assert all(row["aupimo"] is None for row in report["defects"])


def test_report_has_aupimo_where_normal_pixels_are_enough():
    report, (_, _, masks, maps, types), told = report_of(side=104)  # 10 images of 10,816 pixels
    assert len(told) == 1
    chosen = (types == "good") | (types == "dent")
    assert report["defects"][2]["aupimo"] == pytest.approx(aupimo_score(masks[chosen], maps[chosen]), abs=1e-12)
    low, high = report["defects"][2]["intervals"]["aupimo"]
    assert low <= report["defects"][2]["aupimo"] <= high


def test_report_leaves_out_the_pixels_of_images_without_a_mask():
    has_mask = np.ones(20, bool)
    has_mask[-1] = False
    report, (labels, scores, masks, maps, _), _ = report_of(has_mask=has_mask)
    row = report["defects"][0]
    assert row["n_masks"] == row["n_images"] - 1
    assert row["pixel_roc_auc"] == pixel_roc_auc_score(masks[:-1], maps[:-1])
    assert row["image_roc_auc"] == image_roc_auc_score(labels, scores)


def test_an_anomalous_image_without_a_visible_defect_is_no_normal_image():
    masks, maps = pixels(20, 104)
    labels = np.where(masks.any((1, 2)), -1, 1)
    masks[-1] = False  # its defect lies outside of the crop
    maps[-1] += 9
    with (
        pytest.warns(FewImagesWarning),
        pytest.warns(MaskWarning, match=r"1 anomalous images have a mask without an anomalous pixel.*masks\[19\]"),
    ):
        report = evaluation_report(labels, -maps.max((1, 2)), masks, maps, n_resamples=20)
    assert report["defects"][0]["aupimo"] == pytest.approx(aupimo_score(masks[:-1], maps[:-1]), abs=1e-12)
    assert report["defects"][0]["pixel_roc_auc"] == pixel_roc_auc_score(masks, maps)


def test_report_of_one_kind_of_image_has_no_figure_that_needs_both():
    with pytest.warns(FewImagesWarning, match="anomalous|normal"):
        report = evaluation_report([1, 1], [0.5, 0.7], offset=0.6)
    (row,) = report["defects"]
    assert row["image_roc_auc"] is None and row["found"] is None and row["intervals"] == {}
    assert report["false_positive_rate"] == 0.5
    masks = np.ones((2, 4, 4), bool)
    with pytest.warns(FewImagesWarning):
        report = evaluation_report([-1, -1], [0.5, 0.7], masks, 1.0 * masks, marked=masks, offset=0.6)
    (row,) = report["defects"]
    assert row["pixel_roc_auc"] is None and row["pixel_f1"] == 1 and row["found"] == 0.5
    assert report["false_positive_rate"] is None


@pytest.mark.filterwarnings("ignore::ipca_sklearn.exceptions.FewImagesWarning")
def test_contradictions_in_a_report_are_errors():
    masks, maps = pixels()
    labels = np.where(masks.any((1, 2)), -1, 1)
    with pytest.raises(ValueError, match=r"masks\[4\] has anomalous pixels, and y_true says that the image is normal"):
        evaluation_report(np.r_[1, 1, 1, 1, 1, labels[5:]], labels, masks, maps)
    with pytest.raises(ValueError, match="both masks and maps"):
        evaluation_report(labels, labels, masks)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        evaluation_report(labels, labels[1:])


@pytest.mark.parametrize("metric", [image_roc_auc_score, pixel_roc_auc_score, aupro_score, pixel_f1_score, pro_score])
def test_an_option_that_a_measure_does_not_have_is_named(metric):
    given = images() if metric in IMAGE_METRICS else pixels()
    with pytest.raises(TypeError, match="unexpected keyword argument 'limit'"):
        confidence_interval(
            metric, given[0], given[1] > 1 if metric in (pixel_f1_score, pro_score) else given[1], limit=1
        )


def test_masks_without_a_defect_have_no_interval_of_f1():
    nothing = np.zeros((4, 5, 5), bool)
    with pytest.raises(ValueError, match="no anomalous pixel"):
        confidence_interval(pixel_f1_score, nothing, nothing)


def test_a_type_of_defect_may_be_called_normal():
    labels = np.repeat([1, -1], [5, 40])
    with pytest.warns(FewImagesWarning, match=r"of these kinds: normal \(5\)\."):
        evaluation_report(labels, np.arange(45.0), defect_types=np.where(labels == 1, "good", "normal"), n_resamples=5)
