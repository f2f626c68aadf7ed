"""Metrics against their definitions, counted pair by pair and threshold by threshold in exact fractions."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from ipca_sklearn.exceptions import AspectRatioWarning
from ipca_sklearn.metrics import (
    _inputs,
    _pixels,
    aupro_score,
    image_average_precision_score,
    image_f1_max_score,
    image_roc_auc_score,
    pixel_average_precision_score,
    pixel_f1_max_score,
    pixel_f1_score,
    pixel_roc_auc_score,
    resize_maps,
)

IMAGE_METRICS = [image_roc_auc_score, image_average_precision_score, image_f1_max_score]
PIXEL_METRICS = [pixel_roc_auc_score, aupro_score, pixel_average_precision_score, pixel_f1_max_score]
# No deadline: a busy machine is no failure.
SOME = settings(max_examples=50, deadline=None)
MANY = settings(max_examples=200, deadline=None)
max_fprs = st.floats(1e-3, 1) | st.sampled_from([0.3, 0.5, 1])


@st.composite
def masks_and_maps(draw, n_levels=None):
    """Masks with both classes and maps of the same size: few levels for many ties, None for arbitrary floats."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(2, 6)))
    masks = draw(arrays(bool, shape).filter(lambda mask: mask.any() and not mask.all()))
    if n_levels is None:
        n_levels = draw(st.sampled_from([1, 2, 4, 20, None]))
    values = st.floats(-1e6, 1e6, width=32) if n_levels is None else st.integers(0, n_levels - 1)
    return masks, draw(arrays(np.float32, shape, elements=values))


def scored(seed=0, shape=(4, 24, 24)):
    """Square defects of several sizes, one image without, on noisy maps that show them weakly."""
    rng = np.random.default_rng(seed)
    masks = np.zeros(shape, bool)
    masks[0, 2:5, 2:5] = masks[0, 10:20, 8:20] = masks[1, 0, 0] = masks[2, 4:9, 4:6] = masks[2, 15:, 15:] = True
    return masks, (rng.standard_normal(shape) + masks).astype(np.float32)


def with_value(value, shape=(2, 4, 4), dtype=float):
    values = np.zeros(shape, dtype)
    values[1, 2, 2] = value
    return values


MASKS, MAPS = with_value(1), np.zeros((2, 4, 4))
THE_DEFECT = MASKS[1]


def roc_by_pairs(anomalous, normal):
    """Share of (anomalous, normal) pairs in the right order, a tie counting one half."""
    doubled = sum(2 * (a > b) + (a == b) for a in anomalous.tolist() for b in normal.tolist())
    return Fraction(doubled, 2 * len(anomalous) * len(normal))


def regions_by_flooding(mask, connectivity):
    """Sets of pixels of one mask that are joined by steps of one pixel, diagonal ones with connectivity 2 only."""
    left = set(zip(*map(np.ndarray.tolist, np.nonzero(mask)), strict=True))
    while left:
        region, frontier = set(), [left.pop()]
        while frontier:
            row, column = frontier.pop()
            region.add((row, column))
            near = {(r, c) for r, c in left if max(abs(r - row), abs(c - column)) == 1}
            near = {(r, c) for r, c in near if connectivity == 2 or r == row or c == column}
            left -= near
            frontier += near
        yield region


def aupro_by_thresholds(masks, maps, max_fpr, connectivity):
    """The definition: one point of the curve per distinct score, trapezoids up to the limit."""
    regions = [
        np.array([maps[i][pixel] for pixel in region])
        for i, mask in enumerate(masks)
        for region in regions_by_flooding(mask, connectivity)
    ]
    normal, limit = maps[~masks], Fraction(max_fpr)
    x0 = y0 = area = Fraction(0)
    for threshold in np.unique(maps)[::-1]:
        x1 = Fraction(int((normal >= threshold).sum()), normal.size)
        y1 = sum(Fraction(int((region >= threshold).sum()), region.size) for region in regions) / len(regions)
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
        x0, y0 = x1, y1
        if x0 == limit:
            break
    return area / limit


# --- images -----------------------------------------------------------------------------------------------------------


@SOME
@given(st.lists(st.tuples(st.sampled_from([-1, 1]), st.integers(-3, 3)), min_size=2, max_size=20))
def test_image_score_counts_pairs_with_normal_above_anomalous(pairs):
    labels, scores = np.array([(1, 0), (-1, 1), *pairs]).T
    expected = roc_by_pairs(scores[labels == 1], scores[labels == -1])
    assert image_roc_auc_score(labels, scores) == pytest.approx(float(expected), abs=1e-12)
    assert image_roc_auc_score(torch.from_numpy(labels), -scores) == pytest.approx(float(1 - expected), abs=1e-12)


@pytest.mark.parametrize(
    ("y_true", "y_score", "message"),
    [
        ([1, -1, 1], [0.1, 0.2], r"\(3,\).*\(2,\)"),
        ([[1], [-1]], [[0.1], [0.2]], r"\(2, 1\).*1-d"),
        ([0, 1], [0.1, 0.2], r"y_true has the labels \[0\]; normal is \+1 and anomalous -1"),
        ([1, -1, np.nan], [0.1, 0.2, 0.3], "nan"),
        ([1, 1], [0.1, 0.2], r"only \[1\]"),
        ([], [], "both normal"),
        ([1, -1], [0.1, np.nan], r"y_score\[1\]"),
        ([1, -1], [np.inf, 0.1], r"y_score\[0\]"),
    ],
)
@pytest.mark.parametrize("metric", IMAGE_METRICS)
def test_image_score_says_what_is_wrong(metric, y_true, y_score, message):
    with pytest.raises(ValueError, match=message):
        metric(y_true, y_score)


@pytest.mark.parametrize("metric", IMAGE_METRICS)
def test_labels_that_are_words_are_refused(metric):
    with pytest.raises(TypeError, match="y_true must hold real numbers"):
        metric(["good", "bad"], [0.1, 0.2])


@SOME
@given(st.lists(st.tuples(st.sampled_from([-1, 1]), st.integers(-3, 3)), min_size=2, max_size=20))
def test_image_precision_and_f1_equal_scikit_learns_with_anomalous_as_positive(pairs):
    labels, scores = np.array([(1, 0), (-1, 1), *pairs]).T
    expected = average_precision_score(labels == -1, -scores)
    assert image_average_precision_score(labels, scores) == pytest.approx(expected, abs=1e-12)
    best = max(f1_score(labels == -1, scores <= threshold) for threshold in scores)
    assert image_f1_max_score(labels, scores) == pytest.approx(best, abs=1e-12)


def test_unsigned_scores_keep_their_order():
    for metric in IMAGE_METRICS:
        assert metric([1, 1, -1], np.array([2, 9, 0], np.uint8)) == 1


# --- pixels: definitions ----------------------------------------------------------------------------------------------


@SOME
@given(masks_and_maps())
def test_pixel_roc_is_the_correctly_rounded_share_of_pairs(data):
    masks, maps = data
    assert pixel_roc_auc_score(masks, maps) == float(roc_by_pairs(maps[masks], maps[~masks]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f8", np.int16, np.uint8, bool])
def test_pixel_roc_equals_scikit_learn_in_every_dtype(dtype):
    masks, maps = scored()
    maps = (maps > 0.5 if dtype is bool else np.abs(20 * maps)).astype(dtype)
    expected = roc_auc_score(masks.ravel(), maps.astype(float).ravel())
    assert pixel_roc_auc_score(masks, maps) == pytest.approx(expected, abs=1e-12)


@SOME
@given(masks_and_maps())
def test_pixel_precision_and_f1_equal_scikit_learns(data):
    masks, maps = data
    expected = average_precision_score(masks.ravel(), maps.ravel())
    assert pixel_average_precision_score(masks, maps) == pytest.approx(expected, abs=1e-12)
    precision, recall, _ = precision_recall_curve(masks.ravel(), maps.ravel())
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-30)
    assert pixel_f1_max_score(masks, maps) == pytest.approx(f1.max(), abs=1e-12)


@SOME
@given(masks_and_maps())
def test_f1_of_marked_pixels_equals_scikit_learns_and_is_at_most_the_largest(data):
    masks, maps = data
    marked = maps > np.median(maps)
    expected = f1_score(masks.ravel(), marked.ravel())
    assert pixel_f1_score(masks, marked) == pytest.approx(expected, abs=1e-12)
    assert pixel_f1_score(masks, marked) <= pixel_f1_max_score(masks, maps) + 1e-12


def test_marked_patches_are_all_pixels_whose_centres_lie_in_them():
    marked = np.array([[[True, False, True], [False, False, True]]])
    masks = np.repeat(np.repeat(marked, 3, axis=1), 2, axis=2)
    assert pixel_f1_score(masks, marked) == 1
    assert pixel_f1_score(np.array([[[1, 1, 0, 0, 0]]]), [[[1, 0]]]) == 1  # the middle lies in the second
    assert pixel_f1_score(np.array([[[1, 1, 1, 0, 0]]]), [[[1, 0]]]) == 4 / 5


def test_f1_of_marks_says_what_is_wrong():
    with pytest.raises(ValueError, match="no anomalous pixel"):
        pixel_f1_score(MAPS, MAPS > 1)
    with pytest.raises(ValueError, match=r"marked of dtype float64 .* not binary"):
        pixel_f1_score(MASKS, MAPS + 0.5)
    with pytest.raises(ValueError, match=r"and marked \(1, 4, 4\)"):
        pixel_f1_score(MASKS, MAPS[:1] > 1)


@MANY
@given(masks_and_maps(), max_fprs, st.sampled_from([1, 2]))
def test_aupro_is_the_area_under_the_curve_over_all_thresholds(data, max_fpr, connectivity):
    expected = aupro_by_thresholds(*data, max_fpr, connectivity)
    assert aupro_score(*data, max_fpr=max_fpr, connectivity=connectivity) == pytest.approx(float(expected), abs=1e-12)


def test_aupro_without_a_limit_is_the_mean_roc_of_the_regions():
    masks, maps = scored()
    regions = [(0, slice(2, 5), slice(2, 5)), (0, slice(10, 20), slice(8, 20)), (1, 0, 0)]
    regions += [(2, slice(4, 9), slice(4, 6)), (2, slice(15, None), slice(15, None))]
    normal = maps[~masks]
    rocs = []
    for region in regions:
        scores = np.concatenate([normal, np.ravel(maps[region])])
        rocs.append(roc_auc_score(np.arange(scores.size) >= normal.size, scores))
    assert aupro_score(masks, maps, max_fpr=1) == pytest.approx(np.mean(rocs), abs=1e-12)


@SOME
@given(masks_and_maps())
def test_aupro_of_one_region_without_a_limit_is_pixel_roc(data):
    masks, maps = data
    one_region = np.zeros_like(masks)
    one_region[0, :, :1] = True
    assert aupro_score(one_region, maps, max_fpr=1) == pytest.approx(pixel_roc_auc_score(one_region, maps), abs=1e-12)


# --- pixels: identities and invariances -------------------------------------------------------------------------------


@SOME
@given(masks_and_maps(), max_fprs)
def test_map_equal_to_the_mask_scores_exactly_one(data, max_fpr):
    masks, _ = data
    assert aupro_score(masks, masks, max_fpr=max_fpr) == 1
    assert all(metric(masks, masks) == 1 for metric in PIXEL_METRICS) and pixel_f1_score(masks, masks) == 1


@SOME
@given(masks_and_maps(n_levels=1), max_fprs)
def test_constant_map_scores_half_of_the_square(data, max_fpr):
    assert pixel_roc_auc_score(*data) == 0.5
    assert aupro_score(*data, max_fpr=max_fpr) == pytest.approx(max_fpr / 2, abs=1e-12)


@MANY
@given(masks_and_maps(n_levels=2), st.floats(0, 1, exclude_min=True))
def test_aupro_stays_within_zero_and_one_at_any_limit(data, max_fpr):
    masks, noise = data
    for maps in (noise, masks + noise, -noise - masks):
        assert 0 <= aupro_score(masks, maps, max_fpr=max_fpr) <= 1


@SOME
@given(masks_and_maps(), max_fprs, max_fprs)
def test_aupro_does_not_fall_when_the_limit_grows(data, one, other):
    low, high = sorted([one, other])
    assert aupro_score(*data, max_fpr=low) <= aupro_score(*data, max_fpr=high) + 1e-12


@SOME
@given(masks_and_maps())
def test_negated_map_scores_the_rest(data):
    masks, maps = data
    assert pixel_roc_auc_score(masks, -maps) == pytest.approx(1 - pixel_roc_auc_score(masks, maps), abs=1e-15)


@pytest.mark.parametrize("metric", PIXEL_METRICS)
@SOME
@given(data=masks_and_maps())
def test_increasing_transform_of_the_maps_changes_nothing(metric, data):
    masks, maps = data
    ranks = np.unique(maps, return_inverse=True)[1].reshape(maps.shape)
    assert metric(masks, ranks) == metric(masks, maps)
    assert metric(masks, 2 * maps.astype(float)) == metric(masks, maps)


@pytest.mark.parametrize("metric", PIXEL_METRICS)
@SOME
@given(data=masks_and_maps(), seed=st.integers(0, 99))
def test_order_of_the_images_does_not_matter(metric, data, seed):
    masks, maps = data
    order = np.random.default_rng(seed).permutation(len(masks))
    assert metric(masks[order], maps[order]) == pytest.approx(metric(masks, maps), abs=1e-12)


def test_small_region_counts_as_much_as_a_large_one():
    masks = np.zeros((1, 12, 12), bool)
    masks[0, :10, :10] = masks[0, 11, 11] = True
    maps = masks.astype(float)
    maps[0, 11, 11] = -1
    assert aupro_score(masks, maps) == 0.5
    assert pixel_roc_auc_score(masks, maps) == 100 / 101


def test_corner_contact_joins_regions_only_with_eight_neighbours():
    masks = np.array([[[1, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]])
    maps = masks.astype(float)
    maps[0, 1, 3] = -1
    assert aupro_score(masks, maps) == aupro_score(masks, maps, connectivity=2) == 3 / 4
    assert aupro_score(masks, maps, connectivity=1) == 1 / 2


def test_image_without_defect_adds_false_positives():
    masks, _ = scored()
    clean = np.zeros_like(masks)
    assert aupro_score(masks, masks) == 1
    assert aupro_score(np.concatenate([masks, clean]), np.concatenate([1.0 * masks, clean + 2.0])) == 0


# --- pixels: region of interest ---------------------------------------------------------------------------------------


def in_a_region(seed=0):
    """Masks and maps with a region whose outside holds false alarms, and a part of a defect."""
    masks, maps = scored(seed)
    region = np.zeros((24, 24), bool)
    region[2:18, 4:] = True
    return masks, np.where(region, maps, maps + 3), region


@pytest.mark.parametrize("metric", PIXEL_METRICS)
def test_pixels_outside_of_the_region_do_not_count(metric):
    masks, maps, region = in_a_region()
    cut = slice(None), slice(2, 18), slice(4, None)
    assert metric(masks, maps, region=region) == metric(masks[cut], maps[cut]) != metric(masks, maps)
    assert metric(masks, maps, region=np.ones((24, 24))) == metric(masks, maps)
    outside_zero = np.where(region, maps, 0)  # as a detector's maps are
    assert metric(masks, outside_zero, region=region) == metric(masks, maps, region=region)


def test_a_map_that_is_zero_outside_flatters_only_without_the_region():
    masks, maps, region = in_a_region()
    inside = maps - maps.min() + 1
    flattered = pixel_roc_auc_score(masks & region, np.where(region, inside, 0))
    assert flattered > pixel_roc_auc_score(masks & region, np.where(region, inside, 0), region=region) + 0.03


def test_marks_outside_of_the_region_do_not_count():
    masks, maps, region = in_a_region()
    cut = slice(None), slice(2, 18), slice(4, None)
    assert pixel_f1_score(masks, maps > 1, region=region) == pixel_f1_score(masks[cut], maps[cut] > 1)


@pytest.mark.parametrize("metric", PIXEL_METRICS)
def test_patches_outside_take_no_part_in_the_resizing(metric):
    masks, maps, region = in_a_region()
    maps, region = maps[:, ::4, ::4], region[::4, ::4]
    expected = metric(masks, maps, region=region)
    assert metric(masks, np.where(region, maps, np.float32(1e6)), region=region) == expected
    assert metric(masks, np.where(region, maps, np.nan), region=region) == expected
    pixels = np.repeat(np.repeat(region, 4, axis=0), 4, axis=1)
    constant = np.where(region, np.float32(7), 0) * np.ones_like(maps)
    # A constant map stays constant up to the edge of the region, so no pixel is told from another.
    assert pixel_roc_auc_score(masks, constant.round(3), region=region) == pytest.approx(0.5, abs=0.01)
    assert pixel_roc_auc_score(masks, constant, region=pixels) != pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("metric", [*PIXEL_METRICS, pixel_f1_score])
@pytest.mark.parametrize(
    ("region", "message"),
    [
        (np.ones((3, 4)), r"region has shape \(3, 4\): it must have that of a mask, \(4, 4\)"),
        (np.zeros((4, 4)), "false everywhere"),
        (np.full((4, 4), 0.5), "region of dtype float64 .* not binary"),
        (1 - THE_DEFECT, "no anomalous pixel"),
    ],
)
def test_regions_that_are_none_are_refused(metric, region, message):
    with pytest.raises(ValueError, match=message):
        metric(MASKS, MAPS, region=region)


# --- pixels: inputs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", PIXEL_METRICS)
@pytest.mark.parametrize(
    "code",
    [
        lambda masks: masks.astype(np.uint8),
        lambda masks: masks.astype(np.uint8) * np.uint8(255),
        lambda masks: masks.astype(float),
        lambda masks: masks.tolist(),
        lambda masks: torch.from_numpy(masks),
    ],
)
def test_every_coding_of_the_masks_gives_the_same_score(metric, code):
    masks, maps = scored()
    assert metric(code(masks), maps) == metric(masks, maps)


@pytest.mark.parametrize("metric", PIXEL_METRICS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_tensors_score_like_arrays(metric, dtype):
    masks, maps = scored()
    tensor = torch.from_numpy(maps).to(dtype).requires_grad_()
    assert metric(masks, tensor) == metric(masks, tensor.detach().double().numpy())


@pytest.mark.parametrize("metric", PIXEL_METRICS)
def test_small_maps_are_scored_as_if_resized_before(metric):
    masks, maps = scored()
    small = maps[:, ::4, ::3]
    assert metric(masks, small) == metric(masks, resize_maps(small, masks.shape[1:]))


@pytest.mark.parametrize("metric", PIXEL_METRICS)
@pytest.mark.parametrize("step", [1, 4])
def test_size_of_the_internal_pieces_does_not_matter(metric, step, monkeypatch):
    masks, maps = scored()
    whole = metric(masks, maps[:, ::step, ::step])
    monkeypatch.setattr(_inputs, "_PIXELS_AT_ONCE", 3 * masks[0].size)
    monkeypatch.setattr(_pixels, "_COUNTS_AT_ONCE", 7)
    assert metric(masks, maps[:, ::step, ::step]) == pytest.approx(whole, abs=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("metric", PIXEL_METRICS)
@pytest.mark.parametrize("step", [1, 4])
def test_inputs_are_left_as_they_were_and_may_be_read_only(metric, step):
    masks, maps = scored()
    maps = np.ascontiguousarray(maps[:, ::step, ::step])
    before = masks.copy(), maps.copy()
    metric(masks, maps)
    np.testing.assert_array_equal(masks, before[0])
    np.testing.assert_array_equal(maps, before[1])
    masks.flags.writeable = maps.flags.writeable = False
    assert metric(masks, maps) == metric(*before)


@pytest.mark.parametrize("metric", PIXEL_METRICS)
def test_maps_of_the_size_of_the_masks_keep_their_precision(metric):
    masks, _ = scored()
    assert metric(masks, 1 + 1e-12 * masks) == 1


def test_limit_is_thirty_percent_by_default():
    masks, maps = scored()
    assert aupro_score(masks, maps) == aupro_score(masks, maps, max_fpr=0.3) < aupro_score(masks, maps, max_fpr=0.4)


@pytest.mark.parametrize("metric", PIXEL_METRICS)
@pytest.mark.parametrize(
    ("masks", "maps", "message"),
    [
        (MASKS, MAPS[:1], r"masks has shape \(2, 4, 4\) and maps \(1, 4, 4\).*same n_images"),
        (MASKS[0], MAPS[0], r"\(4, 4\).*masks\[None\]"),
        (MASKS[:, None], MAPS, r"\(2, 1, 4, 4\).*channel"),
        (MASKS[:0], MAPS[:0], "no pixel"),
        (MASKS[:, :, :3], MAPS, r"\(4, 4\) are larger than masks of \(4, 3\)"),
        (MASKS[:, :3], MAPS, r"\(4, 4\) are larger than masks of \(3, 4\)"),
        (with_value(2), MAPS, r"0\.0 to 2\.0 are not binary"),
        (with_value(-1), MAPS, r"-1\.0 to 0\.0 are not binary"),
        (with_value(0.5), MAPS, "not binary"),
        (with_value(np.nan), MAPS, "not binary"),
        (with_value(255), MAPS, "float64 .* not binary"),
        (np.array([[[0, 1, 255]]], np.uint8), np.zeros((1, 1, 3)), "uint8 .* 0 to 255 are not binary"),
        (MAPS, MAPS, "no anomalous pixel"),
        (MAPS + 1, MAPS, "no normal pixel"),
        (MASKS, with_value(np.nan), r"maps\[1\] holds NaN"),
        (MASKS, with_value(-np.inf), r"maps\[1\] holds NaN"),
        (MASKS, with_value(np.nan)[:, 1:, 1:], r"maps\[1\] holds NaN"),
    ],
)
def test_pixel_metrics_say_what_is_wrong(metric, masks, maps, message):
    with pytest.raises(ValueError, match=message):
        metric(masks, maps)


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy, np.ndarray.tolist])
@pytest.mark.parametrize("metric", [*PIXEL_METRICS, pixel_f1_score])
def test_masks_turned_against_their_maps_are_refused(metric, form):
    masks = np.zeros((2, 24, 16), np.uint8)
    masks[1, 3:9, 4:8] = 1
    for maps in (np.zeros((2, 4, 6)), np.zeros((2, 8, 12))):
        with pytest.raises(ValueError, match=rf"\(24, 16\) are turned .* against (maps|marked) of \({maps.shape[1]}, "):
            metric(form(masks), form(maps))


@pytest.mark.parametrize("metric", [*PIXEL_METRICS, pixel_f1_score])
def test_maps_that_are_stretched_to_other_proportions_are_told(metric):
    masks = np.zeros((2, 24, 40), np.uint8)
    masks[1, 3:9, 4:8] = 1
    with pytest.warns(AspectRatioWarning, match=r"masks of shape \(24, 40\) .* (maps|marked) of \(20, 20\)"):
        metric(masks, np.zeros((2, 20, 20)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric(masks, np.zeros((2, 3, 5)))
        metric(masks, np.zeros((2, 12, 19)))  # a grid of whole patches


@pytest.mark.parametrize("metric", PIXEL_METRICS)
def test_complex_maps_are_refused(metric):
    with pytest.raises(TypeError, match="maps must hold real numbers, got dtype complex128"):
        metric(MASKS, MAPS + 1j)


@pytest.mark.parametrize("max_fpr", [0, -0.1, 1.1, np.nan])
def test_limit_outside_of_zero_to_one_is_refused(max_fpr):
    with pytest.raises(ValueError, match=rf"max_fpr={max_fpr} must lie in \(0, 1\]"):
        aupro_score(MASKS, MAPS, max_fpr=max_fpr)


@pytest.mark.parametrize("connectivity", [0, 3, 8])
def test_unknown_connectivity_is_refused(connectivity):
    with pytest.raises(ValueError, match=f"connectivity={connectivity} must be 1"):
        aupro_score(MASKS, MAPS, connectivity=connectivity)


# --- resizing ---------------------------------------------------------------------------------------------------------


def bilinear_matrix(n_in, n_out):
    """Weights of the definition: pixel centres at (i + 1/2) / n, held constant beyond the outer centres."""
    position = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    return np.maximum(1 - np.abs(position[:, None] - np.arange(n_in)), 0)


@SOME
@given(arrays(np.float32, (2, 3, 4), elements=st.floats(-100, 100, width=32)), st.integers(3, 13), st.integers(4, 13))
def test_resizing_is_bilinear_between_pixel_centres(maps, height, width):
    resized = resize_maps(maps, (height, width))
    expected = bilinear_matrix(3, height) @ maps.astype(float) @ bilinear_matrix(4, width).T
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected, atol=1e-3)


@pytest.mark.parametrize("pixels_at_once", [1, 200, 450])
def test_resizing_a_few_images_at_a_time_equals_direct_resizing(pixels_at_once, monkeypatch):
    maps = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 6, 7), dtype=np.float32))
    direct = torch.nn.functional.interpolate(maps[:, None], (10, 20), mode="bilinear", align_corners=False)
    monkeypatch.setattr(_inputs, "_PIXELS_AT_ONCE", pixels_at_once)
    np.testing.assert_array_equal(resize_maps(maps, (10, 20)), direct[:, 0].numpy())
    np.testing.assert_array_equal(resize_maps(maps.numpy()[::-1], (10, 20)), direct[:, 0].numpy()[::-1])


def test_resizing_to_the_same_size_copies():
    _, maps = scored()
    resized = resize_maps(maps, maps.shape[1:])
    np.testing.assert_array_equal(resized, maps)
    assert not np.shares_memory(resized, maps)


def test_resizing_no_map_gives_no_map():
    assert resize_maps(np.empty((0, 3, 3)), (6, 5)).shape == (0, 6, 5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("pixels_at_once", [1, 2**20])
@pytest.mark.parametrize(
    ("maps", "size", "message"),
    [
        (MAPS[0], (8, 8), r"maps has shape \(4, 4\).*maps\[None\]"),
        (MAPS[:, :0], (8, 8), r"\(2, 0, 4\)"),
        (MAPS, (0, 8), r"size=\(0, 8\) must be two positive integers"),
        (MAPS, (8.5, 8), r"size=\(8\.5, 8\)"),
        (MAPS, 8, "size=8"),
        (with_value(np.nan), (8, 8), r"maps\[1\] holds NaN"),
        (with_value(1e39), (8, 8), r"maps\[1\].* beyond float32"),
    ],
)
def test_resizing_says_what_is_wrong(maps, size, message, pixels_at_once, monkeypatch):
    monkeypatch.setattr(_inputs, "_PIXELS_AT_ONCE", pixels_at_once)
    with pytest.raises(ValueError, match=message):
        resize_maps(maps, size)
